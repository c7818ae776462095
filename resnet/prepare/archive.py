"""The contents of a tar or a folder, from headers and directories alone; and the bytes of one entry, read in place.

Nothing is ever unpacked, and no name in a tar becomes a path. What must not be an entry (links, devices, names that climb
out) is refused with a reason; what is not an image, by its ending or its first bytes, is counted by its ending.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from resnet import UserError
from resnet.data import images
from resnet.photos import is_junk

ENDINGS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".heif",
)
NEEDS = {".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF"}  # the formats that not every machine decodes
TEXTS = (
    ".txt",
    ".xml",
    ".json",
    ".csv",
    ".tsv",
    ".md",
    ".yaml",
    ".yml",
    ".html",
    ".htm",
    ".log",
)  # beside images: notes
BLOCK = 512  # of a tar
BROKEN, LOOP, FOLLOW = "a broken link", "a link to a folder that it lies in", "links=follow reads it"
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class Entry(NamedTuple):
    """One file: `size` bytes at `offset` of `path`. `name` is its own, with / between folders."""

    name: str
    path: str
    offset: int
    size: int


@dataclass
class Contents:
    """Entries of images, by name; (name, reason) of those refused; how many of which endings are no images, or are by content."""

    entries: list[Entry] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    by_content: Counter[str] = field(default_factory=Counter)


def collect(members: Iterable[tuple[Entry, str | None]]) -> Contents:
    """Entries in the order of their names' bytes, each name once. A member is (entry, reason to refuse it)."""
    contents, taken, double = Contents(), dict[str, Entry](), []
    for entry, reason in members:
        hidden = any(map(is_junk, entry.name.split("/")))
        ending = Path(entry.name).suffix.lower()
        if reason:
            contents.refused.append((entry.name, reason))
            continue
        by_ending = ending in ENDINGS and images.decodes(NEEDS.get(ending, ""))
        if hidden or not (by_ending or is_image(entry, ending)):
            contents.ignored["hidden" if hidden else ending or "no ending"] += 1
            continue
        contents.by_content[ending or "no ending"] += not by_ending
        if entry.name in taken:
            double.append((entry.name, "a second file of this name"))
        else:
            taken[entry.name] = entry
    contents.by_content = +contents.by_content
    contents.entries = sorted(taken.values(), key=lambda entry: raw(entry.name))
    contents.refused = sorted(contents.refused + double, key=lambda pair: raw(pair[0]))
    return contents


def is_image(entry: Entry, ending: str) -> bool:
    """Whether a file of another ending begins as an image does; as a TIFF does not count, for a camera's raw files do."""
    if ending in TEXTS:
        return False
    try:
        form = images.form_of(read(entry._replace(size=min(entry.size, images.HEAD))))
    except Unreadable:
        return False
    return form not in ("", "TIFF") and images.decodes(form)


def raw(name: str) -> bytes:
    """The bytes of a name, on which every order and every record depends: the locale does not."""
    return name.encode("utf-8", "surrogateescape")


class Unreadable(Exception):
    """The bytes of an entry cannot be read; the message is the reason."""


def read(entry: Entry) -> bytes:
    """The bytes of an entry. Raises Unreadable."""
    try:
        with Path(entry.path).open("rb", buffering=0) as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from error
    if len(data) != entry.size:
        raise Unreadable(f"cannot be read: {len(data):,} bytes where {entry.size:,} were listed")
    return data


# ----------------------------------------------------------------------------------------------------------------- folders
def folder(root: str, top: str, follow: bool = False) -> Contents:
    """Every file below `root`, named from there. A link counts if it leads to a file below `top`; folders' links do not.

    With `follow` every link counts but those that are broken, or lead to a folder that they lie in.
    """
    members = list[tuple[Entry, str | None]]()
    pending = [("", {identity(top), identity(root)})]  # with the folders on the way
    inside = None if follow else os.path.realpath(top)
    while pending:
        below, parents = pending.pop()
        for item in scan(f"{root}/{below}"):
            name = f"{below}{item.name}"
            if not (leads_to_folder(item) if follow else item.is_dir(follow_symlinks=False)):
                reason = link_refusal(item, inside)
                members.append((Entry(name, item.path, 0, 0 if reason else item.stat().st_size), reason))
            elif not is_junk(item.name):
                own = identity(item.path)
                if own in parents:
                    members.append((Entry(name, item.path, 0, 0), LOOP))
                else:
                    pending.append((f"{name}/", {*parents, own}))
    return collect(members)


