"""Shards compared with their manifest: one line for every fault, with the file and the byte."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import google_crc32c

from resnet import UserError, addresses, files, remote, shell
from resnet.data import images, indexes, manifest, shards
from resnet.data.formats import foreign, packed, tars, tfexample
from resnet.data.formats.labels import names_of, unnamed
from resnet.prepare import state
from resnet.prepare.workers import Workers, progress, tick

AHEAD = 8 << 20  # bytes that are asked for at once of a shard at an address


@dataclass
class Contents:
    """What a shard holds, and its faults as (byte, fault)."""

    images: int = 0
    bytes: int = 0
    crc: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # of the records' data


def check(folder: str, deep: bool, processes: int | None) -> None:
    """Read every shard below a folder or an address and print the faults. Raises UserError if there are any."""
    if addresses.is_remote(folder):
        remote.check_complete(folder, "check=")
    content = manifest.read(folder)
    if content is None:
        if Path(folder, state.FOLDER, state.FILE).exists():
            raise UserError(f"check={folder}: half done; the command that began it resumes it")
        train, val = shards.find(folder, shell.command("resnet.prepare", "source=...", f"out={folder}"), "check")
        paths = packed.expanded(shards.stamps([*train, *val]))
        expected: dict[str, dict[str, Any]] = {path: {} for path in paths}
        print(f"{folder}: no {manifest.NAME} here, so the records are checked and nothing is known of their number")
    else:
        expected = {f"{folder}/{shard['file']}": shard for shard in manifest.shards_of(content)}
    classes = int(content["classes"]) if content else None
    labels, count, faults, known = Counter[int](), 0, 0, {}
    try:
        known = indexes.read(folder, content)
    except indexes.Unfit as reason:
        print(reason)
        faults += 1
    job = functools.partial(read, classes=classes, deep=deep)
    with Workers(processes) as workers, progress("shards checked", len(expected), workers.ticks):
        for path, contents in zip(expected, workers.map(job, expected.items()), strict=True):
            for at, fault in contents.faults:
                print(f"{path}: byte {at:,}: {fault}", flush=True)
                faults += 1
            if path in known and not contents.faults and known[path].lengths.tolist() != contents.lengths:
                print(f"{folder}/{indexes.NAME}: not the lengths of the records in {path}")
                faults += 1
            labels += contents.labels
            count += contents.images
    for line in folder_faults(folder, content, expected, None if faults else labels) if content else ():
        print(line)
        faults += 1
    names = names_of(folder) if content is None and labels else None
    if names and (fault := unnamed(names, min(labels), max(labels))):
        print(f"{folder}/{files.LABELS}: {fault}")
        faults += 1
    if faults:
        raise UserError(
            f"{folder}: {faults:,} fault{'s' * (faults > 1)} in {len(expected):,} shards; copy or prepare them again"
        )
    if content is None and not known and labels:
        print(f"{folder}: labels {min(labels)} to {max(labels)}")
    print(f"{folder}: {count:,} records in {len(expected):,} shards, without a fault{', every image decoded' * deep}")


def read(shard: tuple[str, dict[str, Any]], classes: int | None, deep: bool) -> Contents:
    """Read one shard, (path, its entry in the manifest or nothing); runs in a worker. None: unknown number of classes."""
    contents, (path, expected) = Contents(), shard
    try:
        with shards.open_shard(path, AHEAD) as file:
            size = shards.size_of(file)
            if foreign.is_tar(path):
                read_tar(file, size, contents, deep)
                size = 0
            for at, head, length in shards.frames(file, size):
                body = file.read(length + 4)
                contents.bytes = at + length + shards.FRAME
                contents.crc = google_crc32c.extend(google_crc32c.extend(contents.crc, head), body)
                if shards.masked_crc(body[:-4]) != int.from_bytes(body[-4:], "little"):
                    contents.faults.append((at, "corrupt record"))
                    continue
                contents.images += 1
                contents.lengths.append(length)
                if fault := record_fault(body[:-4], classes, deep, contents.labels):
                    contents.faults.append((at, fault))
    except shards.FrameError as error:
        contents.faults.append((error.at, f"{error}; what follows cannot be read"))
    except tars.TarError as error:
        contents.faults.append((error.at, f"{error}; what follows is not checked"))
    except OSError as error:
        contents.faults.append((contents.bytes, f"cannot be read ({error.strerror or error})"))
    values = {"images": contents.images, "bytes": contents.bytes, "crc32c": f"{contents.crc:08x}"}
    differences = [(name, value) for name, value in values.items() if expected and value != expected[name]]
    if differences and not contents.faults:
        name, value = differences[0]
        contents.faults.append((0, f"{name} {value} where {manifest.NAME} says {expected[name]}"))
    tick()
    return contents


def read_tar(file: IO[bytes], size: int, contents: Contents, deep: bool) -> None:
    """Read the samples of a tar, which has no checksums: only `deep` notices a damaged image. Raises tars.TarError."""
    for sample in tars.samples(file, size):
        contents.images += 1
        contents.labels[sample.label] += 1
        if sample.label < 0:
            contents.faults.append((sample.offset, f"label {sample.label} is below 0"))
        elif deep and (fault := image_fault(sample.image, None)):
            contents.faults.append((sample.offset, fault))


def record_fault(record: bytes, classes: int | None, deep: bool, labels: Counter[int]) -> str | None:
    """What is wrong with a record whose CRC is right, if anything. Its label is counted."""
    try:
        features = tfexample.decode(record)
        other = classes is None and tfexample.NAMES[1][0] in features
        label, encoded = (features[name] for name in reversed(tfexample.NAMES[other]))
    except (ValueError, KeyError) as error:
        return f"not a record of an image ({error})"
    if not isinstance(label, int) or not isinstance(encoded, bytes):
        return "not a record of an image (a feature of another type)"
    labels[label] += 1
    if classes is not None and not 1 <= label <= classes:
        return f"label {label} is not in 1..{classes}"
    if label < 0:
        return f"label {label} is below 0"
    sides = features.get("image/height"), features.get("image/width")
    unknown = classes is None and sides == (None, None)
    return image_fault(encoded, None if unknown else sides) if deep else None


def image_fault(encoded: bytes, sides: tuple[object, object] | None) -> str | None:
    """What is wrong with an image of which a record says that it has these sides (height, width), if anything."""
    try:
        picture = images.convert(encoded)
    except images.Broken as reason:
        return f"the image cannot be decoded ({reason})"
    if sides and picture.kind == "JPEG" and sides != (picture.height, picture.width):
        return f"the image is {picture.height} x {picture.width} and the record says {sides[0]!r} x {sides[1]!r}"
    return None


def folder_faults(
    folder: str, content: dict[str, Any], expected: dict[str, Any], labels: Counter[int] | None
) -> Iterator[str]:
    """Faults of the classes, and files that do not belong here. `labels` are counts, if known."""
    path, counts = f"{folder}/{files.CLASSES}", Counter[str]()
    for split in content["splits"].values():
        counts.update(split["classes"])
    try:
        names = files.read_classes(files.read_text(path), path)
        if sorted(names) != sorted(counts):
            yield f"{path}: not the classes of {manifest.NAME}"
        elif wrong := [name for label, name in enumerate(names, 1) if labels and labels[label] != counts[name]]:
            yield f"{path}: {len(wrong):,} classes have another number of images than {manifest.NAME} says, first {wrong[0]!r}"
    except (OSError, UserError) as error:
        yield str(error) if isinstance(error, UserError) else f"{path}: cannot be read ({error})"
    for place in sorted({path.rpartition("/")[0] for path in expected}):
        for stray in shards.listing(place, "*-of-*", "check"):
            if stray not in expected:
                yield f"{stray}: not a shard of {manifest.NAME}"
