"""Losses that wait on the device until someone asks, and the time that training alone took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet import UserError


class Meter:
    """Reading waits for the device, so it happens at log points only; time is taken from one reading to the next.

    The first call of a graph builds it, and counts nowhere.
    """

    def __init__(
        self,
        done: int,
        batch: int,
        clock: Callable[[], float] = time.monotonic,
        over_ranks: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda losses: losses,
        skips: bool = False,
    ) -> None:
        """`skips`: steps whose loss is not finite were left out, and are counted only."""
        self.clock, self.batch, self.over_ranks, self.skips = clock, batch, over_ranks, skips
        self.skipped: list[int] = []  # such steps of the last reading, counted from 0
        self.calls, self.first_unread = 0, done
        self.unread: list[Any] = []
        self.since = clock()
        self.seconds, self.images = 0.0, 0
        self.speeds: list[float] = []

    def add(self, losses: Any) -> None:
        """The losses of one graph call, a float tensor [k], unread."""
        self.unread.append(losses)
        self.calls += 1

    def read(self) -> tuple[float, float | None]:
        """(mean loss, images/s) since the last reading; no speed for the first call. Raises NotFinite for the first step whose
        loss is not finite, unless such steps are skipped; NaN if all were."""
        losses = self.over_ranks(np.concatenate([np.asarray(part, np.float64) for part in self.unread]))
        seconds, images, speed = max(self.clock() - self.since, 1e-9), len(losses) * self.batch, None
        if self.calls > 1:
            speed = images / seconds
            self.seconds, self.images = self.seconds + seconds, self.images + images
            self.speeds.append(speed)
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad) and not self.skips:
            raise NotFinite(self.first_unread + int(bad[0]), f"the loss is {losses[bad[0]]}")
        self.skipped = [self.first_unread + int(number) for number in bad]
        self.unread, self.first_unread = [], self.first_unread + len(losses)
        self.since = self.clock()
        finite = losses[np.isfinite(losses)]
        return float(finite.mean()) if len(finite) else math.nan, speed

    def resume(self) -> None:
        """What happened since the last reading was no training."""
        assert not self.unread
        self.since = self.clock()

    def rebuilt(self) -> None:
        """The next graph call builds its graph, and counts nowhere."""
        self.calls = 0
        self.resume()

    def take(self) -> tuple[float, int, list[float]]:
        """(seconds, images, speeds) since they were last taken."""
        taken = self.seconds, self.images, self.speeds
        self.seconds, self.images, self.speeds = 0.0, 0, []
        return taken


class NotFinite(UserError):
    """`step` (counted from 0) came to something that is no number."""

    def __init__(self, step: int, said: str) -> None:
        super().__init__(f"step {step + 1}: {said}")
        self.step = step
