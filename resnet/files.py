"""Paths, and files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from resnet import UserError

CLASSES = "classes.txt"

HERE = Path(__file__).resolve().parent


def tree(name: str) -> Path:
    """The folder of YAML files `name`: inside an installed package, beside it in a checkout."""
    return HERE / name if (HERE / name).is_dir() else HERE.parent / name


def absolute(path: str, base: Path) -> str:
    """`path` with ~ expanded and taken from `base`; a URL such as gs://bucket/folder stays as it is.

    ~nobody stays a name, as in a shell; Path.expanduser() would raise.
    """
    if "\0" in path:
        raise UserError(f"{path!r}: no path; it has a NUL in it")
    return path if "://" in path else os.path.normpath(base / os.path.expanduser(path))


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


def read_classes(text: str) -> list[str]:
    """The names in the text of a classes.txt."""
    return [unescape(line) for line in text.removesuffix("\n").split("\n")]


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
        with aside.open("wb") as file:
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
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a file, which is created."""
    with path.open("w") as file:  # the kernel unlocks it when the process dies
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fsync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def gfile() -> Any:
    """tf.io.gfile: imported for remote paths only."""
    import tensorflow as tf

    return tf.io.gfile


def is_remote(path: str) -> bool:
    """Whether a path is a URL, which only TensorFlow can read."""
    return "://" in path


def io_errors(path: str) -> tuple[type[Exception], ...]:
    """The errors of the file system of `path`; TensorFlow's are no OSError."""
    if not is_remote(path):
        return (OSError,)
    import tensorflow as tf

    return OSError, tf.errors.OpError


@contextlib.contextmanager
def explain_io_errors(path: str, at: int = 0) -> Iterator[None]:
    """Raise UserError for a file that cannot be read (at byte `at`)."""
    try:
        yield
    except io_errors(path) as error:
        raise UserError(
            f"{path}: cannot be read at byte {at} ({getattr(error, 'strerror', None) or error}); is it still there?"
        ) from error


def read_text(path: str) -> str:
    """A small UTF-8 file as it is. Raises what io_errors() lists, UserError for one that is no text."""
    try:
        with gfile().GFile(path) if is_remote(path) else open(path, encoding="utf-8") as file:
            return str(file.read())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); copy or write it again") from error
