"""A learning-rate range test (arXiv:1506.01186 sec. 3.3): the rate grows exponentially, step by step, until the loss diverges.

The suggested peak is where the smoothed loss falls steepest over the logarithm of the rate, and at most a tenth of the rate
at which it is least. The steps are those of training; the weights are discarded.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet import UserError, files
from resnet.cli import Stopped
from resnet.config.fingerprint import fingerprint
from resnet.config.run import Run
from resnet.optim.schedule import Plan
from resnet.rundir import result
from resnet.training.progress import RANGE_TEST_CSV, RANGE_TEST_PNG
from resnet.training.run_log import RunLog
from resnet.training.signals import Signals
from resnet.training.step import TrainStep
from resnet.training.watchdog import Watchdog

STATUS = "lr_find"  # in result.json
DECAY = 0.9  # of the average of the losses
DIVERGED = 4.0  # the test ends when that average is so many times its least
SHARE = 0.1  # of the rate with the least loss: the most that is suggested
EARLY = 10  # steps at first, 1 / (1 - DECAY), where the average is of too few losses to have a slope

Step = Callable[[int, float], float]  # (number from 0, learning rate) -> loss, the same on every rank


@dataclass
class Curve:
    """The losses of the test; `smoothed` is their average up to each step."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def diverged(self) -> bool:
        """Whether the newest loss is not finite, or far above the best."""
        newest = self.smoothed[-1]
        return not math.isfinite(newest) or newest > DIVERGED * min(self.smoothed)


@dataclass(frozen=True)
class Peak:
    """The learning rates at which the averaged loss falls steepest, and at which it is least."""

    steepest: float
    least: float

    @property
    def suggested(self) -> float:
        return min(self.steepest, SHARE * self.least)


def rates(start: float, end: float, steps: int) -> NDArray[np.float64]:
    """`steps` learning rates from `start` to `end`, each the same multiple of the one before."""
    return np.geomspace(start, end, steps)


def explore(step: Step, lrs: Iterable[float], report: Callable[[Curve], object]) -> Curve:
    """Make a step at each rate until the loss diverges; `report` is called after each."""
    curve, average = Curve([], [], []), 0.0
    for number, lr in enumerate(lrs):
        loss = step(number, float(lr))
        average = DECAY * average + (1 - DECAY) * loss
        curve.lrs.append(float(lr))
        curve.losses.append(loss)
        curve.smoothed.append(average / (1 - DECAY ** (number + 1)))  # it starts at 0 (arXiv:1412.6980 sec. 3)
        report(curve)
        if curve.diverged:
            break
    return curve


def peak(lrs: ArrayLike, losses: ArrayLike) -> Peak | None:
    """The peak learning rate by these averaged losses; None if they never fall."""
    rates, heights = np.asarray(lrs, np.float64), np.asarray(losses, np.float64)
    rates, heights = rates[np.isfinite(heights)], heights[np.isfinite(heights)]
    least = int(heights.argmin()) if len(heights) else 0
    if least == 0:
        return None
    early = min(EARLY, least // 2)
    slopes = np.gradient(heights, np.log(rates))[early : least + 1]
    return Peak(float(rates[early + slopes.argmin()]), float(rates[least]))


def run(
    run: Run, out: Path, train_step: TrainStep, plan: Plan, signals: Signals, watchdog: Watchdog, log: RunLog
) -> dict[str, Any]:
    """The range test; returns the content of result.json. Rank 0 writes lr_find.csv, lr_find.png and result.json into `out`.

    Every rank calls it. Raises UserError if the loss never falls, Stopped after a signal.
    """
    lrs = rates(run.lr_find_start, run.lr_find_end, plan.total_steps)
    log.say(f"range test: {len(lrs)} steps, lr {lrs[0]:g} to {lrs[-1]:g}; the weights are discarded")
    train_step.prepare(0)

    def loss_at(step: int, lr: float) -> float:
        figures, flag = train_step.train(*train_step.inputs(step, step + 1, [lr]), signals.flag)
        watchdog.reset()
        if signals.agree(flag, log.ranks.size):
            raise Stopped("a range test saves nothing; start it again")
        return float(log.ranks.allreduce_sum(figures.numpy()[:, 0].astype(np.float64))[0] / log.ranks.size)

    def report(curve: Curve) -> None:
        step, lr, loss, smoothed = len(curve.lrs), curve.lrs[-1], curve.losses[-1], curve.smoothed[-1]
        log.metrics(step, {"lr_find/lr": lr, "lr_find/loss": loss, "lr_find/smoothed_loss": smoothed})
        log.advance(step)

    curve = explore(loss_at, lrs, report)
    best = peak(curve.lrs, curve.smoothed)
    if log.ranks.primary:
        write_csv(out / RANGE_TEST_CSV, curve)
        draw(out / RANGE_TEST_PNG, curve, best, f"{run.model.name} {run.optim.name} b{run.batch}")
        log.artifact(out / RANGE_TEST_CSV)
        log.artifact(out / RANGE_TEST_PNG)
    if best is None:
        raise UserError(
            f"lr_find_start={run.lr_find_start:g}: the loss falls at no rate from there on; give a lower one "
            f"({Path(run.out) / RANGE_TEST_PNG} shows it)"
        )
    content = {
        "status": STATUS,
        "steps": len(curve.lrs),
        "suggested_lr": best.suggested,
        "steepest_lr": best.steepest,
        "least_loss_lr": best.least,
        "out": run.out,
        "fingerprint": fingerprint(run),
    }
    log.ranks.barrier()
    if log.ranks.primary:
        log.artifact(result.write(out, content))
    return content


def write_csv(path: Path, curve: Curve) -> None:
    with open(path, "w", newline="", opener=files.regular) as file:
        rows = csv.writer(file)
        rows.writerow(["step", "lr", "loss", "smoothed_loss"])
        rows.writerows(zip(range(len(curve.lrs)), curve.lrs, curve.losses, curve.smoothed, strict=True))


def draw(path: Path, curve: Curve, best: Peak | None, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve.lrs, curve.losses, color="tab:blue", alpha=0.3, label="loss of the step")
    axes.plot(curve.lrs, curve.smoothed, color="tab:blue", label="smoothed")
    if best:
        axes.axvline(best.suggested, color="tab:red", linestyle="--", label=f"suggested peak {best.suggested:.3g}")
    finite = [loss for loss in curve.smoothed if math.isfinite(loss)]
    if finite:  # else one diverged step would flatten all others
        axes.set_ylim(0.8 * min(finite), 1.1 * min(max(finite), DIVERGED * min(finite)))
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    with files.atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
