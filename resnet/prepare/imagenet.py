"""ILSVRC 2012: the two tars as downloaded, read in place, or the folders that they unpack to."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from resnet import UserError
from resnet.prepare import archive, labels
from resnet.prepare.knobs import Imagenet
from resnet.prepare.listing import Listing, Places, check_same_classes, class_folders, classify, few, resolve
from resnet.prepare.workers import Workers

KAGGLE = "ILSVRC/Data/CLS-LOC"  # of Kaggle's archive imagenet-object-localization-challenge
TRAIN = ("ILSVRC2012_img_train.tar", "img_train", "train", f"{KAGGLE}/train")  # looked for in this order
VAL = ("ILSVRC2012_img_val.tar", "img_val", "val", f"{KAGGLE}/val")
LABELS = ("synset_labels.txt", "imagenet_2012_validation_synset_labels.txt", "LOC_val_solution.csv")
TEXTS = ("imagenet_metadata.txt", "LOC_synset_mapping.txt")


def fill(settings: Imagenet, listing: Listing, workers: Workers) -> None:
    """List the images of settings.train and .val, or of what lies in .dir; labels and texts are looked for there, too."""
    train = resolve(settings.train, "train") if settings.train else present(settings.dir, "train", TRAIN)
    val = resolve(settings.val, "val") if settings.val else present(settings.dir, "val", VAL)
    listing.train.prefix, listing.val.prefix = "train/", "val/"
    follow = settings.links == "follow"
    if follow and Path(train).is_file() and Path(val).is_file():
        raise UserError("links=follow: is for folders, and both are tars; leave it out")
    places = class_tars(train) if Path(train).is_file() else class_folders(listing, train, listing.train, follow)
    classify(listing, workers, listing.train, train, places)
    validation(listing, val, settings)
    listing.notes.append(f"training images from {train}, validation images from {val}")
    if texts := settings.texts or beside(settings.dir, TEXTS):
        pairs = (line.split(None, 1) for line in lines_of(texts, "texts"))
        known = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
        listing.texts = {name: known[name] for name in listing.classes if name in known}


def present(dir: str | None, knob: str, names: Sequence[str]) -> str:
    """The first of `names` that lies below `dir`."""
    if dir is None:
        raise UserError(f"{knob}: must be given, or dir= with {' or '.join(names)} in it")
    path = beside(resolve(dir, "dir"), names)
    if path is None:
        raise UserError(f"dir={dir}: has none of {', '.join(names)}; put one there, or name it with {knob}=")
    return str(Path(path).resolve())


def beside(dir: str | None, names: Sequence[str]) -> str | None:
    """The first of `names` that lies in `dir`, if any."""
    return next((str(Path(dir, name)) for name in names if dir and Path(dir, name).exists()), None)


def class_tars(path: str) -> Places:
    """The tars of the classes inside the training tar."""
    places, double, first = Places(), [], ""
    for entry, reason in archive.members(path):
        first = first or entry.name
        if reason:
            raise UserError(f"train={path}: its member {entry.name!r} is {reason}; this is not the tar of ILSVRC 2012")
        if entry.name.endswith(".tar"):
            name = entry.name.rpartition("/")[2].removesuffix(".tar")
            double += [name] * (name in places)
            places[name] = functools.partial(archive.tar, path, entry.offset, entry.size)
    if not places:
        hint = "; it looks like the validation tar, which is val=" if first.lower().endswith(archive.ENDINGS) else ""
        raise UserError(f"train={path}: no tars of classes inside{hint}")
    if double:
        raise UserError(f"train={path}: holds {few(double)} more than once; this is not the tar of ILSVRC 2012")
    return places


def validation(listing: Listing, path: str, settings: Imagenet) -> None:
    """List the validation images at `path`, flat with a file of labels or in a folder for each class."""
    contents = archive.tar(path) if Path(path).is_file() else archive.folder(path, path, settings.links == "follow")
    entries = listing.take(contents, listing.val)
    if not entries:
        tars = contents.ignored[".tar"]
        hint = f" but {tars:,} tars; it looks like the training tar, which is train=" if tars else ""
        raise UserError(f"val={path}: no image inside{hint}")
    flat = [entry for entry in entries if "/" not in entry.name]
    if table := settings.labels or (beside(settings.dir, LABELS) if flat else None):
        entries.sort(key=lambda entry: archive.raw(entry.name.rpartition("/")[2]))
        images = [entry.name.rpartition("/")[2] for entry in entries]
        names = labels.of_validation(table, lines_of(table, "labels"), images, listing.classes)
    elif not flat:
        names = [entry.name.partition("/")[0] for entry in entries]
    else:
        raise UserError(
            f"val={path}: {len(flat):,} images lie in no class's folder and nothing tells their classes; give "
            f"labels=FILE with one synset a line in the order of the file names ({LABELS[0]}), Kaggle's {LABELS[2]} or Caffe's "
            "val.txt, or sort them into folders"
        )
    check_same_classes(listing, listing.classes, names, f"train and val={path}", settings.missing_classes)
    labels_of = {name: label for label, name in enumerate(listing.classes, 1)}
    pairs = ((labels_of[name], entry) for name, entry in zip(names, entries, strict=True))
    for label, entry in sorted(pairs, key=lambda pair: (pair[0], archive.raw(pair[1].name))):
        listing.val.add(label, entry)


def lines_of(path: str, knob: str) -> list[str]:
    """The lines of a text file that hold something."""
    try:
        return [line.strip() for line in Path(path).read_text("utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{knob}={path}: cannot be read ({error})") from error
