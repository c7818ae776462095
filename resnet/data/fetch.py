"""Records read ahead of their use, whole blocks at once, by threads that are not TensorFlow's.

A plan says which records are read next and in what order. The threads read the blocks that have them, in the order of first
use, as long as all that is read and not yet taken fits into a limit. It is exceeded only for a record that is waited for and
would otherwise never be read.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from resnet import UserError, addresses, files
from resnet.data import diskcache, shards
from resnet.data.formats import packed
from resnet.data.shards import Index

THREADS = 32  # blocks that are read at once: most of the time of a request is waiting


class ReadsClosed(Exception):
    """A read began, or went on, after the reading had been closed."""


class Fetcher:
    """Reads the records of an index by blocks, of which `starts` has the first records. Safe to call from several threads.

    `limit` is in bytes. A plan has a record at most `repeats` times; it is read once. With a `cache` whole blocks are read, and
    stored there, but for those of expanded shards.
    """

    def __init__(
        self,
        records: Index,
        starts: NDArray[np.int64],
        limit: float,
        cache: diskcache.DiskCache | None = None,
        repeats: int = 1,
    ) -> None:
        self.records, self.starts, self.limit, self.cache, self.repeats = records, starts, limit, cache, repeats
        self.pending = np.zeros(len(records), np.int16)  # how often a record is planned and not yet taken
        self.ready: dict[int, list[bytes | UserError]] = {}
        self.spans: deque[Iterator[tuple[int, int]]] = deque()  # (first record, last record) to read, a plan each
        self.next: tuple[int, int] | None = None
        self.used = 0  # bytes that are being read, or are ready
        self.reading = 0  # threads that read
        self.awaited: list[int] = []  # records that calls wait for
        self.closed = threading.Event()
        lock = threading.RLock()
        self.changed = threading.Condition(lock)  # records are ready
        self.room = threading.Condition(lock)  # another block may be read
        self.threads: list[threading.Thread] = []

    def plan(self, images: NDArray[np.int64], groups: NDArray[np.int64] | None = None) -> None:
        """Read these records ahead, each of which is taken as often as it is there, in about this order.

        Neighbours of different `groups` (int64 [n]) are read apart, because they are used at different times.
        """
        if not len(images) or self.closed.is_set():
            return
        block = np.searchsorted(self.starts, images, "right") - 1
        if groups is not None:
            block = block + groups * len(self.starts)
        order = np.argsort(block, kind="stable")
        begins = np.flatnonzero(np.diff(block[order], prepend=-1))
        first, last = (part.reduceat(images[order], begins) for part in (np.minimum, np.maximum))
        by_use = np.argsort(np.minimum.reduceat(order, begins), kind="stable")
        with self.changed:
            np.add.at(self.pending, images, 1)
            self.spans.append((int(first[one]), int(last[one])) for one in by_use)
            if self.next is None:
                self.advance()
            while len(self.threads) < min(THREADS, len(by_use)):
                self.threads.append(threading.Thread(target=self.work, daemon=True, name="fetch"))
                self.threads[-1].start()
            self.room.notify_all()

    def take(self, number: int) -> bytes:
        """The data of a record, checked against its CRC; one that is not planned is read alone. Raises UserError, ReadsClosed."""
        with self.changed:
            planned = self.pending[number] > 0
            if planned:
                self.awaited.append(number)
                self.wake()
                self.changed.wait_for(lambda: number in self.ready or not self.pending[number] or self.closed.is_set())
                self.awaited.remove(number)
                planned = number in self.ready
            if self.closed.is_set():
                raise ReadsClosed
            if planned:
                data = self.pop(number)
        if not planned:
            return shards.read(self.records, number)
        if isinstance(data, UserError):
            raise data
        return data

    def drop(self, number: int) -> None:
        """A planned record is not needed."""
        with self.changed:
            if number in self.ready:
                self.pop(number)
            elif self.pending[number]:
                self.pending[number] -= 1
                self.changed.notify_all()

    def close(self) -> None:
        """Read no more. Threads in the middle of a request end with it."""
        with self.changed:
            self.closed.set()
            self.ready.clear()
            self.changed.notify_all()
            self.room.notify_all()

    # ------------------------------------------------------------------------------------------------------------ threads
    def work(self) -> None:
        """What a thread does."""
        while True:
            with self.changed:
                self.room.wait_for(lambda: self.closed.is_set() or self.may_read())
                if self.closed.is_set():
                    return
                assert self.next
                first, last = self.next
                self.advance()
                self.used += self.size(first, last)
                self.reading += 1
                self.wake()
            parts = self.read(first, last)
            with self.changed:
                self.reading -= 1
                self.used -= self.size(first, last)
                for number, data in () if self.closed.is_set() else parts:
                    missing = int(self.pending[number]) - len(self.ready.get(number, ()))
                    for _ in range(min(self.repeats, missing)):  # the same bytes
                        self.ready.setdefault(number, []).append(data)
                        self.used += int(self.records.length[number])
                self.changed.notify_all()
                self.wake()

    def wake(self) -> None:
        """Have one more thread read, if it may; the caller holds the lock. One, because 32 would be woken a record."""
        if self.may_read():
            self.room.notify()

    def may_read(self) -> bool:
        if self.next is None:
            return False
        if self.used + self.size(*self.next) <= self.limit:
            return True
        return not self.reading and (not self.used or any(number not in self.ready for number in self.awaited))

    def advance(self) -> None:
        """Go to the next span; the caller holds the lock."""
        self.next = None
        while self.spans and self.next is None:
            self.next = next(self.spans[0], None)
            if self.next is None:
                self.spans.popleft()

    def size(self, first: int, last: int) -> int:
        return self.end(last) - int(self.records.offset[first])

    def end(self, number: int) -> int:
        return int(self.records.offset[number] + self.records.length[number]) + self.records.tail

    def pop(self, number: int) -> bytes | UserError:
        """Take a record that is ready; the caller holds the lock."""
        copies = self.ready[number]
        data = copies.pop()
        if not copies:
            del self.ready[number]
        self.pending[number] -= 1
        self.used -= int(self.records.length[number])
        if number in self.awaited:  # by another call, which reads it alone
            self.changed.notify_all()
        self.wake()
        return data

    def read(self, first: int, last: int) -> list[tuple[int, bytes | UserError]]:
        """(number, data or error) of neighbouring records of one shard, by one read."""
        numbers = range(first, last + 1)
        path = self.path(first)
        try:
            cache = None if packed.is_expanded(path) else self.cache
            parts = self.through(cache, numbers) if cache else self.fetch(numbers)
        except Exception as error:  # a thread that ends here would leave those that wait for its records
            fault = error if isinstance(error, UserError) else UserError(f"{path}: cannot be read ({error})")
            return [(number, fault) for number in numbers]
        return [(number, self.alone(number) if data is None else data) for number, data in parts.items()]

    def through(self, cache: diskcache.DiskCache, numbers: range) -> dict[int, bytes | None]:
        """As fetch(), of the cache if their block is there; else the whole block is fetched, and stored if it is sound."""
        block = int(np.searchsorted(self.starts, numbers[0], "right"))
        whole = range(int(self.starts[block - 1]), int(self.starts[block]))
        begin, size = int(self.records.offset[whole[0]]), self.size(whole[0], whole[-1])
        version = self.records.versions[self.records.file[whole[0]]]
        name = diskcache.name_of(self.path(whole[0]), version, begin, size)
        first = int(self.records.offset[numbers[0]])
        stored = cache.read(name, size, first - begin, self.end(numbers[-1]) - begin)
        if stored is not None:
            parts = self.records_of(stored, numbers)
            if None not in parts.values():
                return parts
        data = self.bytes_of(whole)
        parts = self.records_of(data, whole)
        if None not in parts.values():
            cache.store(name, data)
        return {number: parts[number] for number in numbers}

    def fetch(self, numbers: range) -> dict[int, bytes | None]:
        """The data of neighbouring records by one read; None where the CRC is wrong. Raises UserError."""
        return self.records_of(self.bytes_of(numbers), numbers)

    def bytes_of(self, numbers: range) -> bytes:
        """The bytes from the first record's data to the last one's CRC; fewer of a local file that is too short."""
        start, path = int(self.records.offset[numbers[0]]), self.path(numbers[0])
        end = self.end(numbers[-1])
        with files.explain_io_errors(path, start):
            if addresses.is_remote(path):
                return addresses.read_exactly(path, start, end, self.closed)
            with shards.open_shard(path) as shard:
                shard.seek(start)
                data: bytes = shard.read(end - start)
                return data

    def records_of(self, data: bytes, numbers: range) -> dict[int, bytes | None]:
        """The data of each record in what bytes_of() has read; None where the CRC is wrong."""
        block, start = memoryview(data), int(self.records.offset[numbers[0]])
        parts: dict[int, bytes | None] = {}
        for number in numbers:
            at, end = int(self.records.offset[number]) - start, self.end(number) - start
            record, tail = bytes(block[at : end - self.records.tail]), bytes(block[end - self.records.tail : end])
            parts[number] = record if self.records.sound(number, record, tail) else None
        return parts

    def alone(self, number: int) -> bytes | UserError:
        """The data of a record that is read once more, because its CRC was wrong."""
        try:
            return shards.read(self.records, number)
        except UserError as error:
            return error

    def path(self, number: int) -> str:
        return self.records.files[self.records.file[number]]
