"""Small data sets that become shards when they are first used: whole or not at all, whichever process is first."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet import UserError, files
from resnet.data import indexes, manifest, shards


@dataclass(frozen=True)
class Half:
    """The training or the validation images: labels from 0, their records, and over how many shards these are dealt."""

    labels: Sequence[int]
    records: Sequence[bytes]
    shards: int


Content = tuple[Sequence[str], dict[str, Half]]  # names of the classes; "train" and "val"


def write(folder: str, knob: str, options: dict[str, Any], content: Callable[[], Content]) -> None:
    """Write img_train/ and img_val/ of `folder`, unless they are there.

    Complete or not there at all: the folder is written under another name and renamed. `knob` names it in errors, and
    `options` go into the manifest.
    """
    target = Path(folder)
    if (target / "img_train").is_dir() and (target / "img_val").is_dir():
        return
    names, halves = content()
    aside = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        aside.chmod(0o755)  # mkdtemp makes it for its owner alone; a cache may be shared
        splits, every, lengths = {}, [], []
        for split, half in halves.items():
            written = shards.write_split(aside, f"img_{split}", half.records, half.shards)
            counts = Counter(half.labels)
            every += written
            sizes = np.array([len(record) for record in half.records], "<u4")
            lengths += [sizes[number :: half.shards].tobytes() for number in range(half.shards)]
            splits[split] = manifest.split(written, {name: counts[label] for label, name in enumerate(names)})
        files.write_classes(aside, names)
        indexes.write(aside, every, lengths)
        versions = manifest.versions()
        manifest.write(aside, {"options": options, "versions": versions, "classes": len(names), "splits": splits})
        aside.rename(target)  # over an empty folder too; over any other it fails
    except OSError as error:
        if (target / "img_val").is_dir():
            return  # another process was faster
        message = f"cannot be written there ({error.strerror}); give an empty or new folder with {knob}=..."
        raise UserError(f"{knob}={folder}: the {options['source']} {message}") from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
