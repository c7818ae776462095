"""Images of ImageNet's size, drawn at random, and shards of them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from resnet.data import indexes
from resnet.data.formats import tfexample
from resnet.data.shards import write_split

PHOTOS = 64  # different ones, of a benchmark


def photo(random: np.random.Generator) -> bytes:
    """A JPEG with the size of an ImageNet photograph: smooth shapes under fine grain, about 100 KB."""
    pixels = np.zeros([375, 500, 3], np.float32)
    cells = (3, 8, 24, 80)
    for count in cells:
        small = Image.fromarray(random.integers(0, 256, [count, count, 3], np.uint8))
        pixels += np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), np.float32) / count**0.5
    pixels = pixels / sum(1 / count**0.5 for count in cells) + random.normal(0, 9, [375, 500, 1])
    return jpeg(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), 94)


def jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def resized(encoded: bytes, height: int, quality: int) -> bytes:
    """Encoded again, in this height."""
    with Image.open(io.BytesIO(encoded)) as image:
        return jpeg(ImageOps.contain(image, (image.width, height)), quality)


def photos(count: int) -> list[bytes]:
    """Different ones, the same every time."""
    random = np.random.default_rng(0)
    return [photo(random) for _ in range(count)]


def shards(folder: Path, encoded: Sequence[bytes], images: int, count: int = 4) -> Path:
    """`folder` with shards to train and to evaluate on, `count` of `images` images each: these, repeated if need be."""
    records = [tfexample.image(one, 0, 0, 1, b"n", b"", b"n.jpg") for one in encoded]
    records = list(itertools.islice(itertools.cycle(records), images))
    written = write_split(folder, "img_train", records, count) + write_split(folder, "img_val", records, 4)
    sizes = np.array([len(record) for record in records], "<u4")
    parts = [sizes[number::many].tobytes() for many in (count, 4) for number in range(many)]
    indexes.write(folder, written, parts)
    return folder
