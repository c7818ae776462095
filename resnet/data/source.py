"""The data set of a run: its numbers of images and the index of their records. Does not need TensorFlow."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet import UserError, addresses, files, photos, remote, shell
from resnet.config.data import Cache, Data, Digits, Fashion, Folder, OnCorrupt, Records, Synthetic
from resnet.data import digits, diskcache, indexes, manifest, shards
from resnet.data.formats import foreign, idx, labels
from resnet.data.reader import Reader, ReadsInFlight


@dataclass
class Source:
    """An open data set. The indexes and readers are None for synthetic images."""

    settings: Data
    train_images: int
    eval_images: int
    train: shards.Index | None = None
    val: shards.Index | None = None
    train_reader: Reader | None = None
    val_reader: Reader | None = None
    error: UserError | None = None  # of a reading thread; TensorFlow raises an error of its own with only its text
    reads: ReadsInFlight = field(default_factory=ReadsInFlight)
    notes: list[str] = field(default_factory=list)  # lines for the log

    def evaluation_share(self, images: int, rank: int, ranks: int) -> NDArray[np.int64]:
        """The numbers of those of the first `images` evaluation images that `rank` of `ranks` reads.

        Neighbours, where they are read together, so that no block is read by every rank; else image i is of rank i % ranks.
        """
        if isinstance(self.settings, Records) and self.settings.fetches:
            return np.arange(images * rank // ranks, images * (rank + 1) // ranks, dtype=np.int64)
        return np.arange(rank, images, ranks, dtype=np.int64)

    def skipped(self, images: NDArray[np.int64]) -> int:
        """How many of these evaluation images were skipped because they are corrupt."""
        return int(np.isin(images, list(self.val_reader.corrupt)).sum()) if self.val_reader else 0

    def corrupt(self) -> list[str]:
        """The error of each record that data.on_corrupt=skip has skipped."""
        readers = (self.train_reader, self.val_reader)
        return [error for reader in readers if reader for error in list(reader.corrupt.values())]


def open_source(settings: Data) -> Source:
    """Index the images of `settings`; the digits and fashion are written first. Raises UserError if there are none."""
    match settings:
        case Synthetic():
            return Source(settings, settings.train_images, settings.eval_images)
        case Records():
            folder, is_remote = settings.shards, addresses.is_remote(settings.dir)
            if isinstance(settings, Folder):
                restore(settings)
            if isinstance(settings, Digits) and not is_remote:
                digits.write(settings.dir)
            if isinstance(settings, Fashion) and not is_remote:
                idx.write_fashion(settings.dir)
            words = [f"source={settings.name}", "dir=IMAGES", f"out={folder}"]
            command = shell.command("resnet.prepare", *words)
            if is_remote:
                addresses.system(folder, "data.dir=")
                remote.check_complete(folder, "data.dir=")
            content = manifest_of(folder)
            known = indexes.load(folder, content)
            halves = shards.find(folder, command, known=known)
            if not content and not known:
                return open_foreign(settings, *(foreign.index(paths) for paths in halves))
            if settings.label_offset not in (None, 1):
                fault = f"the shards in {folder} are of this suite, so labels begin at 1; set data.label_offset=null"
                raise UserError(f"data.label_offset={settings.label_offset}: {fault}")
            train, val = (indexes.index(paths, known) for paths in halves)
            check_counts(folder, content, train, val)
            return read_by(settings, train, val)
    raise AssertionError(settings)


def restore(settings: Folder) -> None:
    """Make the shards of a run's photographs, if it has some, unless they are there."""
    if settings.listing:
        photos.restore(settings.photographs, settings.listing)


def open_foreign(settings: Records, *halves: shards.Index) -> Source:
    """The source of other people's shards. Raises UserError for unclear labels, and for a damaged image, unless it is to skip."""
    first = labels.first(settings, halves)
    source = read_by(settings, *(labels.from_one(half, first) for half in halves))
    source.notes.append(f"{settings.dir}: shards of another program; label {first} is the first class")
    for half, reader in zip(halves, (source.train_reader, source.val_reader), strict=True):
        unreadable = np.flatnonzero(half.label == foreign.UNREADABLE)
        if len(unreadable) and reader and settings.on_corrupt is OnCorrupt.stop:
            reader(int(unreadable[0]))  # raises the error of this record
    return source


def read_by(settings: Records, train: shards.Index, val: shards.Index) -> Source:
    if settings.cache is Cache.encoded:
        check_memory(settings, int(train.length.sum() + val.length.sum()))
    disk = diskcache.open_cache(settings)
    readers = Reader(train, settings, disk), Reader(val, settings, disk)
    return Source(settings, len(train), len(val), train, val, *readers)


def manifest_of(folder: str) -> dict[str, Any] | None:
    """The content of the manifest beside the shards, None if there is none. Raises UserError if it is damaged."""
    text = beside(folder, manifest.NAME)
    return None if text is None else manifest.parse(text, f"{folder}/{manifest.NAME}")


def check_counts(folder: str, content: dict[str, Any] | None, *halves: shards.Index) -> None:
    """Compare the numbers of records, and the classes, with the manifest, if there is one. Raises UserError.

    Nothing else detects a shard that was truncated between two records.
    """
    if content is None:
        return
    names = beside(folder, files.CLASSES)
    expected = {f"{folder.rstrip('/')}/{shard['file']}": shard["images"] for shard in manifest.shards_of(content)}
    for half in halves:
        for file, count in zip(half.files, np.bincount(half.file, minlength=len(half.files)), strict=True):
            if expected.get(file) != count:
                claim = f"says {expected[file]}" if file in expected else "does not name it"
                raise UserError(
                    f"{file}: {count} records, and {manifest.NAME} {claim}; copy or prepare this shard again"
                )
    if names is not None and sorted(files.read_classes(names)) != sorted(content["splits"]["train"]["classes"]):
        raise UserError(f"{folder}/{files.CLASSES}: not the classes of {manifest.NAME}; copy it again")


def beside(folder: str, name: str) -> str | None:
    """The text of a small file in the folder of the shards, None if there is none. Raises UserError if it is not UTF-8."""
    path = f"{folder}/{name}"
    try:
        return files.read_text(path)
    except OSError:
        return None


def described(images: Source) -> dict[str, Any]:
    """The fields of MLflow's dataset input. The digest is that of the manifest, if the shards have one."""
    settings = images.settings
    folder = settings.dir if isinstance(settings, Records) else ""
    sizes = {"training images": images.train_images, "evaluation images": images.eval_images}
    counts = {**sizes, "classes": settings.classes}
    known = beside(settings.shards, manifest.NAME) if isinstance(settings, Records) else None
    digest = hashlib.sha256((known or f"{settings.name} {counts}").encode()).hexdigest()[:32]
    return {"name": settings.name, "digest": digest, "source": folder or settings.name, "profile": counts}


def class_names(settings: Data) -> list[str] | None:
    """The names of the network's outputs, of the file beside the shards that has them; None if there is none."""
    return files.classes_beside(settings.shards)[0] if isinstance(settings, Records) else None


def check_memory(settings: Records, needed: int) -> None:
    """Raise UserError if a cache of `needed` bytes does not fit into nine tenths of the free memory."""
    import psutil

    free = psutil.virtual_memory().available
    if needed > 0.9 * free:
        smaller = "data.cache=encoded or data.cache=off" if settings.cache is Cache.decoded else "data.cache=off"
        raise UserError(
            f"data.cache={settings.cache.name}: needs {needed / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free; "
            f"use {smaller}, or prepare smaller images (resize=)"
        )
