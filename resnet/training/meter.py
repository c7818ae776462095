"""Losses that stay on the device until they are read, and the throughput of training alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from resnet import UserError
from resnet.distributed.ranks import Ranks


class NotFinite(UserError):
    """The loss or a weight is not finite after `step`, counted from 0."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step + 1}: {reason}")
        self.step = step


@dataclass(frozen=True)
class Reading:
    """What happened since the last reading."""

    loss: float  # mean over steps and ranks; NaN if every step was skipped
    images_per_s: float | None  # None for the first call of a graph, which traces it
    skipped: tuple[int, ...] = ()  # steps from 0 whose update was skipped


class Meter:
    """Reading waits for the device, so it happens at log points only; time counts from one reading to the next.

    The first call of a graph traces it, and does not count.
    """

    def __init__(
        self,
        step: int,
        batch: int,
        ranks: Ranks | None = None,
        skips: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`step` comes next. With `skips` steps whose loss is not finite are counted as skipped."""
        self.clock, self.batch, self.ranks, self.skips = clock, batch, ranks or Ranks(), skips
        self.calls, self.first_unread = 0, step
        self.unread: list[tf.Tensor] = []
        self.since = clock()
        self.seconds, self.images = 0.0, 0
        self.speeds: list[float] = []

    @property
    def first_call(self) -> bool:
        """Whether the newest call was the first of its graph."""
        return self.calls == 1

    def add(self, losses: tf.Tensor) -> None:
        """Add the losses of one graph call, a float tensor [k], without reading them."""
        self.unread.append(losses)
        self.calls += 1

    def read(self) -> Reading:
        """Loss and throughput since the last reading. Raises NotFinite for the first step whose loss is not finite."""
        local = np.concatenate([np.asarray(part, np.float64) for part in self.unread])
        losses = self.ranks.allreduce_sum(local) / self.ranks.size
        seconds, images, speed = max(self.clock() - self.since, 1e-9), len(losses) * self.batch, None
        if self.calls > 1:
            speed = images / seconds
            self.seconds, self.images = self.seconds + seconds, self.images + images
            self.speeds.append(speed)
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad) and not self.skips:
            raise NotFinite(self.first_unread + int(bad[0]), f"the loss is {losses[bad[0]]}")
        skipped = tuple(self.first_unread + int(number) for number in bad)
        self.unread, self.first_unread = [], self.first_unread + len(losses)
        self.since = self.clock()
        finite = losses[np.isfinite(losses)]
        return Reading(float(finite.mean()) if len(finite) else math.nan, speed, skipped)

    def resume(self) -> None:
        """Leave the time since the last reading out: it was not training."""
        assert not self.unread
        self.since = self.clock()

    def skip_first_call(self) -> None:
        """The next call traces a graph: leave it out of the throughput."""
        self.calls = 0
        self.resume()

    def take(self) -> tuple[float, int, list[float]]:
        """(seconds, images, speeds) since the last take()."""
        taken = self.seconds, self.images, self.speeds
        self.seconds, self.images, self.speeds = 0.0, 0, []
        return taken
