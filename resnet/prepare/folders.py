"""Images of any classes: a folder for each class, in one tree or in two."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

from resnet import UserError
from resnet.prepare import archive, splits
from resnet.prepare.archive import Entry
from resnet.prepare.knobs import Folder
from resnet.prepare.listing import Listing, check_same_classes, class_folders, classify, few, resolve
from resnet.prepare.workers import Workers

SHARE = 0.1  # held out by default


def fill(settings: Folder, listing: Listing, workers: Workers) -> None:
    """List a tree of one folder for each class, or two such trees: settings.train and .val, or of such names below .dir.

    Of one tree, the share val_fraction of each class is drawn for validation: one image at least, if there are two.
    """
    dir, train, val, val_fraction = settings.dir, settings.train, settings.val, settings.val_fraction
    if dir:
        dir = resolve(dir, "dir")
        if not (train and val):
            *pair, notes = splits.find(dir, "dir")
            train, val = train or pair[0], val or pair[1]
            listing.notes += notes
    if train and val:
        if val_fraction is not None:
            raise UserError(
                f"val_fraction={val_fraction:g}: there are validation images already, in {val}; leave it out"
            )
        train, val = resolve(train, "train"), resolve(val, "val")
        for knob, path in (("train", train), ("val", val)):
            if inside := [one for one in splits.find(path, knob)[:2] if one]:
                raise UserError(
                    f"{knob}={path}: holds the split {inside[0]}, not classes; give the folder of the classes"
                )
        listing.train.prefix, listing.val.prefix = "train/", "val/"
        classify(listing, workers, listing.val, val, class_folders(listing, val, listing.val))
        known = listing.classes
        classify(listing, workers, listing.train, train, class_folders(listing, train, listing.train))
        check_same_classes(listing.classes, known, f"{train} and {val}")
        listing.notes.append(f"training images from {train}, validation images from {val}")
    elif train or val:
        present, kind, missing, names = (
            (train, "validation", "val", splits.VAL) if train else (val, "training", "train", splits.TRAIN)
        )
        raise UserError(
            f"{present}: no {kind} images beside it; name them with {missing}=, call their folder {' or '.join(names)}, or "
            f"give dir={present} to have val_fraction of it held out"
        )
    elif dir:
        share = SHARE if val_fraction is None else val_fraction
        held_out = functools.partial(draw, share=share, seed=settings.seed)
        classify(listing, workers, listing.train, dir, class_folders(listing, dir, listing.train), held_out)
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


def draw(entries: Sequence[Entry], share: float, seed: int) -> set[str]:
    """Names of the images held out. Each one's lot depends on its name and the seed, not on the other names."""
    count = min(max(round(len(entries) * share), 1), len(entries) - 1)
    lots = {entry.name: hashlib.sha256(b"%d/%s" % (seed, archive.raw(entry.name))).digest() for entry in entries}
    return set(sorted(lots, key=lots.__getitem__)[: max(count, 0)])
