"""Epochs to steps, once; and the learning rate of every step, as pure functions of NumPy.

A step is counted by the updates made before it: the first is 0, the last of a run is `total_steps - 1`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet import UserError
from resnet.config.run import Run
from resnet.config.schedule import Constant, Cosine, Exponential, Horizon, Linear, Piecewise, Polynomial, Schedule
from resnet.config.training import EmaStart, Progressive

Curve = Callable[[ArrayLike], NDArray[np.float64]]  # steps, any shape -> learning rates of that shape


@dataclass(frozen=True)
class Warmup:
    """The first steps, in which the learning rate rises along a line from the share `start` of its peak."""

    steps: float
    start: float = 0.0


def warmed_up(step: ArrayLike, peak: float, warmup: Warmup, after: Curve) -> NDArray[np.float64]:
    """A line from peak * start to `peak` during the warm-up, `after(step)` from there on (arXiv:1706.02677 sec. 2.2)."""
    steps, low = np.asarray(step, np.float64), peak * warmup.start
    return np.where(steps < warmup.steps, low + (peak - low) * steps / max(warmup.steps, 1e-9), after(steps))


def constant(step: ArrayLike, peak: float, warmup: Warmup) -> NDArray[np.float64]:
    """`peak` after the warm-up."""
    return warmed_up(step, peak, warmup, lambda steps: np.full_like(steps, peak))


def piecewise(
    step: ArrayLike, peak: float, warmup: Warmup, boundaries: Sequence[float], factor: float
) -> NDArray[np.float64]:
    """`peak` times `factor` for every boundary reached; at step == boundary it has been."""
    edges = np.asarray(boundaries)

    def stairs(steps: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(peak * factor ** np.searchsorted(edges, steps, side="right"), np.float64)

    return warmed_up(step, peak, warmup, stairs)


def exponential(
    step: ArrayLike, peak: float, warmup: Warmup, decay_steps: float, decay_rate: float, staircase: bool
) -> NDArray[np.float64]:
    """peak * decay_rate ** (steps since the warm-up / decay_steps), the exponent rounded down with `staircase`."""

    def falling(steps: ArrayLike) -> NDArray[np.float64]:
        times = (np.asarray(steps, np.float64) - warmup.steps) / decay_steps
        # Rounded first, or step 55 could be 0.9999999999999999 times 0.55 epochs of 100 steps.
        return np.asarray(peak * decay_rate ** (np.floor(np.round(times, 9)) if staircase else times))

    return warmed_up(step, peak, warmup, falling)


def progress(steps: ArrayLike, warmup_steps: float, end: float) -> NDArray[np.float64]:
    """0 at the end of the warm-up, 1 at step `end` and after it."""
    return np.clip((np.asarray(steps, np.float64) - warmup_steps) / (end - warmup_steps), 0.0, 1.0)


def polynomial(
    step: ArrayLike, peak: float, warmup: Warmup, end: float, end_lr: float, power: float
) -> NDArray[np.float64]:
    """end_lr + (peak - end_lr) * (1 - progress) ** power."""
    height = peak - end_lr
    return warmed_up(step, peak, warmup, lambda s: end_lr + height * (1 - progress(s, warmup.steps, end)) ** power)


def cosine(step: ArrayLike, peak: float, warmup: Warmup, end: float, end_lr: float) -> NDArray[np.float64]:
    """end_lr + (peak - end_lr) * (1 + cos(pi * progress)) / 2 (arXiv:1608.03983 eq. 5, one cycle)."""
    half = (peak - end_lr) * 0.5
    return warmed_up(
        step, peak, warmup, lambda s: end_lr + half * (1 + np.cos(math.pi * progress(s, warmup.steps, end)))
    )


def curve(schedule: Schedule, peak: float, epochs: float, steps_per_epoch: int) -> Curve:
    """The learning rate of a step under `schedule`, which counts in epochs."""
    warmup = Warmup(schedule.warmup_epochs * steps_per_epoch, schedule.warmup_start)
    horizon, end_lr = epochs, 0.0
    if isinstance(schedule, Horizon):
        horizon = (schedule.horizon_epochs or epochs) - schedule.cooldown_epochs
        end_lr = schedule.end_lr
    end = horizon * steps_per_epoch
    match schedule:
        case Constant():
            return lambda step: constant(step, peak, warmup)
        case Piecewise():
            # Rounded, or 0.55 epochs of 100 steps would be 55.00000000000001, which step 55 does not reach.
            boundaries = [round(epoch * steps_per_epoch, 6) for epoch in schedule.boundaries_epochs]
            return lambda step: piecewise(step, peak, warmup, boundaries, schedule.factor)
        case Polynomial():
            return lambda step: polynomial(step, peak, warmup, end, end_lr, schedule.power)
        case Linear():
            return lambda step: polynomial(step, peak, warmup, end, end_lr, 1.0)
        case Cosine():
            return lambda step: cosine(step, peak, warmup, end, end_lr)
        case Exponential():
            decay = schedule.decay_epochs * steps_per_epoch
            return lambda step: exponential(step, peak, warmup, decay, schedule.decay_rate, schedule.staircase)
    raise AssertionError(schedule)


def crop_size(epoch: int, full: int, growth: Progressive) -> int:
    """Side of the training crops in `epoch`, counted from 0: linear from start_size to `full`, to the nearest multiple."""
    if growth.start_size is None or epoch >= growth.end_epochs:
        return full
    if epoch < growth.start_epochs:
        return growth.start_size
    share = (epoch - growth.start_epochs) / (growth.end_epochs - growth.start_epochs)
    return (
        math.floor((growth.start_size + (full - growth.start_size) * share) / growth.multiple + 0.5) * growth.multiple
    )


def ema_decay(decay: float, every: int, step: int) -> float:
    """Decay of the average in its update after `step` steps, `every` steps after the one before; `decay` is of one step.

    Warmed up as tf.train.ExponentialMovingAverage does, or the initial weights would stay in it for long.
    """
    return float(min(decay, (1 + step) / (10 + step)) ** every)


def torchvision_decay(decay: float, batch: int, every: int, epochs: float) -> float:
    """Decay of each update, `every` steps after the one before, for --model-ema-decay of torchvision's references/classification.

    So one `decay` fits batches and runs of other sizes: 1 - decay is the weight of an image, in a run of one epoch.
    """
    return 1 - min(1.0, (1 - decay) * batch * every / epochs)


def average_decay(run: Run, steps_per_epoch: int) -> Callable[[int], float]:
    """The decay of the average in its update after a step; 0 makes it a copy of the weights.

    With ema.start=copy that is so in every update of the warm-up, and in the first after it, as in torchvision's train.py.
    """
    ema, every = run.ema, run.ema.every_steps
    per_step = ema.per_step
    if ema.torchvision_decay is not None:
        per_step = torchvision_decay(ema.torchvision_decay, run.batch, every, run.epochs) ** (1 / every)
    if ema.start is EmaStart.rise:
        return lambda step: ema_decay(per_step, every, step)
    warmup_steps = run.schedule.warmup_epochs * steps_per_epoch
    return lambda step: 0.0 if step - every <= warmup_steps else per_step**every


@dataclass(frozen=True)
class Plan:
    """A run in steps. `step` is the number of updates made so far; what is due after them is due at multiples and at the end."""

    steps_per_epoch: int
    total_steps: int
    eval_every: int | None  # None: never
    eval_first: int  # step of the first evaluation, from which eval_every counts
    save_every: int
    log_every: int
    loop: int  # steps in one graph call
    lr: Curve
    average_every: int | None  # None: the weights are not averaged
    decay: Callable[[int], float]  # step -> decay of the average in its update after that step
    size: Callable[[int], int]  # step -> side of its training crops, pixels

    def next_call(self, step: int) -> tuple[int, int]:
        """(first step, one past the last) of the next graph call: to an evaluation, a save, an EMA update or a crop size."""
        ends = [self.next_evaluation(step), step + self.loop, next_multiple(step, self.save_every)]
        ends += [next_multiple(step, self.average_every)] if self.average_every else []
        epochs = range(next_multiple(step, self.steps_per_epoch), min(ends), self.steps_per_epoch)
        ends += [end for end in epochs if self.size(end) != self.size(step)][:1]
        return step, min(ends)

    def evaluates(self, step: int) -> bool:
        since = step - self.eval_first
        return self.eval_every is not None and (since % self.eval_every == 0 <= since or step == self.total_steps)

    def next_evaluation(self, step: int) -> int:
        """The first step above `step` that evaluates; the end of a run that never does."""
        if self.eval_every is None:
            return self.total_steps
        since = max(0, next_multiple(step - self.eval_first, self.eval_every))
        return min(self.total_steps, self.eval_first + since)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due; the weights of every evaluation are saved."""
        return step % self.save_every == 0 or step == self.total_steps or self.evaluates(step)

    def logs(self, before: int, step: int) -> bool:
        """Whether the losses of the updates before+1 .. step are to be read: log_every_steps, the end, a new crop size next."""
        return before // self.log_every != step // self.log_every or step == self.total_steps or self.resizes(step)

    def averages(self, step: int) -> bool:
        return self.average_every is not None and step % self.average_every == 0

    def resizes(self, step: int) -> bool:
        """Whether step `step` has crops of another size than the one before."""
        return step > 0 and self.size(step) != self.size(step - 1)

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch


