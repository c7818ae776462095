"""The MLflow model around a SavedModel of this suite. This file is copied beside it, and imports nothing of resnet.

A request is a column `image`. Each is a JPEG (bytes; in JSON as base64) or pixels (whole numbers in 0..255, [H, W, 3]).
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import tensorflow as tf
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

CHUNK = 64  # images to one call of the network, whatever the request's length


class Classifier(mlflow.pyfunc.PythonModel):
    """Loads the artifact `saved_model`, and answers with the likeliest classes."""

    def load_context(self, context: Any) -> None:
        """Called once by MLflow."""
        self.loaded = tf.saved_model.load(context.artifacts["saved_model"])
        self.classify = self.loaded.signatures["uint8"]
        self.size = self.classify.structured_input_signature[1]["images"].shape[1]
        self.names = [name.decode("utf-8", "backslashreplace") for name in self.loaded.names.numpy()]

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """A row an image: class, probability, and the `top` likeliest classes, best first: 5 unless `params` say otherwise."""
        top = int((params or {}).get("top", 5))
        if top < 1:
            raise invalid(f"top={top}: must be at least 1")
        images = [self.pixels(number, image) for number, image in enumerate(flatten(model_input["image"]))]
        rows = []
        for first in range(0, len(images), CHUNK):
            batch = tf.constant(np.stack(images[first : first + CHUNK]))
            rows += [self.row(image, top) for image in self.classify(images=batch)["probabilities"].numpy()]
        return pd.DataFrame(rows, columns=["class", "probability", "top"])

    def row(self, probabilities: NDArray[np.float32], top: int) -> dict[str, Any]:
        """The answer for one image with these probabilities [classes]."""
        order = np.argsort(-probabilities, kind="stable")[:top]
        likeliest = [{"class": self.name(index), "probability": float(probabilities[index])} for index in order]
        return {**likeliest[0], "top": likeliest}

    def name(self, index: int) -> str:
        """The class of an output; its number if the names are not known."""
        return self.names[index] if self.names else str(index)

    def pixels(self, number: int, image: Any) -> NDArray[np.uint8]:
        """One image as the network takes it: uint8 [S, S, 3]. Pixels that have this size already are taken as they are."""
        if isinstance(image, (str, bytes, bytearray)):
            pixels = decode(number, image)
        else:
            pixels = as_uint8(number, image)
            if pixels.shape[:2] == (self.size, self.size):
                return pixels
        return np.asarray(self.loaded.cropped(tf.constant(pixels)))


def flatten(images: Any) -> list[Any]:
    """The images of a column. MLflow makes one cell of {"image": [text, ...]}, a cell each of anything else."""
    texts = [isinstance(cell, list) and cell and isinstance(cell[0], str) for cell in images]
    return [one for cell, several in zip(images, texts, strict=True) for one in (cell if several else [cell])]


def decode(number: int, image: str | bytes | bytearray) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of a JPEG, or of a PNG; text is its base64, also as a data: URL."""
    try:
        data = base64.b64decode(image.rpartition(",")[2], validate=True) if isinstance(image, str) else bytes(image)
        return np.asarray(tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"))
    except (binascii.Error, ValueError) as error:
        raise invalid(f"image {number}: text must be the base64 of a JPEG ({error})") from None
    except tf.errors.OpError as error:
        reason = error.message.splitlines()[0].rpartition("}} ")[2]
        raise invalid(f"image {number}: no JPEG that can be decoded ({reason})") from None


def as_uint8(number: int, image: Any) -> NDArray[np.uint8]:
    """Pixels as uint8, unless they are something else."""
    try:
        pixels = np.asarray(image, np.float32)
    except (TypeError, ValueError) as error:
        raise invalid(f"image {number}: neither base64 text nor pixels ({error})") from None
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise invalid(f"image {number}: pixels must be of shape [height, width, 3], not {list(pixels.shape)}")
    if not ((pixels >= 0) & (pixels <= 255) & (pixels == np.round(pixels))).all():
        raise invalid(f"image {number}: pixels must be whole numbers in 0..255, red, green and blue")
    return pixels.astype(np.uint8)


def invalid(message: str) -> MlflowException:
    """The error that the server answers with status 400."""
    return MlflowException.invalid_parameter_value(message)


mlflow.models.set_model(Classifier())
