"""The MLflow model around a SavedModel of this suite. This file is copied beside it, and imports nothing of resnet.

A request is a column `image`. Each is a JPEG (bytes; in JSON as base64) or pixels (whole numbers in 0..255, [H, W, 3]).
MlflowException is what the server answers with status 400.
"""

from __future__ import annotations

import base64
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
        self.loaded = tf.saved_model.load(context.artifacts["saved_model"])
        self.classify = self.loaded.signatures["uint8"]
        self.size = self.classify.structured_input_signature[1]["images"].shape[1]
        classes = self.classify.structured_outputs["probabilities"].shape[1]
        names = [name.decode("utf-8", "backslashreplace") for name in self.loaded.names.numpy()]
        self.names = names or [str(number) for number in range(classes)]

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """A row an image: class, probability, and the `top` likeliest classes, best first: 5 unless `params` say otherwise."""
        top = int((params or {}).get("top", 5))
        if top < 1:
            raise MlflowException.invalid_parameter_value(f"top={top}: must be at least 1")
        images = []
        for number, image in enumerate(flatten(model_input["image"])):
            try:
                images.append(self.pixels(image))
            except ValueError as error:
                raise MlflowException.invalid_parameter_value(f"image {number}: {error}") from None
        rows = []
        for first in range(0, len(images), CHUNK):
            batch = tf.constant(np.stack(images[first : first + CHUNK]))
            for probabilities in self.classify(images=batch)["probabilities"].numpy():
                order = np.argsort(-probabilities, kind="stable")[:top]
                likeliest = [{"class": self.names[i], "probability": float(probabilities[i])} for i in order]
                rows.append({**likeliest[0], "top": likeliest})
        return pd.DataFrame(rows, columns=["class", "probability", "top"])

    def pixels(self, image: Any) -> NDArray[np.uint8]:
        """One image as the network takes it: uint8 [S, S, 3]. Pixels that have this size already are taken as they are."""
        if isinstance(image, (str, bytes, bytearray)):
            pixels = decode(image)
        else:
            pixels = as_uint8(image)
            if pixels.shape[:2] == (self.size, self.size):
                return pixels
        return np.asarray(self.loaded.cropped(tf.constant(pixels)))


def flatten(images: Any) -> list[Any]:
    """The images of a column. MLflow makes one cell of {"image": [text, ...]}, a cell each of anything else."""
    texts = [isinstance(cell, list) and cell and isinstance(cell[0], str) for cell in images]
    return [one for cell, several in zip(images, texts, strict=True) for one in (cell if several else [cell])]


def decode(image: str | bytes | bytearray) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of a JPEG, or of a PNG; text is its base64, also as a data: URL."""
    try:
        data = base64.b64decode(image.rpartition(",")[2], validate=True) if isinstance(image, str) else bytes(image)
        return np.asarray(tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"))
    except ValueError as error:
        raise ValueError(f"text must be the base64 of a JPEG ({error})") from None
    except tf.errors.OpError as error:
        reason = error.message.splitlines()[0].rpartition("}} ")[2]
        raise ValueError(f"no JPEG that can be decoded ({reason})") from None


def as_uint8(image: Any) -> NDArray[np.uint8]:
    """Pixels as uint8, unless they are something else."""
    try:
        pixels = np.asarray(image, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"neither base64 text nor pixels ({error})") from None
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"pixels must be of shape [height, width, 3], not {list(pixels.shape)}")
    if not ((pixels >= 0) & (pixels <= 255) & (pixels == np.round(pixels))).all():
        raise ValueError("pixels must be whole numbers in 0..255, red, green and blue")
    return pixels.astype(np.uint8)


mlflow.models.set_model(Classifier())