def next_multiple(step: int, every: int) -> int:
    """The least multiple of `every` above `step`."""
    return (step // every + 1) * every


def plan(run: Run, train_images: int) -> Plan:
    """The one place where epochs become steps: floor(train images / global batch) to the epoch."""
    per_epoch = train_images // run.batch
    if per_epoch == 0:
        raise UserError(
            f"batch={run.batch}: more than the {train_images} training images of data={run.data.name}; "
            f"use at most batch={train_images}"
        )
    total = run.lr_find_steps if run.lr_find else round(run.epochs * per_epoch)
    total = max(1, total if run.steps is None else min(total, run.steps))
    if run.profile_steps and run.profile_steps[1] > total:
        raise UserError(f"profile_steps={run.profile_steps}: the run ends after {total} steps; profile earlier ones")
    every = max(1, round(run.eval_every_epochs * per_epoch))
    return Plan(
        steps_per_epoch=per_epoch,
        total_steps=total,
        eval_every=every if run.eval else None,
        eval_first=max(1, round(run.eval_offset_epochs * per_epoch)) if run.eval_offset_epochs else every,
        save_every=run.save_every_steps or per_epoch,
        log_every=run.log_every_steps,
        loop=run.steps_per_loop,
        lr=curve(run.schedule, run.optim.lr, run.epochs, per_epoch),
        average_every=run.ema.every_steps if run.ema.on else None,
        decay=average_decay(run, per_epoch),
        size=lambda step: crop_size(step // per_epoch, run.train_size, run.progressive),
    )
