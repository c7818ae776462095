"""Which images there are, of which class, for training or for validation.

Classes are numbered from 1 in the order of their names' bytes, and images are listed by class and name: nothing depends on
the order in which a file system lists its files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from resnet import UserError
from resnet.files import normal
from resnet.photos import is_junk
from resnet.prepare import archive
from resnet.prepare.archive import Contents, Entry
from resnet.prepare.state import Split, State
from resnet.prepare.workers import Workers, progress, tick

Places = dict[str, Callable[[], Contents]]  # class -> what lists its images, in a worker


class Listing:
    """Everything known before the first image is read. The images and those refused are in `state`."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.classes: list[str] = []
        self.texts: dict[str, str] = {}  # class -> its name for people
        self.ignored, self.by_content = Counter[str](), Counter[str]()  # files of other endings, no images and images
        self.refused: tuple[str, str] | None = None  # the first one's (name, reason)
        self.notes: list[str] = []  # lines for the user
        state.db.execute("DELETE FROM images")
        state.forget("")
        self.splits = self.train, self.val = Split(state.db, "train"), Split(state.db, "val")
        self.refused_hash = hashlib.sha256()

    def take(self, contents: Contents, split: Split, below: str = "") -> list[Entry]:
        """The entries of `contents`, named `below` + name; what else it holds is recorded."""
        self.ignored += contents.ignored
        self.by_content += contents.by_content
        refused = [(split.prefix + below + name, reason) for name, reason in contents.refused]
        self.refused = self.refused or next(iter(refused), None)
        self.refused_hash.update(b"".join(json.dumps(row).encode() + b"\n" for row in refused))
        self.state.reject("", refused)
        return [entry._replace(name=below + entry.name) for entry in contents.entries]

    def digest(self) -> str:
        """A hash that changes when the listing does."""
        hashes = [part.hexdigest() for part in (self.train.hash, self.val.hash, self.refused_hash)]
        return hashlib.sha256(json.dumps([self.classes, self.texts, hashes]).encode()).hexdigest()


def scan(place: Callable[[], Contents]) -> Contents:
    """The images of one class; a job for a worker."""
    tick()
    return place()


def classify(
    listing: Listing,
    workers: Workers,
    split: Split,
    root: str,
    places: Places,
    held_out: Callable[[list[Entry]], set[str]] = lambda _: set(),
    classes: Iterable[str] = (),
) -> None:
    """List the classes of `places` into `split`, but into listing.val those that `held_out` names of each class.

    Their labels are those of `classes`, of which `places` may lack some; without any they are all that there are.
    """
    listing.classes = sorted(classes or places, key=archive.raw)
    if len(listing.classes) == 1:
        (name,) = listing.classes
        inside = f"if {name!r} has the classes in it, give dir={root}/{name}; " if Path(root, name).is_dir() else ""
        raise UserError(f"{root}: one class only ({name!r}); {inside}a classifier needs at least 2")
    labels = [(label, name) for label, name in enumerate(listing.classes, 1) if name in places]
    empty, shared = [], list[set[str]]()
    with progress("classes listed", len(places), workers.ticks):
        listed = workers.map(scan, (places[name] for _, name in labels))
        for (label, name), contents in zip(labels, listed, strict=True):
            entries = listing.take(contents, split, f"{name}/")
            shared.append({entry.name.partition("/")[0] for entry in contents.entries if "/" in entry.name})
            names = held_out(entries)
            for entry in entries:
                (listing.val if entry.name in names else split).add(label, entry)
            if not entries:
                first = contents.refused[:1]
                empty.append(f"{name!r}" + "".join(f" ({file!r} was refused: {reason})" for file, reason in first))
    if empty:
        raise UserError(f"{root}: no image in {', '.join(empty[:5])}; fill or remove it")
    if same := sorted(set.intersection(*shared), key=archive.raw):
        listing.notes.append(
            f"every class in {root} has the folders {few(same)}, which count as parts of their class; if the classes are splits, "
            "give train= and val="
        )


def check_outside(listing: Listing, root: str) -> None:
    """Raise UserError if the folder to write lies in one that is read."""
    if listing.state.out.resolve().is_relative_to(os.path.realpath(root)):
        raise UserError(
            f"out={listing.state.target.name}: lies inside of {root}, which is read; give a folder elsewhere"
        )


def class_folders(listing: Listing, root: str, split: Split, follow: bool) -> Places:
    """The folders below `root`; images beside them are refused. Raises UserError for a link to a folder unless `follow`."""
    check_outside(listing, root)
    places, beside, others = Places(), Contents(), Counter[str]()
    for item in archive.scan(root):
        if is_junk(item.name):
            continue
        if item.is_symlink() and not Path(item.path).exists():
            beside.refused.append((item.name, archive.BROKEN))
            continue
        if item.is_symlink() and item.is_dir():
            if not follow:
                raise UserError(
                    f"{item.path}: a link to a folder; {archive.FOLLOW}, or put the folder itself in its place"
                )
            check_outside(listing, item.path)
        if item.is_dir() and Path(root).resolve().is_relative_to(os.path.realpath(item.path)):
            beside.refused.append((item.name, archive.LOOP))
        elif item.is_dir():
            name = normal(item.name)
            if name in places:
                raise UserError(
                    f"{root}: two folders are called {name!r}, in different Unicode forms; put their images into one"
                )
            places[name] = functools.partial(archive.folder, item.path, root, follow)
        elif item.name.lower().endswith(archive.ENDINGS):
            beside.refused.append((item.name, "lies in no class's folder"))
        else:
            others[Path(item.name).suffix] += 1
    if not places:
        images = f"{len(beside.refused):,} images but " if beside.refused else ""
        tars = f"; unpack its {others['.tar']:,} tars, or give the tar they came from" if others[".tar"] else ""
        raise UserError(f"{root}: {images}no folders of classes{tars}")
    folded = Counter(map(str.casefold, places))
    if alike := [name for name in places if folded[name.casefold()] > 1]:
        listing.notes.append(f"classes that differ by upper and lower case only: {few(alike)}")
    listing.take(beside, split)
    return places


def check_same_classes(
    listing: Listing, train: Collection[str], val: Collection[str], where: str, missing_classes: str
) -> None:
    """Raise UserError unless training and validation have the same classes; with "allow" validation may lack some, and a note
    says so."""
    train_only, val_only = "training but not in validation", "validation but not in training"
    for one, other, place in ((train, val, train_only), (val, train, val_only)):
        if missing := sorted(set(one) - set(other), key=archive.raw):
            line = f"{len(missing):,} class{'es' * (len(missing) > 1)} in {place}: {few(missing)}"
            if place == val_only or missing_classes != "allow":
                way_out = "; missing_classes=allow does without validation images of them" * (place == train_only)
                raise UserError(f"{where}: {line}{way_out}")
            listing.notes.append(line)


def few(names: Sequence[str]) -> str:
    """The first of some names, for an error."""
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def resolve(path: str, knob: str) -> str:
    """The path without links. Raises UserError naming the knob if nothing is there."""
    if not Path(path).exists():
        raise UserError(f"{knob}={path}: no such file or folder")
    return str(Path(path).resolve())
