"""Files at addresses such as s3://bucket/shards, through fsspec: listed, read by ranges, and written.

fsspec and its packages look for credentials as they always do: environment, configuration files, roles. An address never
has any: one with a user, password or query is refused, so that none gets into a log, a configuration or an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from resnet import UserError, ranges, uris
from resnet.retries import Unreachable, retried

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "az", "abfs": "az", "abfss": "az"}
THREADS = 32  # that ask for the sizes of files, where a listing has none
TIMEOUT_S = 60.0  # of one request
AHEAD = 1 << 16  # bytes that Ranges asks for at once: one record of a photograph, or many small ones
SLOW_S = 4.0  # more for each megabyte that is sent
CONNECTIONS = 64
# What a listing may say that changes with the content, in the words of s3fs, adlfs, HTTP, local files, gcsfs.
VERSIONS = (
    "ETag",
    "etag",
    "Content-MD5",
    "LastModified",
    "Last-Modified",
    "mtime",
    "updated",
    "last_modified",
    "created",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"max_pool_connections": CONNECTIONS, "connect_timeout": 10, "read_timeout": TIMEOUT_S}},
    "http": {"client_kwargs": {"trust_env": True}},  # the proxies of the environment
}


def is_remote(path: str) -> bool:
    """Whether a path is an address."""
    return "://" in path


def check(address: str, knob: str = "") -> None:
    """Raise UserError, without showing anything secret, for an address with a user, password or query in it."""
    shown = uris.redact(address).partition("?")[0]
    if uris.USERINFO.search(address) or "?" in address:
        raise UserError(
            f"{knob}{shown}: an address with a user, password or ?query, which logs would show; give credentials by the "
            "environment or the configuration of its service, and write @ of a name as %40"
        )


def system(address: str, knob: str = "") -> tuple[Any, str]:
    """(fsspec's file system, path in it) of an address. Raises UserError for what this installation cannot read.

    `knob`, such as "data.dir=", begins the error.
    """
    check(address, knob)
    scheme = address.partition("://")[0]
    try:
        import fsspec

        return fsspec.core.url_to_fs(address, **OPTIONS.get({"https": "http", "s3a": "s3"}.get(scheme, scheme), {}))
    except ImportError as error:
        package = f"-e '.[{EXTRAS[scheme]}]'" if scheme in EXTRAS else error.name or "its package"
        raise UserError(f"{knob}{address}: a package is not installed; pip install {package}") from error
    except ValueError as error:
        raise UserError(
            f"{knob}{address}: no address that can be read ({error}); give s3://, gs://, https:// or a path"
        ) from error


def request(address: str, method: str, stop: threading.Event | None = None, **words: Any) -> Any:
    """What the file system's `method` returns for an address, in TIMEOUT_S seconds a try. Raises what retried() raises."""

    def once() -> Any:
        filesystem, path = system(address)
        return answer(filesystem, method, path, timeout=TIMEOUT_S, **words)

    return retried(address, once, stop)


def answer(filesystem: Any, method: str, *places: str | bytes, timeout: float, **words: Any) -> Any:
    """What a method of a file system returns. One that is asynchronous has `timeout` seconds for it."""
    if not filesystem.async_impl:
        return getattr(filesystem, method)(*places, **words)
    import fsspec

    return fsspec.asyn.sync(filesystem.loop, getattr(filesystem, f"_{method}"), *places, **words, timeout=timeout)


# ----------------------------------------------------------------------------------------------------------------- files
def read(address: str, start: int = 0, end: int | None = None, stop: threading.Event | None = None) -> bytes:
    """The bytes from `start` up to `end` of a file, or to its end. Fewer than wanted, if the file is shorter.

    Raises what retried() raises.
    """
    if end == start:
        return b""
    data: bytes = request(address, "cat_file", stop, start=start or None, end=end)
    if end is not None and len(data) > end - start:
        raise Unreachable("the server sends more than the range that it is asked for")
    return data


def read_exactly(address: str, start: int, end: int, stop: threading.Event | None = None) -> bytes:
    """As read(); an answer that is too short is asked for again, and is Unreachable if it stays so."""

    def once() -> bytes:
        data = ranges.read(address, start, end, TIMEOUT_S) if ranges.serves(address) else None
        if data is None:
            data = read(address, start, end, stop)
        if len(data) < end - start:
            raise EOFError(f"{len(data):,} of {end - start:,} bytes")
        return data

    return retried(address, once, stop)


def listing(folder: str) -> dict[str, dict[str, Any]]:
    """The files and folders in a folder by name, as fsspec describes them; none where nothing lies. Raises as retried()."""
    try:
        entries = request(f"{folder}/" if folder.startswith("http") else folder, "ls", detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {str(entry["name"]).rstrip("/").rpartition("/")[2]: entry for entry in entries}


def stamps(addresses: Sequence[str]) -> list[tuple[int, str]]:
    """(size in bytes, what changes with the content: ETag or time) of each file. Raises what retried() raises."""
    entries: dict[str, dict[str, Any]] = {}
    for folder in {address.rpartition("/")[0] for address in addresses}:
        with contextlib.suppress(PermissionError):  # a server that lists nothing is asked for each file
            entries |= {f"{folder}/{name}": entry for name, entry in listing(folder).items()}
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(stamp, addresses, map(entries.get, addresses)))


def stamp(address: str, entry: dict[str, Any] | None = None) -> tuple[int, str]:
    """As stamps(), of one file, of which a listing may have an entry."""
    if entry is None or entry.get("size") is None:
        entry = request(address, "info")
    if entry["type"] == "directory":
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if entry["size"] is None:
        raise Unreachable("the server does not say how large the file is")
    return int(entry["size"]), str(next((entry[name] for name in VERSIONS if entry.get(name)), ""))


class Ranges:
    """A file at an address, to read from front to back by ranges of at least `ahead` bytes."""

    def __init__(self, address: str, ahead: int = AHEAD) -> None:
        self.address, self.ahead, self.at, self.start, self.data = address, ahead, 0, 0, b""

    def __enter__(self) -> Ranges:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seek(self, at: int) -> None:
        self.at = at

    def tell(self) -> int:
        return self.at

    def read(self, count: int) -> bytes:
        if not self.start <= self.at <= self.at + count <= self.start + len(self.data):
            self.start, self.data = self.at, read(self.address, self.at, self.at + max(count, self.ahead))
        self.at += count
        first = self.at - count - self.start
        return self.data[first : first + count]


# --------------------------------------------------------------------------------------------------------------- writing
def upload(path: Path, address: str, stop: threading.Event | None = None) -> None:
    """Copy a file of this machine to an address. Raises what retried() raises."""
    size = path.stat().st_size

    def once() -> None:
        filesystem, place = system(address)
        answer(filesystem, "put_file", str(path), place, timeout=TIMEOUT_S + SLOW_S * size / 1e6)
        arrived = answer(filesystem, "info", place, timeout=TIMEOUT_S)["size"]
        if arrived != size:
            raise EOFError(f"{arrived} of {size:,} bytes arrived")

    retried(address, once, stop)


def create(address: str, data: bytes) -> None:
    """Write a small file that is not there yet. Raises FileExistsError if it is, and what retried() raises."""

    def once() -> None:
        filesystem, place = system(address)
        answer(filesystem, "pipe_file", place, data, timeout=TIMEOUT_S, mode="create")

    retried(address, once)


def delete(address: str) -> None:
    """Remove a file, if it is there. Raises what retried() raises."""
    with contextlib.suppress(FileNotFoundError):
        request(address, "rm_file")


def forget_listings(address: str) -> None:
    """What others wrote by now is listed too: fsspec's packages remember what a folder had."""
    system(address)[0].invalidate_cache()
