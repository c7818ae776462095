"""The MLflow model around a SavedModel of this suite. This file is copied beside it, and imports nothing of resnet.

A request is a column `image`. Each is a file (bytes; in JSON as base64) or pixels (whole numbers in 0..255, [H, W, 3]). Files are
decoded by the rules of preparation, which the artifact `images` has: a copy of resnet/data/images.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import importlib.util
import json
import logging
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import tensorflow as tf
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from numpy.typing import NDArray

CHUNK = 64  # images to one call of the network, whatever the request's length
LARGE_PIXELS, LARGE_BODY = 16_000_000, 8_000_000  # pixels of an image, bytes of a request: above, one at a time
MAX_LISTS = 2_000_000  # of a request: Python needs 100 bytes for each of the two of "[]"
SERVER, HOOK = "mlflow.pyfunc.scoring_server", "_async_catch_mlflow_exception"  # what answers with an exception's text
JSON = "application/json"
TYPE = f"Content-Type: must be {JSON}, in UTF-8"
REQUEST = (
    'the request must be {"inputs": [IMAGE, ...]}, or have the column "image" in instances, dataframe_records or '
    "dataframe_split; an IMAGE is the base64 of a file, or pixels [height, width, 3]"
)
TOP = "params.top: must be a whole number of at least 1"
LOG = logging.getLogger("mlflow.served")
one_at_a_time = threading.Lock()


@dataclass
class Request:
    """A request over HTTP that is worked on: how many images it may have, and whether nobody waits for it any more."""

    max_images: int
    abandoned: threading.Event = field(default_factory=threading.Event)


current: ContextVar[Request | None] = ContextVar("request", default=None)


class Refused(MlflowException):
    """What is wrong with a request, in `line`, which quotes nothing of it: MLflow puts the whole request before its message.

    The server answers with status 400.
    """

    def __init__(self, line: str) -> None:
        super().__init__(line, INVALID_PARAMETER_VALUE)
        self.line = line


# -------------------------------------------------------------------------------------------------------------- the model
class Classifier(mlflow.pyfunc.PythonModel):
    """Loads the artifact `saved_model`, and answers with the likeliest classes."""

    def load_context(self, context: Any) -> None:
        self.loaded = tf.saved_model.load(context.artifacts["saved_model"])
        self.images = module_of(context.artifacts["images"])
        self.classify = self.loaded.signatures["uint8"]
        self.size = self.classify.structured_input_signature[1]["images"].shape[1]
        classes = self.classify.structured_outputs["probabilities"].shape[1]
        names = [name.decode("utf-8", "backslashreplace") for name in self.loaded.names.numpy()]
        self.names = names or [str(number) for number in range(classes)]
        guard(int(context.model_config["max_images"]), int(context.model_config["max_bytes"]))

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """A row an image: class, probability, and the `top` likeliest classes, best first: 5 unless `params` say otherwise."""
        top = (params or {}).get("top", 5)
        if top is None or top < 1:
            raise Refused(TOP)
        images, request, rows = flatten(model_input["image"]), current.get(), []
        if request and len(images) > request.max_images:
            raise Refused(f"{len(images)} images; a request may have {request.max_images} (max_images)")
        for first in range(0, len(images), CHUNK):
            batch = []
            for number, image in enumerate(images[first : first + CHUNK], first):
                if request and request.abandoned.is_set():
                    raise Refused("nobody waits for the answer any more")
                try:
                    batch.append(self.pixels(image))
                except ValueError as error:
                    raise Refused(f"image {number}: {error}") from None
            for probabilities in self.classify(images=tf.constant(np.stack(batch)))["probabilities"].numpy():
                order = np.argsort(-probabilities, kind="stable")[:top]
                likeliest = [{"class": self.names[i], "probability": float(probabilities[i])} for i in order]
                rows.append({**likeliest[0], "top": likeliest})
        return pd.DataFrame(rows, columns=["class", "probability", "top"])

    def pixels(self, image: Any) -> NDArray[np.uint8]:
        """One image as the network takes it: uint8 [S, S, 3]. Pixels that have this size already are taken as they are."""
        try:
            if isinstance(image, (str, bytes, bytearray)):
                return self.pixels_of_file(as_bytes(image))
            pixels = as_uint8(image)
            if pixels.shape[:2] == (self.size, self.size):
                return pixels
            self.images.check_size(*pixels.shape[1::-1])
            return np.asarray(self.loaded.cropped(tf.constant(pixels)))
        except self.images.Broken as error:
            raise ValueError(f"no image that can be decoded ({error})") from None

    def pixels_of_file(self, data: bytes) -> NDArray[np.uint8]:
        """The same of a file, with the pixels that preparation and evaluation make of it. Raises ValueError and Broken."""
        width, height, plain = self.images.header(data)
        with one_at_a_time if width * height > LARGE_PIXELS else contextlib.nullcontext():
            if not plain:
                return np.asarray(self.loaded.cropped(tf.constant(np.asarray(self.images.upright(data)))))
            try:
                pixels = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
            except tf.errors.OpError as error:
                reason = error.message.splitlines()[0].rpartition("}} ")[2]
                raise ValueError(f"no JPEG that can be decoded ({reason})") from None
            return np.asarray(self.loaded.cropped(pixels))


def module_of(path: str) -> Any:
    """The module in a file. Its name is of its own: several models may be loaded in one process."""
    spec = importlib.util.spec_from_file_location(f"{__name__}_images", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flatten(images: Any) -> list[Any]:
    """The images of a column. MLflow makes one cell of {"image": [text, ...]}, a cell each of anything else."""
    texts = [isinstance(cell, list) and cell and isinstance(cell[0], str) for cell in images]
    return [one for cell, several in zip(images, texts, strict=True) for one in (cell if several else [cell])]


def as_bytes(image: str | bytes | bytearray) -> bytes:
    """A file; text is its base64, also as a data: URL. Raises ValueError."""
    try:
        return base64.b64decode(image.rpartition(",")[2], validate=True) if isinstance(image, str) else bytes(image)
    except ValueError as error:
        raise ValueError(f"text must be the base64 of an image file ({error})") from None


def as_uint8(image: Any) -> NDArray[np.uint8]:
    """Pixels as uint8. Raises ValueError if they are something else."""
    try:
        pixels = np.asarray(image, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("neither base64 text nor pixels") from None
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"pixels must be of shape [height, width, 3], not {list(pixels.shape)}")
    if not ((pixels >= 0) & (pixels <= 255) & (pixels == np.round(pixels))).all():
        raise ValueError("pixels must be whole numbers in 0..255, red, green and blue")
    return pixels.astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------- the server
def guard(max_images: int, max_bytes: int) -> None:
    """If this process is MLflow's scoring server, bound its requests and what it answers to a bad one.

    MLflow reads a body of any size, answers a bad one with all of it, and has no setting for either. What it calls around its
    handler of /invocations is replaced before it is used.
    """
    if (server := sys.modules.get(SERVER)) is None:
        return
    if hasattr(server, HOOK):
        setattr(server, HOOK, lambda handler: guarded(handler, max_images, max_bytes))
    else:
        LOG.warning("MLflow %s is not the version of requirements.txt: requests have no bounds", mlflow.__version__)


def guarded(handler: Callable[[Any], Any], max_images: int, max_bytes: int) -> Callable[[Any], Any]:
    """MLflow's `handler` of a request, with bounds; every error is one line that quotes nothing of the request."""
    from starlette.responses import Response

    large = asyncio.Lock()

    @functools.wraps(handler)
    async def answer(request: Any) -> Any:
        try:
            size = await read_body(request, max_bytes)
            if request.headers.get("content-type", "").partition(";")[0].strip() != JSON:
                raise Refused(TYPE)
            async with large if size > LARGE_BODY else contextlib.nullcontext():
                response = await watched(handler, request, Request(max_images))
            if response.status_code == 415:  # of a parameter, such as another charset
                raise Refused(TYPE)
            return response
        except Exception as error:
            refusal = explained(error)
            return Response(refusal.serialize_as_json(), refusal.get_http_status_code(), media_type=JSON)

    return answer


