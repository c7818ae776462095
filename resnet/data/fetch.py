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
from resnet.data import shards
from resnet.data.shards import Index

THREADS = 32  # blocks that are read at once: most of the time of a request is waiting
FRAME_END = 4  # bytes behind a record's data: its CRC


class ReadsClosed(Exception):
    """A read began, or went on, after the reading had been closed."""


class Fetcher:
    """Reads the records of an index by blocks, of which `starts` has the first records. Safe to call from several threads.

    `limit` is in bytes.
    """

    def __init__(self, records: Index, starts: NDArray[np.int64], limit: float) -> None:
        self.records, self.starts, self.limit = records, starts, limit
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
        """Read these records ahead, each of which is taken once, in about this order.

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
            self.pending[images] += 1
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
                    if self.pending[number] > len(self.ready.get(number, ())):
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
        return int(self.records.offset[number] + self.records.length[number]) + FRAME_END

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
        start = int(self.records.offset[first])
        path = self.records.files[self.records.file[first]]
        numbers = range(first, last + 1)
        try:
            with files.explain_io_errors(path, start):
                if addresses.is_remote(path):
                    data = addresses.read_exactly(path, start, self.end(last), self.closed)
                else:
                    with shards.open_shard(path) as shard:
                        shard.seek(start)
                        data = shard.read(self.end(last) - start)
        except Exception as error:  # a thread that ends here would leave those that wait for its records
            fault = error if isinstance(error, UserError) else UserError(f"{path}: cannot be read ({error})")
            return [(number, fault) for number in numbers]
        return [(number, self.checked(memoryview(data), number, start)) for number in numbers]

    def checked(self, block: memoryview, number: int, start: int) -> bytes | UserError:
        """The data of a record in a block that begins at byte `start`; read once more, alone, if its CRC is wrong."""
        at, end = int(self.records.offset[number]) - start, self.end(number) - start
        data = bytes(block[at : end - FRAME_END])
        if len(block) >= end and shards.masked_crc(data) == int.from_bytes(block[end - FRAME_END : end], "little"):
            return data
        try:
            return shards.read(self.records, number)
        except UserError as error:
            return error
