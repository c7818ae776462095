"""The names of a network's outputs, and whether data are of these classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resnet import UserError, files
from resnet.config.data import Data, Records
from resnet.data.source import Source, class_names
from resnet.files import normal


def order(own: Sequence[str], other: Sequence[str]) -> list[int] | None:
    """For each class of `other` its place in `own`, by name in whatever Unicode form; None if the classes differ."""
    ours, theirs = ([normal(name) for name in names] for names in (own, other))
    if ours == theirs:
        return list(range(len(ours)))
    places = {name: place for place, name in enumerate(ours)}
    unique = len(places) == len(ours)
    return [places[name] for name in theirs] if unique and sorted(ours) == sorted(theirs) else None


def difference(own: Sequence[str], other: Sequence[str]) -> str:
    """The first difference between a network's classes and those of data, for people."""
    for number, (ours, theirs) in enumerate(zip(own, other, strict=False), 1):
        if normal(ours) != normal(theirs):
            return f"class {number} of the network is {ours!r}, and of the data {theirs!r}"
    return f"the network has {len(own):,} classes, the data {len(other):,}"


def of_data(settings: Data) -> list[str] | None:
    """The names of the classes beside the shards, if there is one for each output."""
    names = class_names(settings)
    return names if names and len(names) == settings.classes else None


def of_folder(folder: Path, outputs: int) -> list[str] | None:
    """The names in the folder of a run or beside weights, if there are `outputs` of them."""
    path = folder / files.CLASSES
    names = files.read_classes(files.read_text(str(path)), path) if path.is_file() else []
    return names if len(names) == outputs else None


def check_run(out: Path, settings: Data) -> None:
    """Raise UserError if the run in `out` is of other classes than the data, or of the same in another order."""
    own, names = of_folder(out, settings.classes), of_data(settings)
    if own and names and order(own, names) != list(range(len(own))):
        assert isinstance(settings, Records)
        raise UserError(
            f"data.dir={settings.dir}: not the classes of the run in {out} ({difference(own, names)}); put its own shards "
            "back, or train another network in another out=, with init= that folder to begin with its weights"
        )


def write(out: Path, settings: Data) -> None:
    """Write the names into the folder of a run, unless they are there. Raises UserError as check_run()."""
    check_run(out, settings)
    names = of_data(settings)
    if names and not (out / files.CLASSES).exists():
        files.write_classes(out, names)


def notes(source: Source) -> list[str]:
    """Lines about shards without a record, and about data that name not as many classes as the network has outputs."""
    halves = [half for half in (source.train, source.val) if half]
    lines = [
        f"{len(empty):,} of {len(half.files):,} shards have no record, first {empty[0]}"
        for half in halves
        if (empty := half.empty())
    ]
    return source.notes + lines + names_notes(source.settings)


def names_notes(settings: Data) -> list[str]:
    if not isinstance(settings, Records) or of_data(settings):
        return []
    names, place = files.classes_beside(settings.shards)
    if names is None:
        return [f"no {place}: {settings.classes:,} outputs without names, as data.classes says"]
    return [
        f"{place} has {len(names):,} classes, and the network {settings.classes:,} outputs: data.classes={len(names)}, or "
        "data=folder, makes them equal"
    ]
