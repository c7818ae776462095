"""Images with the size of ImageNet's, made on the spot, and shards of them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet.data import tfexample
from resnet.data.shards import write_split

SHARDS = 4  # of each part
PARTS = "img_train", "img_val"


def photo(random: Any, height: int = 375, width: int = 500, quality: int = 94) -> bytes:
    """A JPEG with the size of an ImageNet photograph: smooth shapes under fine grain, about 100 KB."""
    import numpy as np
    from PIL import Image

    layers = []
    for cells in (3, 8, 24, 80):
        small = Image.fromarray(random.integers(0, 256, [cells, cells, 3], np.uint8))
        layers.append(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32) / cells**0.5)
    shapes = sum(layers) / sum(1 / cells**0.5 for cells in (3, 8, 24, 80))
    pixels = shapes + random.normal(0, 9, [height, width, 1])
    encoded = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def resized(encoded: bytes, side: int, quality: int) -> bytes:
    """A JPEG again, with the short side `side`."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        scale = side / min(image.size)
        small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        again = io.BytesIO()
        small.save(again, "JPEG", quality=quality)
    return again.getvalue()


def several(count: int) -> list[bytes]:
    """Different ones, the same every time."""
    import numpy as np

    random = np.random.default_rng(0)
    return [photo(random) for _ in range(count)]


def shards(folder: Path, encoded: Sequence[bytes], images: int | None = None) -> Path:
    """`folder` with shards to train and to evaluate on, each of so many images: these, again and again if need be."""
    examples = [tfexample.image(one, 0, 0, 1, b"n", b"n", b"n.jpg") for one in encoded]
    for part in PARTS:
        dealt = list(itertools.islice(itertools.cycle(examples), images or len(examples)))
        write_split(folder, part, dealt, SHARDS)
    return folder