async def read_body(request: Any, limit: int) -> int:
    """Read the request's body; how many bytes it has. Raises Refused above `limit`, once the client has sent it all."""
    parts, size = list[bytes](), 0
    async for part in request.stream():
        size += len(part)
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
    if size > limit:
        raise Refused(f"a body of {size:,} bytes; a request may have {limit:,} (max_bytes)")
    body = b"".join(parts)
    if body.count(b"[") + body.count(b"{") > MAX_LISTS:
        raise Refused(f"more than {MAX_LISTS:,} lists; send images as base64, or fewer")
    request._body = body  # where Request.body() looks
    return size


async def watched(handler: Callable[[Any], Any], request: Any, work: Request) -> Any:
    """The handler's response; the work is abandoned when the client has gone, or has been answered for its time."""
    current.set(work)
    job, hang_up = asyncio.ensure_future(handler(request)), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({job, hang_up}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            work.abandoned.set()
        return await job
    finally:
        work.abandoned.set()
        hang_up.cancel()


def explained(error: Exception) -> MlflowException:
    """The exception to answer with."""
    cause = error.__cause__
    if isinstance(error, Refused):
        return Refused(error.line)
    if isinstance(cause, json.JSONDecodeError):
        return Refused(f"the body is not JSON: {cause.msg}, at character {cause.pos}")
    if isinstance(cause, UnicodeDecodeError):
        return Refused(f"the body is not UTF-8: {cause.reason}, at byte {cause.start}")
    text = error.message if isinstance(error, MlflowException) else ""
    if text.startswith("Encountered an unexpected error"):  # by the model itself
        LOG.error("%s", str(getattr(error, "json_kwargs", {}).get("stack_trace"))[-4000:])
        return MlflowException("the model failed at this request; its server's log says why", INTERNAL_ERROR)
    return Refused(TOP if "\nError: Invalid parameters found" in text else REQUEST)


mlflow.models.set_model(Classifier())
