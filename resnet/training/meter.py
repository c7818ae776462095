"""Losses and accuracies that stay on the device until they are read, the throughput of training alone, and its waits for data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from resnet import UserError
from resnet.data import pipeline
from resnet.distributed.ranks import Ranks

Batch = tuple[tf.Tensor, tf.Tensor, tf.Tensor]  # images uint8 [B, S, S, 3], labels int32 [B], flip bool [B]


class NotFinite(UserError):
    """The loss or a weight is not finite after `step`, counted from 0."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step + 1}: {reason}")
        self.step = step


@dataclass(frozen=True)
class Reading:
    """What happened since the last reading."""

    loss: float  # mean over steps and ranks; NaN if every step was skipped, as are the accuracies
    images_per_s: float | None  # None for the first call of a graph, which traces it
    skipped: tuple[int, ...] = ()  # steps from 0 whose update was skipped
    data_wait: float | None = None  # share of the time, 0..1, without a batch to work on; the largest of a rank
    top1: float = math.nan  # shares of the images, 0..1
    top5: float = math.nan


class DataWait:
    """Seconds in which there was nothing to do but wait for the next batch, measured in the graph of the step.

    A batch may be asked for long before the device has finished the step before, and that is no waiting. So the time counts from
    the arrival of the last loss on the host, one step late: nothing waits for a loss of its own step.
    """

    def __init__(self) -> None:
        self.loss = tf.Variable(0.0, trainable=False, name="newest_loss")  # on the device
        with tf.device("/device:CPU:0"):
            self.arrived = tf.Variable(0.0, trainable=False, name="newest_loss_on_the_host")
            self.seconds = tf.Variable(0.0, trainable=False, dtype=tf.float64, name="data_wait")

    @pipeline.do_not_convert
    def next(self, batches: Iterator[Batch]) -> Batch:
        """In a graph: the next batch."""
        newest = self.loss.read_value()
        with tf.device("/device:CPU:0"), tf.control_dependencies([self.arrived.assign(newest, read_value=False)]):
            idle_since = tf.timestamp()
        batch = next(batches)
        with tf.device("/device:CPU:0"):
            with tf.control_dependencies(batch):
                there = tf.timestamp()
            self.seconds.assign_add(tf.maximum(there - idle_since, 0), read_value=False)
        return batch

    @pipeline.do_not_convert
    def computed(self, loss: tf.Tensor, gradients: Sequence[tf.Tensor]) -> None:
        """In a graph: the work on a batch is done when these are there."""
        with tf.control_dependencies(gradients):
            self.loss.assign(loss, read_value=False)

    def take(self) -> float:
        """The seconds since the last take()."""
        seconds = float(self.seconds)
        self.seconds.assign(0.0)
        return seconds


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

    def add(self, figures: tf.Tensor) -> None:
        """Add loss, top-1 and top-5 of each step of one graph call, a float tensor [k, 3], without reading them."""
        self.unread.append(figures)
        self.calls += 1

    def read(self, waited: Callable[[], float] = float) -> Reading:
        """What happened since the last reading. Raises NotFinite for the first step whose loss is not finite.

        `waited` is called when the device has finished, for the seconds in which it had no batch.
        """
        local = np.concatenate([np.asarray(part, np.float64) for part in self.unread])
        waits = np.zeros(self.ranks.size)
        waits[self.ranks.rank] = waited()
        total = self.ranks.allreduce_sum(np.concatenate([local.ravel(), waits]))
        figures, waits = total[: local.size].reshape(local.shape) / self.ranks.size, total[local.size :]
        losses = figures[:, 0]
        seconds, images, speed, share = max(self.clock() - self.since, 1e-9), len(losses) * self.batch, None, None
        if self.calls > 1:
            speed, share = images / seconds, min(1.0, float(waits.max()) / seconds)
            self.seconds, self.images = self.seconds + seconds, self.images + images
            self.speeds.append(speed)
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad) and not self.skips:
            raise NotFinite(self.first_unread + int(bad[0]), f"the loss is {losses[bad[0]]}")
        skipped = tuple(self.first_unread + int(number) for number in bad)
        self.unread, self.first_unread = [], self.first_unread + len(losses)
        self.since = self.clock()
        good = figures[np.isfinite(losses)]
        loss, top1, top5 = (float(column.mean()) if len(good) else math.nan for column in good.T)
        return Reading(loss, speed, skipped, share, top1, top5)

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
