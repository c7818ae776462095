"""Records by number, from disk or from memory, and what happens to one that cannot be read."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from resnet import UserError
from resnet.config.data import Cache, OnCorrupt, Records
from resnet.data import blocks, images, shards
from resnet.data.diskcache import DiskCache
from resnet.data.fetch import Fetcher, ReadsClosed
from resnet.data.formats import tfexample

WAY_OUT = "prepare the shards again, or set data.on_corrupt=skip"
QUIET_S = 0.2  # without a call, until no more is expected


class ReadsInFlight:
    """The calls in which TensorFlow's threads read records, so that the last has ended before the interpreter does.

    One that comes later waits for the interpreter, which waits for it, and the process never ends (tensorflow#21277).
    """

    def __init__(self) -> None:
        self.count, self.closed, self.newest = 0, False, 0.0
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Context of one such call. Raises ReadsClosed after close()."""
        with self.changed:
            self.newest = time.monotonic()
            self.check()
            self.count += 1
        try:
            yield
        finally:
            with self.changed:
                self.count -= 1
                self.changed.notify_all()

    def check(self) -> None:
        """Raise ReadsClosed after close(). Called between two records."""
        if self.closed:
            raise ReadsClosed

    def close(self, wait_s: float) -> bool:
        """Refuse further calls, and wait at most `wait_s` seconds for those in flight; returns whether all have ended.

        TensorFlow goes on calling until its buffers are full of refusals, some ten milliseconds; then it is quiet.
        """
        with self.changed:
            self.closed = True
            idle = self.changed.wait_for(lambda: self.count == 0, wait_s)
        while idle and time.monotonic() - self.newest < QUIET_S:
            time.sleep(QUIET_S / 4)
        return idle


class Reader:
    """Reads the records of one index. Safe to call from several threads.

    With data.on_corrupt=skip the next good record replaces a corrupt one, so that batches stay full, steps keep their
    numbers and every rank computes the same; `corrupt` has the error of each corrupt record by number.
    """

    def __init__(self, records: shards.Index, settings: Records, disk: DiskCache | None = None) -> None:
        self.records, self.settings, self.disk = records, settings, disk
        self.corrupt: dict[int, str] = {}
        self.plain = bytearray(len(records))  # by number: 1 where the record's image is known to need no conversion
        self.cache: dict[int, bytes] | None = {} if settings.cache is Cache.encoded else None
        self.lock = threading.Lock()
        self.fetcher: Fetcher | None = None

    def fetch_ahead(
        self, by_blocks: bool, repeats: int = 1
    ) -> Callable[[NDArray[np.int64], NDArray[np.int64]], None] | None:
        """A function that has records, of streams with these numbers, read ahead in the order in which they are used.

        None where each is read when it is used. Else neighbours of a stream are read together if `by_blocks`; a plan has a record
        at most `repeats` times. What was planned before is no longer read.
        """
        if not self.settings.fetches:
            return None
        self.close()
        count = len(self.records)
        starts = blocks.cut(self.records, self.settings.block_mb) if by_blocks else np.arange(count + 1)
        fetcher = self.fetcher = Fetcher(self.records, starts, self.settings.fetch_mb * 1e6, self.disk, repeats)

        def plan(numbers: NDArray[np.int64], streams: NDArray[np.int64]) -> None:
            cache = self.cache or {}
            new = np.array([int(number) not in cache for number in numbers]) if cache else slice(None)
            fetcher.plan(numbers[new], streams[new])

        return plan

    def close(self) -> None:
        """Read nothing ahead any more: each record when it is used."""
        if self.fetcher:
            self.fetcher.close()
            self.fetcher = None

    def __call__(self, number: int) -> bytes:
        """The data of a record, or of its replacement. Raises UserError naming file and byte."""
        fetcher = self.fetcher
        for step in range(len(self.records)):
            place = (number + step) % len(self.records)
            if place in self.corrupt:
                if fetcher:
                    fetcher.drop(place)
                continue
            if self.cache is not None and place in self.cache:
                if fetcher:
                    fetcher.drop(place)
                return self.cache[place]
            try:
                record = fetcher.take(place) if fetcher else shards.read(self.records, place)
                data = self.decodable(place, self.example(place, record))
            except shards.Damaged as error:  # not what cannot be read: a network that fails must not cost images
                if self.settings.on_corrupt is OnCorrupt.stop:
                    raise
                self.skip(place, error)
                continue
            if self.cache is not None:
                self.cache[place] = data
            return data
        raise UserError(f"data.dir={self.settings.dir}: no record can be read; prepare the shards again")

    def example(self, number: int, record: bytes) -> bytes:
        """What is stored as record `number`, as a record of ours. Raises shards.Damaged."""
        if self.records.label is None:
            return record
        try:
            encoded = record if self.records.crc is not None else tfexample.sample(record)[0]
            label = int(self.records.label[number])
            return tfexample.encode({"image/encoded": bytes(encoded), "image/class/label": label})
        except ValueError as error:
            raise shards.Damaged(f"{self.records.place(number)}: no record of an image ({error}); {WAY_OUT}") from error

    def decodable(self, number: int, record: bytes) -> bytes:
        """`record` with an image that TensorFlow decodes to what preparation makes of it. Raises UserError for one without.

        With data.on_corrupt=skip, all of an image is decoded before its first use, because TensorFlow decodes only a crop, and
        what is left out must not depend on the crop.
        """
        if self.plain[number]:
            return record
        whole = self.settings.on_corrupt is OnCorrupt.skip
        try:
            encoded = tfexample.encoded_image(record)
            if whole or encoded is None:
                features = tfexample.decode(record)
                encoded = memoryview(features["image/encoded"])  # type: ignore[arg-type]
                if not isinstance(features["image/class/label"], int):
                    raise TypeError
            converted = images.readable(encoded, whole)
            if converted is not None:
                return tfexample.encode({**tfexample.decode(record), "image/encoded": converted})
        except (images.Broken, KeyError, TypeError, ValueError) as error:
            reason = (
                f"no image that can be decoded ({error})"
                if isinstance(error, images.Broken)
                else "no record of an image"
            )
            raise shards.Damaged(f"{self.records.place(number)}: {reason}; {WAY_OUT}") from error
        self.plain[number] = 1
        return record

    def skip(self, number: int, error: UserError) -> None:
        """Remember a corrupt record. Raises UserError when there are more than data.max_corrupt."""
        with self.lock:
            self.corrupt[number] = str(error)
            count = len(self.corrupt)
        if count > self.settings.max_corrupt:
            raise UserError(
                f"data.max_corrupt={self.settings.max_corrupt}: {count} records could not be read, the last: {error}"
            ) from error
