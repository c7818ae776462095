"""Records by number, from disk or from memory, and what happens to one that cannot be read."""

from __future__ import annotations

import threading

from resnet import UserError
from resnet.config.data import Cache, OnCorrupt, Records
from resnet.data import shards


class Reader:
    """Reads one index for as long as a run takes. Safe to call from several threads.

    With data.on_corrupt=skip a corrupt record's place is taken by the next good one of its shards, so that batches stay
    full, steps stay counted and every rank goes on alike; `corrupt` keeps what was wrong with it.
    """

    def __init__(self, records: shards.Index, settings: Records) -> None:
        self.records, self.settings = records, settings
        self.corrupt: dict[int, str] = {}
        self.kept: dict[int, bytes] | None = {} if settings.cache is Cache.encoded else None
        self.lock = threading.Lock()

    def whole(self, number: int) -> bool:
        """Whether a record that was asked for could be read."""
        return number not in self.corrupt

    def __call__(self, number: int) -> bytes:
        """The data of a record, or of the one in its place. Raises UserError naming file and byte."""
        for step in range(len(self.records)):
            place = (number + step) % len(self.records)
            if place in self.corrupt:
                continue
            if self.kept is not None and place in self.kept:
                return self.kept[place]
            try:
                data = shards.read(self.records, place)
            except UserError as error:
                if self.settings.on_corrupt is OnCorrupt.stop:
                    raise
                self.pass_over(place, error)
                continue
            if self.kept is not None:
                self.kept[place] = data
            return data
        raise UserError(f"data.dir={self.settings.dir}: no record can be read; prepare the shards again")

    def pass_over(self, number: int, error: UserError) -> None:
        """Remember a corrupt record, up to data.max_corrupt of them."""
        with self.lock:
            self.corrupt[number] = str(error)
            count = len(self.corrupt)
        if count > self.settings.max_corrupt:
            raise UserError(
                f"data.max_corrupt={self.settings.max_corrupt}: {count} records could not be read, the last: {error}"
            ) from error
