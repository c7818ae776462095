"""Images of any classes: a folder for each class, in one tree or in two; or a table of labels."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence

from resnet import UserError
from resnet.prepare import archive, labels, splits
from resnet.prepare.archive import Entry
from resnet.prepare.knobs import Folder
from resnet.prepare.listing import (
    Listing,
    check_outside,
    check_same_classes,
    class_folders,
    classify,
    few,
    resolve,
)
from resnet.prepare.summary import share as share_of
from resnet.prepare.workers import Workers

SHARE = 0.1  # held out by default


def fill(settings: Folder, listing: Listing, workers: Workers) -> None:
    """List a tree of one folder for each class, or two such trees: settings.train and .val, or of such names below .dir.

    Of one tree, and of images with a table of labels, the share val_fraction of each class is drawn for validation: one image
    at least, if there are two.
    """
    dir, train, val, follow = settings.dir, settings.train, settings.val, settings.links == "follow"
    if settings.labels is not None and (train or val):
        raise UserError(f"labels={settings.labels}: is for the images in dir=; leave out train= and val=")
    if dir:
        dir = resolve(dir, "dir")
        if not ((train and val) or settings.labels):
            *pair, notes = splits.find(dir, "dir")
            train, val = train or pair[0], val or pair[1]
            listing.notes += notes
    if train and val:
        two_trees(settings, listing, workers, resolve(train, "train"), resolve(val, "val"))
    elif train or val:
        present, kind, missing, names = (
            (train, "validation", "val", splits.VAL) if train else (val, "training", "train", splits.TRAIN)
        )
        raise UserError(
            f"{present}: no {kind} images beside it; name them with {missing}=, call their folder {' or '.join(names)}, or "
            f"give dir={present} to have val_fraction of it held out"
        )
    elif dir:
        if settings.missing_classes == "allow":
            raise UserError(f"missing_classes=allow: there is no validation tree in {dir}; leave it out")
        share = SHARE if settings.val_fraction is None else settings.val_fraction
        held_out = functools.partial(draw, share=share, seed=settings.seed)
        if settings.labels is not None:
            by_table(settings, listing, dir, held_out)
        else:
            places = class_folders(listing, dir, listing.train, follow)
            classify(listing, workers, listing.train, dir, places, held_out)
        listing.notes.append(f"held out for validation: {share:.1%} of each class, drawn with seed {settings.seed}")
        if alone := [name for label, name in enumerate(listing.classes, 1) if not listing.val.classes[label]]:
            listing.notes.append(f"one image only, so none for validation: {few(alone)}")
        if not len(listing.val):
            raise UserError(
                f"dir={dir}: one image in each class, so none is left for validation; add some, or give val="
            )
    else:
        raise UserError("dir: must be given, a folder with one folder for each class in it")
    listing.texts = {name: name for name in listing.classes}


def two_trees(settings: Folder, listing: Listing, workers: Workers, train: str, val: str) -> None:
    """List a tree of training images and one of validation images."""
    if settings.val_fraction is not None:
        raise UserError(
            f"val_fraction={settings.val_fraction:g}: there are validation images already, in {val}; leave it out"
        )
    for knob, path in (("train", train), ("val", val)):
        if inside := [one for one in splits.find(path, knob)[:2] if one]:
            raise UserError(f"{knob}={path}: holds the split {inside[0]}, not classes; give the folder of the classes")
    listing.train.prefix, listing.val.prefix = "train/", "val/"
    follow = settings.links == "follow"
    val_places = class_folders(listing, val, listing.val, follow)
    train_places = class_folders(listing, train, listing.train, follow)
    check_same_classes(listing, train_places, val_places, f"{train} and {val}", settings.missing_classes)
    classify(listing, workers, listing.val, val, val_places, classes=train_places)
    classify(listing, workers, listing.train, train, train_places)
    listing.notes.append(f"training images from {train}, validation images from {val}")


def by_table(settings: Folder, listing: Listing, dir: str, held_out: Callable[[list[Entry]], set[str]]) -> None:
    """List the images anywhere in `dir`, whose classes a table tells. Raises UserError if it misses too many."""
    check_outside(listing, dir)
    contents = archive.folder(dir, dir, settings.links == "follow")
    table = labels.of_table(
        resolve(str(settings.labels), "labels"), settings.label_column, [entry.name for entry in contents.entries]
    )
    total = len(table.of_image) + len(table.refused)
    if len(table.refused) > settings.max_rejected * total:
        lines = [f"{name!r} {reason}" for name, reason in table.refused[:3]]
        raise UserError(
            f"labels={settings.labels}: {len(table.refused):,} of {total:,} images and rows do not fit together, more than "
            f"max_rejected={settings.max_rejected:g} allows, such as {', '.join(lines)}; give dir= of the labelled images alone, "
            f"or do without the others by max_rejected={share_of(len(table.refused), total):g}"
        )
    contents.refused += table.refused
    by_class: dict[str, list[Entry]] = {}
    for entry in listing.take(contents, listing.train):
        if entry.name in table.of_image:
            by_class.setdefault(table.of_image[entry.name], []).append(entry)
    listing.classes = sorted(by_class, key=archive.raw)
    if len(listing.classes) < 2:
        raise UserError(
            f"labels={settings.labels}: one class only ({few(listing.classes)}); a classifier needs at least 2"
        )
    for label, name in enumerate(listing.classes, 1):
        names = held_out(by_class[name])
        for entry in by_class[name]:
            (listing.val if entry.name in names else listing.train).add(label, entry)
    listing.notes.append(f"labels from {settings.labels}")


def draw(entries: Sequence[Entry], share: float, seed: int) -> set[str]:
    """Names of the images held out. Each one's lot depends on its name and the seed, not on the other names."""
    count = min(max(round(len(entries) * share), 1), len(entries) - 1)
    lots = {entry.name: hashlib.sha256(b"%d/%s" % (seed, archive.raw(entry.name))).digest() for entry in entries}
    return set(sorted(lots, key=lots.__getitem__)[: max(count, 0)])
