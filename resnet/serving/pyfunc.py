"""The MLflow model around a SavedModel of this suite. resnet.serve copies this file beside it: it needs nothing of resnet.

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
    """Loads the artifact `saved_model`, and answers with the classes that it finds likeliest."""

    def load_context(self, context: Any) -> None:
        """Called once by MLflow."""
        self.loaded = tf.saved_model.load(context.artifacts["saved_model"])
        self.scored = self.loaded.signatures["uint8"]
        self.size = self.scored.structured_input_signature[1]["images"].shape[1]
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
            raise refused(f"top={top}: must be at least 1")
        images = [self.pixels(number, image) for number, image in enumerate(listed(model_input["image"]))]
        rows = []
        for first in range(0, len(images), CHUNK):
            found = self.scored(images=tf.constant(np.stack(images[first : first + CHUNK])))["probabilities"].numpy()
            rows += [self.row(probabilities, top) for probabilities in found]
        return pd.DataFrame(rows, columns=["class", "probability", "top"])

    def row(self, probabilities: NDArray[np.float32], top: int) -> dict[str, Any]:
        """What is answered of one image, from its probabilities [classes]."""
        order = np.argsort(-probabilities, kind="stable")[:top]
        likeliest = [{"class": self.name(place), "probability": float(probabilities[place])} for place in order]
        return {**likeliest[0], "top": likeliest}

    def name(self, place: int) -> str:
        """What the output `place` is called; its number where nobody kept the names."""
        return self.names[place] if self.names else str(place)

    def pixels(self, number: int, image: Any) -> NDArray[np.uint8]:
        """One image as the network takes it: uint8 [S, S, 3]. Pixels that have this size already are taken as they are."""
        if isinstance(image, (str, bytes, bytearray)):
            given = decoded(number, image)
        else:
            given = checked(number, image)
            if given.shape[:2] == (self.size, self.size):
                return given
        return np.asarray(self.loaded.cropped(tf.constant(given)))


def listed(images: Any) -> list[Any]:
    """The images of a column. MLflow makes one cell of {"image": [text, ...]}, a cell each of anything else."""
    texts = [isinstance(cell, list) and cell and isinstance(cell[0], str) for cell in images]
    return [one for cell, several in zip(images, texts, strict=True) for one in (cell if several else [cell])]


def decoded(number: int, image: str | bytes | bytearray) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of a JPEG, or of a PNG; text is its base64, also as a data: URL."""
    try:
        data = base64.b64decode(image.rpartition(",")[2], validate=True) if isinstance(image, str) else bytes(image)
        return np.asarray(tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"))
    except (binascii.Error, ValueError) as error:
        raise refused(f"image {number}: text must be the base64 of a JPEG ({error})") from None
    except tf.errors.OpError as error:
        told = error.message.splitlines()[0].rpartition("}} ")[2]
        raise refused(f"image {number}: no JPEG that can be decoded ({told})") from None


def checked(number: int, image: Any) -> NDArray[np.uint8]:
    """Pixels as uint8, if that is what they are."""
    try:
        given = np.asarray(image, np.float32)
    except (TypeError, ValueError) as error:
        raise refused(f"image {number}: neither base64 text nor pixels ({error})") from None
    if given.ndim != 3 or given.shape[2] != 3 or not given.size:
        raise refused(f"image {number}: pixels must be of shape [height, width, 3], not {list(given.shape)}")
    if not ((given >= 0) & (given <= 255) & (given == np.round(given))).all():
        raise refused(f"image {number}: pixels must be whole numbers in 0..255, red, green and blue")
    return given.astype(np.uint8)


def refused(told: str) -> MlflowException:
    """What the server answers with status 400."""
    return MlflowException.invalid_parameter_value(told)


mlflow.models.set_model(Classifier())
