"""scikit-learn's hand-written digits (UCI ML repository, CC BY 4.0) as shards: a data set that needs no download."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from resnet import UserError, files
from resnet.data import manifest, shards, tfexample

HELD_OUT = 360  # of the 1,797 digits, drawn with this seed: the same in every copy of the data set
HOLD_OUT_SEED = 20150
SIDE = 32  # pixels; the originals are 8 x 8, and a crop needs pixels to choose from
SHARDS = {"train": 8, "val": 2}


def write(folder: str, knob: str = "data.dir") -> None:
    """Write 1,437 training and 360 validation images to img_train/ and img_val/ of `folder`, unless they are there.

    Complete or not there at all: the folder is written under another name and renamed. `knob` names it in errors.
    """
    target = Path(folder)
    if (target / "img_train").is_dir() and (target / "img_val").is_dir():
        return
    labels, examples = encode()
    aside = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        aside.chmod(0o755)  # mkdtemp makes it for its owner alone; a cache may be shared
        splits = {}
        for split, part in {"train": slice(HELD_OUT, None), "val": slice(HELD_OUT)}.items():
            written = shards.write_split(aside, f"img_{split}", examples[part], SHARDS[split])
            counts = Counter(labels[part])
            splits[split] = manifest.split(written, {str(digit): counts[digit] for digit in range(10)})
        files.write_classes(aside, map(str, range(10)))
        content = {"options": {"source": "digits"}, "versions": manifest.versions(), "classes": 10, "splits": splits}
        manifest.write(aside, content)
        aside.rename(target)  # over an empty folder too; over any other it fails
    except OSError as error:
        if (target / "img_val").is_dir():
            return  # another process was faster
        message = f"the digits cannot be written there ({error.strerror}); give an empty or new folder with {knob}=..."
        raise UserError(f"{knob}={folder}: {message}") from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


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
