"""Which images there are, of which class, for training or for validation.

Classes are numbered from 1 in the order of their names' bytes. A listing stands on disk, ordered by class and file name,
so that millions of images need no memory; nothing in it depends on the order in which a file system names its files.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from resnet import UserError
from resnet.prepare import archive
from resnet.prepare.archive import Entry, Found
from resnet.prepare.bar import Bar
from resnet.prepare.workers import Workers, tick


class Rows:
    """Rows of JSON in a file that is read where needed; in memory, eight bytes a row."""

    def __init__(self, path: Path) -> None:
        self.path, self.places, self.hash = path, array("q", [0]), hashlib.sha256()
        self.file = path.open("w+b")

    def add(self, row: Sequence[object]) -> None:
        """One more row, at the end."""
        line = json.dumps(row).encode() + b"\n"
        self.hash.update(line)
        self.places.append(self.places[-1] + self.file.write(line))

    def __len__(self) -> int:
        return len(self.places) - 1

    def __getitem__(self, number: int) -> list[object]:
        self.file.flush()
        first, end = self.places[number : number + 2]
        row: list[object] = json.loads(os.pread(self.file.fileno(), end - first, first))
        return row


class Image(NamedTuple):
    """One image of a listing; `label` counts from 1."""

    label: int
    entry: Entry


class Split:
    """The images for training, or for validation, by class and file name. People are told `prefix` + name."""

    def __init__(self, path: Path) -> None:
        self.rows, self.classes, self.jpeg_bytes, self.prefix = Rows(path), Counter[int](), 0, ""

    def add(self, label: int, entry: Entry) -> None:
        """One more image; by rising label, and name within it."""
        self.rows.add((label, *entry))
        self.classes[label] += 1
        self.jpeg_bytes += entry.size if entry.name.lower().endswith((".jpg", ".jpeg")) else 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Image:
        label, *entry = self.rows[number]
        return Image(label, Entry(*entry))  # type: ignore[arg-type]


@dataclass
class Listing:
    """Everything known before the first image is read. `refused` holds rows of (name, reason)."""

    folder: Path  # for its files
    classes: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)  # class -> what people call it
    ignored: Counter[str] = field(default_factory=Counter)  # files of other endings, by ending
    notes: list[str] = field(default_factory=list)  # lines for the user

    def __post_init__(self) -> None:
        self.train, self.val = Split(self.folder / "train.jsonl"), Split(self.folder / "val.jsonl")
        self.refused = Rows(self.folder / "refused.jsonl")

    def take(self, found: Found, split: Split, below: str = "") -> list[Entry]:
        """The entries of `found`, named `below` + name; what else it holds is noted down."""
        self.ignored += found.ignored
        for name, reason in found.refused:
            self.refused.add((split.prefix + below + name, reason))
        return [entry._replace(name=below + entry.name) for entry in found.entries]

    def digest(self) -> str:
        """Changes when the listing does."""
        hashes = [rows.hash.hexdigest() for rows in (self.train.rows, self.val.rows, self.refused)]
        return hashlib.sha256(json.dumps([self.classes, self.texts, hashes]).encode()).hexdigest()


class Place(NamedTuple):
    """Where the images of one class lie: a folder, or a tar at `offset` of a file."""

    name: str
    path: str
    top: str = ""  # the tree that a folder's links must not leave
    offset: int = 0
    size: int = -1  # of a tar


def scan(place: Place) -> Found:
    """What lies there; a job for a worker."""
    tick()
    if place.size < 0:
        return archive.folder(place.path, place.top)
    return archive.tar(place.path, place.offset, place.size)


def classify(
    listing: Listing,
    workers: Workers,
    split: Split,
    root: str,
    places: list[Place],
    held: Callable[[list[Entry]], set[str]] | None = None,
) -> None:
    """List the classes of `places` into `split`, but into listing.val those that `held` names of each class."""
    if len(places) == 1:
        raise UserError(f"{root}: one class only ({places[0].name!r}); a classifier needs at least 2")
    places.sort(key=lambda place: archive.raw(place.name))
    listing.classes, empty = [place.name for place in places], []
    with Bar("classes listed", len(places), workers.ticks):
        for number, found in enumerate(workers.map(scan, places), 1):
            entries = listing.take(found, split, f"{listing.classes[number - 1]}/")
            names = held(entries) if held else set()
            for entry in entries:
                (listing.val if entry.name in names else split).add(number, entry)
            if not entries:
                first = f" ({found.refused[0][0]!r} was refused: {found.refused[0][1]})" if found.refused else ""
                empty.append(f"{listing.classes[number - 1]!r}{first}")
    if empty:
        raise UserError(f"{root}: no image ({', '.join(archive.ENDINGS)}) in {', '.join(empty[:5])}; fill or remove it")


def class_folders(listing: Listing, root: str, split: Split) -> list[Place]:
    """The folders below `root`; images beside them are refused. Raises UserError for a link in place of a folder."""
    if listing.folder.resolve().is_relative_to(root):
        raise UserError(f"out={listing.folder.parent}: lies inside of {root}, which is read; give a folder elsewhere")
    places, beside, others = [], Found(), Counter[str]()
    for item in archive.scanned(root):
        if item.name.startswith("."):
            continue
        if item.is_symlink() and item.is_dir():
            raise UserError(f"{item.path}: a link to a folder, which is not followed; put the folder itself there")
        if item.is_dir():
            places.append(Place(item.name, item.path, root))
        elif item.name.lower().endswith(archive.ENDINGS):
            beside.refused.append((item.name, "lies in no class's folder"))
        else:
            others[Path(item.name).suffix] += 1
    if not places:
        told = f"{len(beside.refused):,} images but " if beside.refused else ""
        tars = f"; unpack its {others['.tar']:,} tars, or give the tar they came from" if others[".tar"] else ""
        raise UserError(f"{root}: {told}no folders of classes{tars}")
    listing.take(beside, split)
    return places


def agreed(train: Sequence[str], val: Sequence[str], where: str) -> None:
    """Training and validation must know the same classes."""
    for one, other, said in (
        (train, val, "training but not in validation"),
        (val, train, "validation but not in training"),
    ):
        if missing := sorted(set(one) - set(other), key=archive.raw):
            raise UserError(f"{where}: {len(missing):,} class{'es' * (len(missing) > 1)} in {said}: {few(missing)}")


def few(names: Sequence[str]) -> str:
    """The first of some names, for an error."""
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def real(path: str, knob: str) -> str:
    """The path without links. Raises UserError naming the knob if nothing is there."""
    if not Path(path).exists():
        raise UserError(f"{knob}={path}: no such file or folder")
    return str(Path(path).resolve())
