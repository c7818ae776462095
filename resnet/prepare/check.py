"""Shards held against their manifest: one line for every fault, with the file and the byte."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c

from resnet import UserError, files
from resnet.data import manifest, shards, tfexample
from resnet.prepare import images, journal
from resnet.prepare.bar import Bar
from resnet.prepare.workers import Workers, tick


@dataclass(frozen=True)
class Job:
    """One shard; `classes` is None where nothing tells how many there are."""

    path: str
    classes: int | None
    deep: bool


@dataclass
class Seen:
    """What a shard holds, and (byte, fault) for what is wrong with it."""

    images: int = 0
    size: int = 0
    crc: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)


def audit(folder: Path, deep: bool, processes: int) -> None:
    """Read every shard below `folder` and print what is wrong. Raises UserError if anything is."""
    made = manifest.read(folder)
    if made is None:
        if journal.settings(folder):
            raise UserError(f"check={folder}: half done; the command that began it goes on with it")
        told: dict[str, dict[str, Any]] = {path: {} for path in found(folder)}
        print(f"{folder}: no {manifest.NAME} here, so the records are checked and nothing is known of their number")
    else:
        told = {str(folder / shard["file"]): shard for shard in manifest.shards_of(made)}
    classes = int(made["classes"]) if made else None
    labels, counted, faults = Counter[int](), 0, 0
    with Workers(processes) as workers, Bar("shards checked", len(told), workers.ticks):
        for (path, shard), seen in zip(
            told.items(), workers.map(look, (Job(path, classes, deep) for path in told)), strict=True
        ):
            for at, fault in [*seen.faults, *differences(shard, seen)]:
                print(f"{path}: byte {at:,}: {fault}", flush=True)
                faults += 1
            labels += seen.labels
            counted += seen.images
    for line in whole(folder, made, told, None if faults else labels) if made else ():
        print(line)
        faults += 1
    if faults:
        raise UserError(
            f"{folder}: {faults:,} fault{'s' * (faults > 1)} in {len(told):,} shards; copy or prepare them again"
        )
    print(f"{folder}: {counted:,} records in {len(told):,} shards, without a fault{', every image decoded' * deep}")


def found(folder: Path) -> list[str]:
    """The shards of a folder that no manifest tells of."""
    try:
        train, val = shards.find(str(folder), f"python -m resnet.prepare source=... out={folder}")
    except UserError as error:
        raise UserError(str(error).replace("data.dir=", "check=", 1)) from None
    return [*train, *val]


def look(job: Job) -> Seen:
    """Read one shard; for a worker."""
    seen = Seen()
    try:
        for at, record in records(job.path, seen):
            seen.images += 1
            if fault := examined(record, job, seen):
                seen.faults.append((at, fault))
    except OSError as error:
        seen.faults.append((seen.size, f"cannot be read ({error.strerror})"))
    tick()
    return seen


def records(path: str, seen: Seen) -> Iterator[tuple[int, bytes]]:
    """(offset, data) of every sound record of a shard, and its faults into `seen`; ends where the frames do not add up."""
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while seen.size < size:
            at, head = seen.size, file.read(12)
            length = int.from_bytes(head[:8], "little")
            if len(head) < 12 or shards.masked_crc(head[:8]) != int.from_bytes(head[8:], "little"):
                seen.faults.append((at, "corrupt record header; what follows cannot be read"))
                return
            if at + length + shards.FRAME > size:
                seen.faults.append((at, f"truncated record, {at + length + shards.FRAME - size:,} bytes are missing"))
                return
            body = file.read(length + 4)
            seen.size, seen.crc = (
                at + length + shards.FRAME,
                google_crc32c.extend(google_crc32c.extend(seen.crc, head), body),
            )
            if shards.masked_crc(body[:-4]) == int.from_bytes(body[-4:], "little"):
                yield at, body[:-4]
            else:
                seen.faults.append((at, "corrupt record"))


def examined(record: bytes, job: Job, seen: Seen) -> str | None:
    """What is wrong with a record whose CRC is right, if anything."""
    try:
        features = tfexample.decode(record)
        label, encoded = features["image/class/label"], features["image/encoded"]
    except (ValueError, KeyError) as error:
        return f"not a record of an image ({error})"
    if not isinstance(label, int) or not isinstance(encoded, bytes):
        return "not a record of an image (a feature of another type)"
    seen.labels[label] += 1
    if label < 1 or (job.classes is not None and label > job.classes):
        return f"label {label} is not in 1..{job.classes or ''}"
    if not job.deep:
        return None
    try:
        picture = images.convert(encoded)
    except images.Broken as reason:
        return f"the image cannot be decoded ({reason})"
    sides = features.get("image/height"), features.get("image/width")
    if picture.kind == "JPEG" and sides != (picture.height, picture.width):
        return f"the image is {picture.height} x {picture.width} and the record says {sides[0]!r} x {sides[1]!r}"
    return None


def differences(told: dict[str, Any], seen: Seen) -> Iterator[tuple[int, str]]:
    """How a shard without a fault of its own differs from what the manifest tells of it; `told` may be empty."""
    if seen.faults or not told:
        return
    for name, value in (("images", seen.images), ("bytes", seen.size), ("crc32c", f"{seen.crc:08x}")):
        if value != told[name]:
            yield 0, f"{name} {value} where {manifest.NAME} says {told[name]}"
            return


def whole(folder: Path, made: dict[str, Any], told: dict[str, Any], labels: Counter[int] | None) -> Iterator[str]:
    """Faults of no single shard: of the classes, and of files that do not belong here. `labels` are counts, if known."""
    path = folder / files.CLASSES
    counts: Counter[str] = Counter()
    for split in made["splits"].values():
        counts.update(split["classes"])
    try:
        names = files.read_classes(path.read_text("utf-8"))
        if sorted(names) != sorted(counts):
            yield f"{path}: not the classes of {manifest.NAME}"
        elif wrong := [name for label, name in enumerate(names, 1) if labels and labels[label] != counts[name]]:
            yield f"{path}: {len(wrong):,} classes have another number of images than {manifest.NAME} says, first {wrong[0]!r}"
    except (OSError, UnicodeDecodeError) as error:
        yield f"{path}: cannot be read ({error})"
    for place in sorted({Path(path).parent for path in told}):
        for stray in sorted(place.glob("*-of-*")) if place.is_dir() else ():
            if str(stray) not in told:
                yield f"{stray}: not a shard of {manifest.NAME}"
