"""scikit-learn's hand-written digits (UCI ML repository, CC BY 4.0) as shards: a data set that needs no download."""

from __future__ import annotations

import io

import numpy as np

from resnet.data import embedded
from resnet.data.embedded import Content, Half
from resnet.data.formats import tfexample

HELD_OUT = 360  # of the 1,797 digits, drawn with this seed: the same in every copy of the data set
HOLD_OUT_SEED = 20150
SIDE = 32  # pixels; the originals are 8 x 8, and a crop needs pixels to choose from


def write(folder: str, knob: str = "data.dir") -> None:
    """embedded.write() of 1,437 training and 360 validation images."""
    embedded.write(folder, knob, {"source": "digits"}, content)


def content() -> Content:
    labels, examples = encode()
    train, val = slice(HELD_OUT, None), slice(HELD_OUT)
    halves = {"train": Half(labels[train], examples[train], 8), "val": Half(labels[val], examples[val], 2)}
    return [str(digit) for digit in range(10)], halves


def encode() -> tuple[list[int], list[bytes]]:
    """(digits, records of their enlarged images), those to hold out first."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels, examples = [], []
    for number in np.random.RandomState(HOLD_OUT_SEED).permutation(len(digits.images)):  # a frozen generator (NEP 19)
        grey = Image.fromarray((digits.images[number] * 255 / 16).round().astype(np.uint8))
        encoded = io.BytesIO()
        grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB").save(encoded, "JPEG", quality=95)
        label = int(digits.target[number])
        name, filename = b"%d" % label, b"digit-%04d.jpg" % number
        labels.append(label)
        examples.append(tfexample.image(encoded.getvalue(), SIDE, SIDE, label + 1, name, name, filename))
    return labels, examples
