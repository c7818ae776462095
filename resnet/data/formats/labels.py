"""Which label is the first class's: our shards count from 1, other people's from 0 or from 1. It is never guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from resnet import UserError, files
from resnet.config.data import Records
from resnet.data.formats.foreign import UNREADABLE
from resnet.data.shards import Index

FEATURES = "features.json"  # of TensorFlow Datasets, beside its shards


def from_one(half: Index, first: int) -> Index:
    """The index with labels that count from 1; without labels if the records are ours but for the index."""
    assert half.label is not None
    if first == 1 and half.established:
        return dataclasses.replace(half, label=None)
    return dataclasses.replace(half, label=np.where(half.label == UNREADABLE, UNREADABLE, half.label + 1 - first))


def first(settings: Records, halves: Sequence[Index]) -> int:
    """The label of the first class, of data.label_offset=, else of all labels. Raises UserError where they allow two, or none."""
    labels = np.concatenate([half.label for half in halves if half.label is not None])
    labels = labels[labels != UNREADABLE]
    if not len(labels):
        raise UserError(f"data.dir={settings.dir}: no record here is of an image with a label that can be read")
    low, high, classes = int(labels.min()), int(labels.max()), settings.classes
    span = f"the labels in {settings.dir} are {low} to {high}"
    named = names_of(settings.dir)
    if named:
        check_named(settings, named, low, high)
    if (chosen := settings.label_offset) is not None:
        if not chosen <= low <= high < chosen + classes:
            last = f"{chosen} to {chosen + classes - 1} are those of data.classes={classes}"
            raise UserError(f"data.label_offset={chosen}: {span}, and {last}; set data.classes, or another offset")
        return chosen
    possible = [0] if named or is_class_label(settings.dir) else [0, 1]
    fitting = [one for one in possible if one <= low <= high < one + classes]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(
            f"data.label_offset=null: {span}, which data.classes={classes} allows if the first class is label 0, and if it is "
            "label 1; give data.label_offset=0 (TensorFlow Datasets, most WebDataset tars) or data.label_offset=1 (TF-Slim, "
            "Model Garden, this suite)"
        )
    wanted = " or ".join(f"{one} to {one + classes - 1}" for one in possible)
    raise UserError(f"data.classes={classes}: {span}, where {wanted} must be; set data.classes, or data.label_offset=")


def names_of(folder: str) -> list[str] | None:
    """The names of labels in TensorFlow Datasets' file beside the shards, None if nothing or classes.txt names them."""
    names, path = files.classes_beside(folder)
    return names if path.endswith(files.LABELS) else None


def check_named(settings: Records, names: Sequence[str], low: int, high: int) -> None:
    """Raise UserError if the shards have a label that is not named, or names are given to other labels."""
    path = f"{settings.dir}/{files.LABELS}"
    if settings.label_offset:
        raise UserError(
            f"data.label_offset={settings.label_offset}: {path} names the labels from 0 on; set data.label_offset=null, or "
            "remove that file"
        )
    if fault := unnamed(names, low, high):
        raise UserError(f"{path}: {fault}; copy it again with its shards, or remove it")


def unnamed(names: Sequence[str], low: int, high: int) -> str:
    """What is wrong with the names of labels from 0 on, if the shards have labels from `low` to `high`."""
    fits = 0 <= low <= high < len(names)
    return "" if fits else f"names labels 0 to {len(names) - 1}, and the labels in the shards are {low} to {high}"


def is_class_label(folder: str) -> bool:
    """Whether TensorFlow Datasets' description beside the shards says that `label` is one of its ClassLabels: from 0."""
    try:
        content = files.parse_json(files.read_content(f"{folder}/{FEATURES}"))
        return "classLabel" in content["featuresDict"]["features"]["label"]
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return False
