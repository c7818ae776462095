"""Images of ImageNet's size, drawn at random, and shards of them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet.data import tfexample
from resnet.data.shards import write_split

SHARDS = 4  # of each part
PARTS = "img_train", "img_val"


def photo(random: np.random.Generator, height: int = 375, width: int = 500, quality: int = 94) -> bytes:
    """A JPEG with the size of an ImageNet photograph: smooth shapes under fine grain, about 100 KB."""
    layers: list[Any] = []
    cells = (3, 8, 24, 80)
    for count in cells:
        small = Image.fromarray(random.integers(0, 256, [count, count, 3], np.uint8))
        layers.append(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32) / count**0.5)
    shapes = sum(layers) / sum(1 / count**0.5 for count in cells)
    pixels = shapes + random.normal(0, 9, [height, width, 1])
    return jpeg(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), quality)


def jpeg(image: Image.Image, quality: int) -> bytes:
    """Encoded."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def resized(encoded: bytes, side: int, quality: int) -> bytes:
    """Encoded again, with the short side `side`."""
    with Image.open(io.BytesIO(encoded)) as image:
        scale = side / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        return jpeg(image.resize(size, Image.Resampling.BICUBIC), quality)


def photos(count: int) -> list[bytes]:
    """Different ones, the same every time."""
    random = np.random.default_rng(0)
    return [photo(random) for _ in range(count)]


def shards(folder: Path, encoded: Sequence[bytes], images: int | None = None) -> Path:
    """`folder` with shards to train and to evaluate on, each of `images` images: these, repeated if need be."""
    records = [tfexample.image(one, 0, 0, 1, b"n", b"", b"n.jpg") for one in encoded]
    for part in PARTS:
        write_split(folder, part, list(itertools.islice(itertools.cycle(records), images or len(records))), SHARDS)
    return folder
