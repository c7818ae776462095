"""Records by number, from disk or from memory, and what happens to one that cannot be read."""

from __future__ import annotations

import threading

from resnet import UserError
from resnet.config.data import Cache, OnCorrupt, Records
from resnet.data import shards


class Reader:
    """Reads the records of one index. Safe to call from several threads.

    With data.on_corrupt=skip the next good record replaces a corrupt one, so that batches stay full, steps keep their
    numbers and every rank computes the same; `corrupt` has the error of each corrupt record by number.
    """

    def __init__(self, records: shards.Index, settings: Records) -> None:
        self.records, self.settings = records, settings
        self.corrupt: dict[int, str] = {}
        self.cache: dict[int, bytes] | None = {} if settings.cache is Cache.encoded else None
        self.lock = threading.Lock()

    def __call__(self, number: int) -> bytes:
        """The data of a record, or of its replacement. Raises UserError naming file and byte."""
        for step in range(len(self.records)):
            place = (number + step) % len(self.records)
            if place in self.corrupt:
                continue
            if self.cache is not None and place in self.cache:
                return self.cache[place]
            try:
                data = shards.read(self.records, place)
            except UserError as error:
                if self.settings.on_corrupt is OnCorrupt.stop:
                    raise
                self.skip(place, error)
                continue
            if self.cache is not None:
                self.cache[place] = data
            return data
        raise UserError(f"data.dir={self.settings.dir}: no record can be read; prepare the shards again")

    def skip(self, number: int, error: UserError) -> None:
        """Remember a corrupt record. Raises UserError when there are more than data.max_corrupt."""
        with self.lock:
            self.corrupt[number] = str(error)
            count = len(self.corrupt)
        if count > self.settings.max_corrupt:
            raise UserError(
                f"data.max_corrupt={self.settings.max_corrupt}: {count} records could not be read, the last: {error}"
            ) from error