def leads_to_folder(item: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one. os.DirEntry.is_dir() raises OSError for a link to itself."""
    return Path(item.path).is_dir() if item.is_symlink() else item.is_dir()


def identity(path: str) -> tuple[int, int]:
    """What tells a folder from all others, by whatever links one gets there. Raises UserError."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return status.st_dev, status.st_ino


def scan(path: str) -> list[os.DirEntry[str]]:
    """A folder's entries by name. Raises UserError."""
    try:
        with os.scandir(path) as items:
            return sorted(items, key=lambda item: raw(item.name))
    except OSError as error:
        raise UserError(f"{path}: cannot be listed ({error.strerror})") from error


def link_refusal(item: os.DirEntry[str], inside: str | None) -> str | None:
    """Why a folder's entry that is not a folder is refused, if it is. Links may lead anywhere if `inside` is None."""
    try:
        if item.is_symlink() and not Path(item.path).exists():
            return BROKEN
        if inside and item.is_symlink() and not Path(os.path.realpath(item.path)).is_relative_to(inside):
            return f"a link that leads out of the tree ({FOLLOW})"
        if item.is_dir():
            return f"a link to a folder ({FOLLOW})"
        return None if stat.S_ISREG(item.stat().st_mode) else "not a regular file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


# -------------------------------------------------------------------------------------------------------------------- tars
def tar(path: str, offset: int = 0, size: int | None = None) -> Contents:
    """Every file of the tar at `offset` of `path`, `size` bytes long (None: to the end)."""
    return collect(members(path, offset, size))


def members(path: str, offset: int = 0, size: int | None = None) -> Iterator[tuple[Entry, str | None]]:
    """(entry, reason to refuse it) of a tar's members except folders, in its order.

    Raises UserError naming the file and the byte where it goes wrong.
    """
    with open_tar(path) as file:
        end = os.fstat(file.fileno()).st_size if size is None else offset + size
        inner = "" if size is None else f" (the tar inside it at byte {offset:,})"
        file.seek(offset)
        at = offset
        try:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  closed with its file
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # it would hold every one: a gigabyte per million
                if member.size < 0:
                    raise tarfile.ReadError("a negative size")  # which would seek back, for ever
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError("unexpected end of data")
                at = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if not member.isdir():
                    name = re.sub(r"^(\./)+", "", member.name)
                    yield Entry(name, path, member.offset_data, member.size), refusal(member)
            at = archive.offset
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            cut = "end of data" in str(error) or at >= end
            fault = f"cut short at byte {end:,}; download or copy it again" if cut else f"not a tar ({error})"
            raise UserError(f"{path}{inner}: {fault}") from error
        # tarfile takes a damaged header, or none, for the end; a complete tar ends with a block of zeros.
        file.seek(at)
        mark = file.read(min(BLOCK, max(0, end - at)))
        if mark != bytes(BLOCK):
            cut = len(mark) < BLOCK
            fault = f"cut short at byte {min(end, at + len(mark)):,}" if cut else f"damaged header at byte {at:,}"
            raise UserError(f"{path}{inner}: {fault}; download or copy it again")


@contextmanager
def open_tar(path: str) -> Iterator[IO[bytes]]:
    """A tar for reading, unless it is compressed or empty."""
    try:
        with Path(path).open("rb", buffering=0) as file:
            start = file.read(6)
            if not start:
                raise UserError(f"{path}: empty file; download or copy it again")
            if names := [name for magic, name in COMPRESSIONS.items() if start.startswith(magic)]:
                raise UserError(
                    f"{path}: compressed ({names[0]}); images are read in place, so unpack it to a plain tar"
                )
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def refusal(member: tarfile.TarInfo) -> str | None:
    """Why a tar's member is refused, if it is."""
    if member.issym() or member.islnk():
        return "a link"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    if member.name.startswith("/"):
        return "an absolute name"
    return "a name that climbs out of the archive" if ".." in Path(member.name).parts else None
