"""The contents of a tar or a folder, from headers and directories alone; and the bytes of one entry, read in place.

Nothing is ever unpacked, and no name in a tar becomes a path. What must not be an entry (links, devices, names that climb
out) is refused with a reason; what is not an image is counted by its ending.
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

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# Folders and files that systems and tools leave everywhere, beside those whose name begins with a dot.
JUNK = {
    *("@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "@sharebin"),  # of NAS (Synology, QNAP)
    *("$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),  # of Windows
    *("__macosx", "icon\r", "lost+found", "__pycache__"),
}
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
    """Entries with an image's ending, by name; (name, reason) of those refused; how many of other endings there are."""

    entries: list[Entry] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def collect(members: Iterable[tuple[Entry, str | None]]) -> Contents:
    """Entries in the order of their names' bytes, each name once. A member is (entry, reason to refuse it)."""
    contents, images, double = Contents(), dict[str, Entry](), []
    for entry, reason in members:
        hidden = any(map(is_junk, entry.name.split("/")))
        ending = Path(entry.name).suffix.lower()
        if reason:
            contents.refused.append((entry.name, reason))
        elif hidden or ending not in ENDINGS:
            contents.ignored["hidden" if hidden else ending or "no ending"] += 1
        elif entry.name in images:
            double.append((entry.name, "a second file of this name"))
        else:
            images[entry.name] = entry
    contents.entries = sorted(images.values(), key=lambda entry: raw(entry.name))
    contents.refused = sorted(contents.refused + double, key=lambda pair: raw(pair[0]))
    return contents


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or what a system leaves everywhere: neither image nor class."""
    return name.startswith(".") or name.lower() in JUNK


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
def folder(root: str, top: str) -> Contents:
    """Every file below `root`, named from there. A link counts if it leads to a file below `top`; folders' links do not."""
    members, pending = list[tuple[Entry, str | None]](), [""]
    inside = os.path.realpath(top)
    while pending:
        below = pending.pop()
        for item in scan(f"{root}/{below}"):
            name = f"{below}{item.name}"
            if item.is_dir(follow_symlinks=False):
                if not is_junk(item.name):
                    pending.append(f"{name}/")
            else:
                reason = link_refusal(item, inside)
                members.append((Entry(name, item.path, 0, 0 if reason else item.stat().st_size), reason))
    return collect(members)


def scan(path: str) -> list[os.DirEntry[str]]:
    """A folder's entries by name. Raises UserError."""
    try:
        with os.scandir(path) as items:
            return sorted(items, key=lambda item: raw(item.name))
    except OSError as error:
        raise UserError(f"{path}: cannot be listed ({error.strerror})") from error


def link_refusal(item: os.DirEntry[str], inside: str) -> str | None:
    """Why a folder's entry that is not a folder is refused, if it is."""
    try:
        if item.is_symlink() and not Path(os.path.realpath(item.path)).is_relative_to(inside):
            return "a link that leads out of the tree"
        if item.is_dir():
            return "a link to a folder"
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
