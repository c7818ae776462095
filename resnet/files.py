"""Paths, files that are read only if they are regular and not too large, and what is written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from resnet import UserError, addresses, home

CLASSES = "classes.txt"
LABELS = "label.labels.txt"  # of TensorFlow Datasets: line n is label n - 1
MAX_CLASSES, MAX_NAME = 100_000, 1000  # names in it, and characters of one; ImageNet-21k has 21,841
SMALL = 16 << 20  # bytes of a file that is read whole; a manifest of 1,152 shards and 1,000 classes has 0.2 MB
KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}

HERE = Path(__file__).resolve().parent


def tree(name: str) -> Path:
    """The folder of YAML files `name`: inside an installed package, beside it in a checkout."""
    return HERE / name if (HERE / name).is_dir() else HERE.parent / name


def absolute(path: str, base: Path) -> str:
    """`path` with ~ expanded and taken from `base`; a URL such as gs://bucket/folder stays as it is."""
    if "\0" in path:
        raise UserError(f"{path!r}: no path; it has a NUL in it")
    return path if addresses.is_remote(path) else os.path.normpath(base / home.expand(path))


def normal(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS writes decomposed ones, which look the same."""
    return unicodedata.normalize("NFC", name)


def escape(name: str) -> str:
    r"""A name on one line of UTF-8: a newline in it becomes \u000a, a backslash two."""
    # What would end a line, or break a column, in a text file; the sign that starts an escape; and bytes that are no UTF-8.
    unsafe = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\\\]"
    return re.sub(unsafe, lambda match: "\\\\" if match[0] == "\\" else f"\\u{ord(match[0]):04x}", name)


def unescape(line: str) -> str:
    """The name that escape() wrote as `line`."""
    return re.sub(r"\\(\\|u[0-9a-f]{4})", lambda match: "\\" if match[1] == "\\" else chr(int(match[1][1:], 16)), line)


def write_classes(folder: Path, classes: Iterable[str]) -> None:
    """One name a line: line n is label n of the shards, and the network's output n - 1."""
    write_text(folder / CLASSES, "".join(f"{escape(name)}\n" for name in classes))


def read_classes(text: str, path: object = CLASSES) -> list[str]:
    """The names in the text of a classes.txt. Raises UserError, with its `path`, for too many or too long ones."""
    lines = text.removesuffix("\n").split("\n", MAX_CLASSES)
    if len(lines) > MAX_CLASSES:
        raise UserError(
            f"{path}: more than {MAX_CLASSES:,} lines; give one name a class, and no more classes than that"
        )
    if long := next((number for number, line in enumerate(lines, 1) if len(line) > MAX_NAME), None):
        raise UserError(f"{path}: line {long} has more than {MAX_NAME:,} characters; give one name of a class a line")
    return [unescape(line) for line in lines]


def classes_beside(folder: str) -> tuple[list[str] | None, str]:
    """(names of the classes of shards in a folder, their file); (None, that of ours) without one. Raises UserError."""
    for name, parse in ((CLASSES, read_classes), (LABELS, read_labels)):
        path = f"{folder.rstrip('/')}/{name}"
        with contextlib.suppress(OSError):
            return parse(read_text(path), path), path
    return None, f"{folder.rstrip('/')}/{CLASSES}"


def read_labels(text: str, path: str) -> list[str]:
    """The names in the text of a label.labels.txt, where nothing is escaped. Raises UserError as read_classes()."""
    lines = [line.strip() for line in text.split("\n")]
    return read_classes("\n".join(line.replace("\\", "\\\\") for line in lines if line), path)


# ---------------------------------------------------------------------------------------------------------- opening files
def regular(path: str, flags: int) -> int:
    """An opener for open(): of a regular file that is no link. Nothing else is waited for, read or overwritten.

    Raises UserError for a link, FIFO, device or socket, and OSError for a folder.
    """
    return linked(path, flags | os.O_NOFOLLOW)


def linked(path: str, flags: int) -> int:
    """As regular(), but a link to a regular file is followed: data and weights may lie elsewhere."""
    try:
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(
                f"{path}: a link, through which nothing is read or written here; remove it, or put the file in its place"
            ) from error
        if error.errno == errno.ENXIO:
            raise UserError(f"{path}: a FIFO, device or socket, not a regular file; remove it") from error
        raise
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind == stat.S_IFREG:
        return handle
    os.close(handle)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise UserError(f"{path}: {KINDS.get(kind, 'something else')}, not a regular file; remove it")


def check_size(path: object, size: int, limit: int) -> None:
    """Raise UserError for a file of more than `limit` bytes."""
    if size > limit:
        raise UserError(f"{path}: more than {limit:,} bytes, so it is not what its name says; give another one")


def open_bytes(path: Path | str, limit: int, *, links: bool = False) -> IO[bytes]:
    """A regular file of at most `limit` bytes, to read. Raises UserError for anything else, OSError as open()."""
    file = open(path, "rb", opener=linked if links else regular)  # noqa: SIM115  closed by the caller
    try:
        check_size(path, os.fstat(file.fileno()).st_size, limit)
    except UserError:
        file.close()
        raise
    return file


def read_bytes(path: Path | str, limit: int = SMALL, *, links: bool = False) -> bytes:
    """The content of a file as open_bytes() opens it."""
    with open_bytes(path, limit, links=links) as file:
        content = file.read(limit + 1)
    check_size(path, len(content), limit)  # a file may grow, and those of /proc say 0
    return content


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run. Raises what read_bytes() and parse_json() raise."""
    return parse_json(read_bytes(path))


def parse_json(text: bytes | str) -> Any:
    """The content of a JSON text. Raises ValueError for damaged ones, too deep ones, and whole numbers beyond 64 bits."""
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("brackets nested too deeply") from error


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (number := int(digits)) < 2**63:
        raise ValueError(f"{digits[:20]}... is too large a number")
    return number


# ---------------------------------------------------------------------------------------------------------- writing files
def part_of(path: Path) -> Path:
    """Where this process writes what will be `path`: rundir.claim() and prepare remove it after a kill."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextlib.contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Raise UserError for a folder that cannot be written to."""
    try:
        yield
    except OSError as error:
        raise UserError(f"out={out}: cannot be written to ({error.strerror}); give another folder") from error


@contextlib.contextmanager
def atomic_write(path: Path, aside: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write, which gets its name when it is complete and on disk. Until then it is `aside`."""
    aside = aside or part_of(path)
    try:
        with open(aside, "wb", opener=regular) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def write_text(path: Path, text: str) -> Path:
    """Write a small UTF-8 file as atomic_write() does; its path."""
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


@contextlib.contextmanager
def atomic_dir(path: Path, replace: bool = False) -> Iterator[Path]:
    """A new folder to fill, which gets its name when everything in it is on disk. Its parents are made.

    Raises OSError if a folder that is not empty has the name by then, unless it is to `replace` that one.
    """
    aside, old = part_of(path), part_of(path.with_name(f"{path.name}.old"))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        for part in (*aside.rglob("*"), aside):
            fsync(part)
        if replace and path.exists():
            path.rename(old)
        try:
            aside.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    fsync(path.parent)


@contextlib.contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[IO[str]]:
    """Hold the lock on a file, which is created; print `waiting` if another process has it."""
    with open(path, "a", opener=regular) as file:  # the kernel unlocks it when the process dies
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                print(waiting, file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def fsync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explain_io_errors(path: str, at: int = 0) -> Iterator[None]:
    """Raise UserError for a file that cannot be read (at byte `at`)."""
    try:
        yield
    except OSError as error:
        denied = addresses.is_remote(path) and isinstance(error, PermissionError)
        way_out = "check the access" if denied else "is it still there?"
        raise UserError(f"{path}: cannot be read at byte {at} ({error.strerror or error}); {way_out}") from error


def read_content(path: str, limit: int = SMALL) -> bytes:
    """The content of a file, through links, or at an address. Raises OSError, UserError as read_bytes()."""
    if not addresses.is_remote(path):
        return read_bytes(path, limit, links=True)
    content = addresses.read(path, 0, limit + 1)
    check_size(path, len(content), limit)
    return content


def read_text(path: str) -> str:
    """A small UTF-8 file with plain ends of lines. Raises what read_content() raises."""
    content = read_content(path)
    try:
        return content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); copy or write it again") from error
