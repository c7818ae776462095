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

SHARDS = 4


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


def shards(folder: Path, encoded: Sequence[bytes], images: int) -> Path:
    """`folder` with shards to train and to evaluate on, each of `images` images: these, repeated if need be."""
    records = [tfexample.image(one, 0, 0, 1, b"n", b"", b"n.jpg") for one in encoded]
    records = list(itertools.islice(itertools.cycle(records), images))
    lengths = [np.array([len(one) for one in records[first::SHARDS]], "<u4").tobytes() for first in range(SHARDS)]
    parts = [shard for part in ("img_train", "img_val") for shard in write_split(folder, part, records, SHARDS)]
    indexes.write(folder, parts, lengths * 2)
    return folder
