"""Tars of samples, as WebDataset writes them: neighbouring files `key.jpg` and `key.cls` are an image and its label.

The key of a sample is the name up to the first dot behind the last slash, the ending is the rest. An image has one of the
endings IMAGES; its label is the whole number in `key.cls`, or, without that, `label` in `key.json`. Other files of a sample are
not read. Nothing is ever unpacked, and no name becomes a path. A tar has no checksum of its contents.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import IO, NamedTuple

from resnet import files

IMAGES = ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "heic")
BLOCK = 512  # of a tar
MAX_IMAGE, MAX_LABEL = 1 << 30, 1 << 20  # bytes


class TarError(Exception):
    """The tar is damaged at byte `at`, or a sample that begins there has no label or no image; the message says how."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.at = at


class Sample(NamedTuple):
    """An image, where it lies, and its label."""

    offset: int
    image: bytes
    label: int


class Part(NamedTuple):
    """One file of a sample, named for people."""

    name: str
    start: int  # of its header
    offset: int
    data: bytes


def samples(file: IO[bytes], size: int) -> Iterator[Sample]:
    """The samples in an uncompressed tar of `size` bytes, which is read forwards. Raises TarError."""
    for key, members in groupby(members_of(file) if size else (), lambda member: split(member.name)[0]):
        parts = parts_of(members, file)
        label, image = label_of(parts), parts.get("image")
        start, name = min((part.start for part in parts.values()), default=0), files.escape(key)
        if image and label is None:
            raise TarError(start, f"{name} has no label: no {name}.cls, nor a {name}.json with label, is its neighbour")
        if label is not None and not image:
            raise TarError(start, f"{name} has a label and no neighbour with one of the endings {', '.join(IMAGES)}")
        if image and label is not None:
            yield Sample(image.offset, image.data, label)


def split(name: str) -> tuple[str, str]:
    """(key, ending in lower case) of a file's name."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def members_of(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The regular files in a tar, but for hidden ones. Raises TarError if it is damaged or has been cut off."""
    at = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
                at, tar.members = member.offset, []  # type: ignore[attr-defined]  # else it holds every header
                base = member.name.rpartition("/")[2]
                if member.isfile() and not base.startswith((".", "__")):
                    yield member
            at = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise TarError(at, f"no sound tar ({error})") from error
    file.seek(at)
    if file.read(BLOCK) != bytes(BLOCK):
        raise TarError(at, "the tar ends without its two empty blocks, so a part of it is missing or damaged")


def parts_of(members: Iterable[tarfile.TarInfo], file: IO[bytes]) -> dict[str, Part]:
    """The image, the cls and the json of a sample, as far as it has them. Raises TarError."""
    parts: dict[str, Part] = {}
    for member in members:
        ending, name = split(member.name)[1], files.escape(member.name)
        kind = "image" if ending in IMAGES else ending
        if kind not in ("image", "cls", "json"):
            continue
        if kind in parts:
            raise TarError(member.offset, f"{name}: the second {kind} of its sample, after {parts[kind].name}")
        if member.sparse is not None or member.size > (MAX_IMAGE if kind == "image" else MAX_LABEL):
            raise TarError(member.offset, f"{name}: of {member.size:,} bytes, or not stored in one piece")
        file.seek(member.offset_data)
        data = file.read(member.size)
        if len(data) < member.size:
            raise TarError(member.offset, f"{name}: {member.size - len(data):,} bytes of it are missing")
        parts[kind] = Part(name, member.offset, member.offset_data, data)
    return parts


def label_of(parts: dict[str, Part]) -> int | None:
    """The label of a sample, of its cls before its json. Raises TarError for what is no whole number."""
    if part := parts.get("cls"):
        if not re.fullmatch(rb"\s*-?\d{1,18}\s*", part.data):
            raise TarError(part.start, f"{part.name}: {part.data[:40]!r} where the whole number of a class must be")
        return int(part.data)
    if not (part := parts.get("json")) or "image" not in parts:
        return None
    try:
        content = files.parse_json(part.data)
    except ValueError as error:
        raise TarError(part.start, f"{part.name}: damaged ({error})") from error
    label = content.get("label") if isinstance(content, dict) else None
    if label is not None and type(label) is not int:
        raise TarError(part.start, f"{part.name}: label {str(label)[:40]!r} where the whole number of a class must be")
    return label
