"""Writing: images to TFRecord shards of the ImageNet layout, with labels from 1."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnet import UserError, shards

HELD_OUT = 360  # of the 1,797 digits, drawn with this seed: the same in every copy of the data set
HOLD_OUT_SEED = 20150
DIGIT_SIDE = 32  # pixels; the originals are 8 x 8, and a crop needs pixels to choose from
DIGIT_SHARDS = (8, 2)


def digits(folder: str) -> None:
    """Write scikit-learn's hand-written digits (UCI ML repository, CC BY 4.0) below `folder`, unless they are there.

    1,437 training and 360 validation images in img_train/ and img_val/. Complete or not there at all: the folder is made
    under another name and renamed.
    """
    target = Path(folder)
    if (target / "img_train").is_dir() and (target / "img_val").is_dir():
        return
    from PIL import Image
    from sklearn.datasets import load_digits

    known = load_digits()
    drawn = np.random.RandomState(HOLD_OUT_SEED).permutation(len(known.images))  # a frozen generator (NEP 19)
    examples = []
    for number in drawn:
        grey = Image.fromarray((known.images[number] * 255 / 16).round().astype(np.uint8))
        encoded = io.BytesIO()
        grey.resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC).convert("RGB").save(encoded, "JPEG", quality=95)
        digit = int(known.target[number])
        examples.append(
            example(encoded.getvalue(), digit + 1, str(digit), f"digit-{number:04d}.jpg", DIGIT_SIDE, DIGIT_SIDE)
        )
    aside = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        write(aside / "img_val", "img_val", examples[:HELD_OUT], DIGIT_SHARDS[1])
        write(aside / "img_train", "img_train", examples[HELD_OUT:], DIGIT_SHARDS[0])
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        aside.rename(target)
    except OSError as error:
        if (target / "img_val").is_dir():
            return  # another process was faster
        raise UserError(
            f"data.dir={folder}: the digits cannot be written there ({error.strerror}); "
            "give an empty or new folder with data.dir=..."
        ) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def example(encoded: bytes, label: int, text: str, filename: str, height: int, width: int) -> bytes:
    """A serialized tf.train.Example with the established features of an ImageNet record."""
    import tensorflow as tf

    def ints(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    def strings(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    return bytes(
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    "image/encoded": strings(encoded),
                    "image/height": ints(height),
                    "image/width": ints(width),
                    "image/colorspace": strings(b"RGB"),
                    "image/channels": ints(3),
                    "image/format": strings(b"JPEG"),
                    "image/filename": strings(filename.encode()),
                    "image/class/label": ints(label),
                    "image/class/synset": strings(text.encode()),
                    "image/class/text": strings(text.encode()),
                }
            )
        ).SerializeToString(deterministic=True)
    )


def write(folder: Path, prefix: str, examples: Sequence[bytes], count: int) -> None:
    """`examples` dealt out over `count` shards <prefix>-00000-of-<count> below `folder`, flushed to disk."""
    folder.mkdir(parents=True)
    for number in range(count):
        with (folder / f"{prefix}-{number:05d}-of-{count:05d}").open("wb") as shard:
            for data in examples[number::count]:
                shard.write(shards.frame(data))
            shard.flush()
            os.fsync(shard.fileno())
