"""Blocks of shards on the local disk, shared by the ranks of a host and by several runs; the least recently used go.

A block is a file. Its name is a hash of the shard's address, size and ETag (or time) and of the block's range, so a shard that
has changed has other blocks. It is written aside and renamed, and nothing waits until it is on the disk: whoever reads it checks
its size and the CRC of every record, and fetches a torn or damaged one again. What a killed process was writing is
locked no more, and the next start removes it.

No process knows what the others write. Each counts what lies there whenever it has written a SHARE of the limit, and then
leaves a SHARE free; so n processes exceed the limit by at most n - 1 SHAREs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from resnet import UserError, addresses, files, home
from resnet.config.data import Cache, Records

SHARE = 1 / 32
KEEP = 1 - 4 * SHARE  # of the limit, where some blocks must go
RETRY_S = 60.0  # after a block that could not be written
FULL = (errno.ENOSPC, errno.EDQUOT)
BLOCK, PART = ".block", ".part"


def open_cache(settings: Records) -> DiskCache | None:
    """The cache of data.cache=disk, None without one. Raises UserError for a folder that cannot be used, or gains nothing."""
    if settings.cache is not Cache.disk:
        return None
    folder = Path(settings.cache_dir) if settings.cache_dir else home.cache() / "blocks"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
        if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not a folder that may be written to")
    except OSError as error:
        if error.errno not in FULL:
            reason = error.strerror or error
            raise UserError(f"data.cache_dir={folder}: cannot be used ({reason}); give another folder") from error
    with contextlib.suppress(OSError):
        if not addresses.is_remote(settings.dir) and Path(settings.shards).stat().st_dev == folder.stat().st_dev:
            raise UserError(
                f"data.cache_dir={folder}: on the same disk as data.dir={settings.dir}, so nothing is gained; give a folder of "
                "a faster disk, or use data.cache=off"
            )
    return DiskCache(folder, settings.cache_gb * 1e9)


def name_of(path: str, version: str, start: int, size: int) -> str:
    """The name of a block: `size` bytes from `start` on of the shard at `path`, whose content has this `version`."""
    return hashlib.sha256(json.dumps([path, version, start, size]).encode()).hexdigest()[:40]


class DiskCache:
    """Blocks by their names, at most about `limit` bytes. Safe to use from several threads and processes. Nothing here raises."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self.lock, self.counting = threading.Lock(), threading.Lock()
        self.allowance = -1.0  # bytes to write until the next count; the first is due at once
        self.retry_at, self.reported = 0.0, False

    def path(self, name: str) -> Path:
        return self.folder / name[:2] / (name[2:] + BLOCK)

    def read(self, name: str, size: int, start: int, end: int) -> bytes | None:
        """The bytes from `start` up to `end` of a block of `size` bytes; None if it is not there, or not whole."""
        self.make_room(0)
        with contextlib.suppress(OSError, UserError), open(self.path(name), "rb", 0, opener=files.regular) as file:
            handle = file.fileno()
            if os.fstat(handle).st_size == size:
                data = os.pread(handle, end - start, start)
                with contextlib.suppress(OSError):
                    os.utime(handle)  # used now
                return data if len(data) == end - start else None
        return None

    def store(self, name: str, data: bytes) -> None:
        """Write a block if there is room. The first time that there is none on the disk, a line says so."""
        if len(data) > self.limit or time.monotonic() < self.retry_at:
            return
        self.make_room(len(data))
        try:
            self.write(self.path(name), data)
        except FileNotFoundError:  # somebody removes the folder
            return
        except (OSError, UserError) as error:
            self.retry_at = time.monotonic() + RETRY_S
            if not self.reported:
                self.reported = True
                reason = getattr(error, "strerror", None) or error
                line = f"data.cache_dir={self.folder}: {reason}; the run goes on, and what it fetches is not stored"
                print(line, file=sys.stderr, flush=True)

    def write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}{PART}")
        try:
            with open(part, "wb", 0, opener=files.regular) as file:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left = memoryview(data)
                while left:
                    left = left[os.write(file.fileno(), left) :]
                part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    # --------------------------------------------------------------------------------------------------------------- room
    def make_room(self, size: int) -> None:
        """Count `size` bytes that are about to be written, and all that lies there once that is due, in one thread alone."""
        with self.lock:
            self.allowance -= size
            due = self.allowance < 0
        if due and self.counting.acquire(blocking=False):
            try:
                self.remove_oldest(size)
                with self.lock:
                    self.allowance = SHARE * self.limit - size
            finally:
                self.counting.release()

    def remove_oldest(self, size: int) -> None:
        """Remove what killed processes left, and the least recently used blocks if there is little room for `size` more bytes."""
        blocks = []
        for entry in self.entries():
            with contextlib.suppress(OSError):
                if entry.name.endswith(PART):
                    remove_unlocked(entry.path)
                else:
                    status = entry.stat(follow_symlinks=False)
                    blocks.append((status.st_mtime_ns, max(status.st_size, 512 * status.st_blocks), entry.path))
        total = size + sum(one for _, one, _ in blocks)
        if total <= (1 - SHARE) * self.limit:
            return
        for _, one, path in sorted(blocks):
            if total <= KEEP * self.limit:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108  a hundred thousand Paths take a second
            total -= one

    def entries(self) -> Iterator[os.DirEntry[str]]:
        """Our files: nothing else that lies in the folder is looked at."""
        for number in range(256):
            with contextlib.suppress(OSError), os.scandir(self.folder / f"{number:02x}") as entries:
                yield from (entry for entry in entries if entry.name.endswith((BLOCK, PART)))


def remove_unlocked(path: str) -> None:
    """Remove a file unless its writer, which has it locked, is alive."""
    with open(path, "rb", 0, opener=files.regular) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)  # noqa: PTH108
