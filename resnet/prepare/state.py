"""The state of a preparation: one SQLite file in <out>/.prepare, which is removed once manifest.json is there. Of
an address, <out> is a folder in the cache.

Each call lists the images anew and compares the digest of the list. Finished shards and rejected images stay, so that the
same command resumes after a kill at any moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from resnet import UserError, files
from resnet.data.shards import Shard
from resnet.prepare.archive import Entry, raw
from resnet.prepare.target import Target

FOLDER, FILE = ".prepare", "state.sqlite3"
# The lock of the first transaction is held until the file is closed: one process at a time. Names in `images` are bytes,
# which need not be UTF-8; those in `rejected` are escaped. Images that were refused before reading belong to shard ''.
TABLES = """
PRAGMA locking_mode = EXCLUSIVE;
BEGIN EXCLUSIVE;
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS images (split TEXT, number INTEGER, label INTEGER, name BLOB, path BLOB, offset INTEGER,
    size INTEGER, PRIMARY KEY (split, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shards (file TEXT PRIMARY KEY, images INTEGER, bytes INTEGER, crc32c TEXT, split TEXT,
    resized INTEGER, unreadable INTEGER);
CREATE TABLE IF NOT EXISTS lengths (shard TEXT PRIMARY KEY, lengths BLOB);
CREATE TABLE IF NOT EXISTS counts (shard TEXT, label INTEGER, kind TEXT, images INTEGER, PRIMARY KEY (shard, label, kind));
CREATE TABLE IF NOT EXISTS rejected (shard TEXT, name TEXT, reason TEXT);
CREATE INDEX IF NOT EXISTS rejected_of_shard ON rejected (shard);
COMMIT;
"""


@dataclass
class Written:
    """What became of the images of a shard."""

    counts: Counter[tuple[int, str]] = field(default_factory=Counter)  # images by label and by what they were
    resized: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)
    unreadable: int = 0  # of the rejected: those worth another try
    lengths: array[int] = field(default_factory=lambda: array("I"))  # bytes of each record's data


class Split:
    """The images for training, or for validation, by class and name. `prefix` + name is an image's name for people."""

    def __init__(self, db: sqlite3.Connection, name: str) -> None:
        self.db, self.name, self.prefix = db, name, ""
        self.classes, self.jpeg_bytes, self.hash = Counter[int](), 0, hashlib.sha256()

    def add(self, label: int, entry: Entry) -> None:
        """Append an image; labels rise, and names within a label."""
        row = (self.name, len(self), label, raw(entry.name), raw(entry.path), entry.offset, entry.size)
        self.db.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self.hash.update(json.dumps((label, *entry)).encode() + b"\n")
        self.classes[label] += 1
        self.jpeg_bytes += entry.size if entry.name.lower().endswith((".jpg", ".jpeg")) else 0

    def __len__(self) -> int:
        return self.classes.total()

    def __getitem__(self, number: int) -> tuple[int, Entry]:
        """(label from 1, entry) of an image."""
        query = "SELECT label, name, path, offset, size FROM images WHERE split = ? AND number = ?"
        label, *names, offset, size = self.db.execute(query, (self.name, number)).fetchone()
        name, path = (data.decode("utf-8", "surrogateescape") for data in names)
        return label, Entry(name, path, offset, size)


class State:
    """The state of a preparation. `settings` are those of the first call, empty before it; `out` is the target's folder."""

    def __init__(self, target: Target, db: sqlite3.Connection) -> None:
        self.target, self.out, self.db, self.is_finished = target, target.folder, db, False
        self.settings = {name: json.loads(value) for name, value in db.execute("SELECT name, value FROM settings")}

    def save_settings(self, settings: dict[str, Any]) -> None:
        """Record what the folder is made of, with the list of its images."""
        rows = [(name, json.dumps(value)) for name, value in settings.items()]
        with self.db:
            self.db.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)
        self.settings = settings

    def select(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self.db.execute(f"SELECT {query}", values).fetchall()

    def reject(self, shard: str, images: Sequence[tuple[str, str]]) -> None:
        """Record (name, reason) of images that cannot be used; the caller commits."""
        rows = [(shard, files.escape(name), files.escape(reason)) for name, reason in images]
        self.db.executemany("INSERT INTO rejected VALUES (?, ?, ?)", rows)

    def forget(self, shard: str) -> None:
        """Remove a shard and its images; the caller commits."""
        for table, column in (("shards", "file"), ("lengths", "shard"), ("counts", "shard"), ("rejected", "shard")):
            self.db.execute(f"DELETE FROM {table} WHERE {column} = ?", (shard,))

    def add_shard(self, shard: Shard, split: str, written: Written) -> None:
        row = (shard.file, shard.images, shard.bytes, shard.crc32c, split, written.resized, written.unreadable)
        counts = [(shard.file, *group, count) for group, count in written.counts.items()]
        with self.db:
            self.forget(shard.file)
            self.db.execute("INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            lengths = np.array(written.lengths, "<u4").tobytes()
            self.db.execute("INSERT INTO lengths VALUES (?, ?)", (shard.file, lengths))
            self.db.executemany("INSERT INTO counts VALUES (?, ?, ?, ?)", counts)
            self.reject(shard.file, written.rejected)

    def lengths(self, shard: str) -> bytes:
        """The lengths of the records of a finished shard, as little-endian uint32."""
        [(lengths,)] = self.select("lengths FROM lengths WHERE shard = ?", shard)
        return bytes(lengths)

    def finished(self) -> set[str]:
        """The finished shards, without those that are damaged by now or have images that are worth another try."""
        with self.db:
            query = "file, bytes, unreadable, lengths IS NULL FROM shards LEFT JOIN lengths ON shard = file"
            rows = self.select(query)
            sizes = self.target.sizes(row[0] for row in rows)
            for file, size, unreadable, unknown in rows:
                if unreadable or unknown or sizes.get(file) != size:
                    self.forget(file)
        return {file for (file,) in self.select("file FROM shards")}


@contextlib.contextmanager
def claim(target: Target) -> Iterator[State]:
    """Context: the state of a preparation, for this process alone. It is removed when it is not needed (any more)."""
    out = target.folder
    is_new = target.remote or not out.is_dir()
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / FILE, timeout=0)) as db:
        try:
            db.executescript(TABLES)
            state = State(target, db)
        except sqlite3.DatabaseError as error:
            message = f"{FOLDER}/{FILE} cannot be read ({error}); delete that folder, or give another"
            if "locked" in str(error):
                message = "another prepare is at work there; wait for it, or give another out="
            elif isinstance(error, sqlite3.OperationalError):
                raise
            raise UserError(f"out={target.name}: {message}") from error
        for part in (*folder.glob("*.part"), *out.glob(".*.part")):  # of processes that were killed
            part.unlink(missing_ok=True)
        try:
            yield state
        finally:
            if state.is_finished or not state.settings:
                shutil.rmtree(folder, ignore_errors=True)
                if is_new:
                    with contextlib.suppress(OSError):
                        out.rmdir()
