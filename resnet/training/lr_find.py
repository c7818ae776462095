"""A learning-rate range test (arXiv:1506.01186 sec. 3.3): the rate grows exponentially, step by step, until the loss is lost.

The suggested peak is where the smoothed loss falls steepest over the logarithm of the rate, and at most a tenth of the rate
at which it is least. The steps are the training's own; nothing that they learn is kept.
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

from resnet import UserError
from resnet.config.run import Run

STATUS = "lr_find"  # in result.json: no training
CSV, PNG = "lr_find.csv", "lr_find.png"
KEPT = 0.9  # what the average of the losses keeps of itself at a step
LOST = 4.0  # the test ends when that average is so many times its least
SHARE = 0.1  # of the rate with the least loss: the most that is suggested
EARLY = 10  # steps at first, 1 / (1 - KEPT), where the average is of too few losses to have a slope

Step = Callable[[int, float], float]  # (number from 0, learning rate) -> loss, the same on every rank


@dataclass
class Curve:
    """What the test saw; `smoothed` is the average of the losses up to each step."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def lost(self) -> bool:
        """Whether to stop: the newest loss is not finite, or far above the best."""
        newest = self.smoothed[-1]
        return not math.isfinite(newest) or newest > LOST * min(self.smoothed)


@dataclass(frozen=True)
class Peak:
    """The learning rates at which the averaged loss falls steepest, and at which it is least."""

    steepest: float
    least: float

    @property
    def suggested(self) -> float:
        """The peak to try."""
        return min(self.steepest, SHARE * self.least)


def rates(start: float, end: float, steps: int) -> NDArray[np.float64]:
    """`steps` learning rates from `start` to `end`, each the same multiple of the one before."""
    return np.geomspace(start, end, steps)


def explore(step: Step, lrs: Iterable[float], seen: Callable[[Curve], object]) -> Curve:
    """Make a step at each rate until the loss is lost; `seen` is told after each."""
    curve, average = Curve([], [], []), 0.0
    for number, lr in enumerate(lrs):
        loss = step(number, float(lr))
        average = KEPT * average + (1 - KEPT) * loss
        curve.lrs.append(float(lr))
        curve.losses.append(loss)
        curve.smoothed.append(average / (1 - KEPT ** (number + 1)))  # it began at 0 (arXiv:1412.6980 sec. 3)
        seen(curve)
        if curve.lost:
            break
    return curve


def peak(lrs: ArrayLike, losses: ArrayLike) -> Peak | None:
    """What these averaged losses say of the peak learning rate; None if they never fall."""
    rates, heights = np.asarray(lrs, np.float64), np.asarray(losses, np.float64)
    rates, heights = rates[np.isfinite(heights)], heights[np.isfinite(heights)]
    least = int(heights.argmin()) if len(heights) else 0
    if least == 0:
        return None
    early = min(EARLY, least // 2)
    slopes = np.gradient(heights, np.log(rates))[early : least + 1]
    return Peak(float(rates[early + slopes.argmin()]), float(rates[least]))


def run(run: Run, out: Path | None, step: Step, steps: int, tracker: Any, display: Any) -> dict[str, Any]:
    """The whole test; what came of it, for result.json. Writes lr_find.csv and lr_find.png into `out`, where there is one.

    Raises UserError if the loss never falls.
    """
    lrs = rates(run.lr_find_start, run.lr_find_end, steps)
    display.say(f"range test: {len(lrs)} steps, lr {lrs[0]:g} to {lrs[-1]:g}; nothing that they learn is kept")

    def seen(curve: Curve) -> None:
        done, lr, loss, smoothed = len(curve.lrs), curve.lrs[-1], curve.losses[-1], curve.smoothed[-1]
        tracker.log(done, {"lr_find/lr": lr, "lr_find/loss": loss, "lr_find/smoothed_loss": smoothed})
        display.move(done)

    curve = explore(step, lrs, seen)
    found = peak(curve.lrs, curve.smoothed)
    if out:
        write_csv(out / CSV, curve)
        draw(out / PNG, curve, found, f"{run.model.name} {run.optim.name} b{run.batch}")
        tracker.artifact(out / CSV)
        tracker.artifact(out / PNG)
    if found is None:
        raise UserError(
            f"lr_find_start={run.lr_find_start:g}: the loss fell at no rate from there on; give a lower one "
            f"({Path(run.out) / PNG} shows it)"
        )
    return {
        "status": STATUS,
        "steps": len(curve.lrs),
        "suggested_lr": found.suggested,
        "steepest_lr": found.steepest,
        "least_loss_lr": found.least,
        "out": run.out,
    }


def write_csv(path: Path, curve: Curve) -> None:
    """A row each step."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "lr", "loss", "smoothed_loss"])
        rows.writerows(zip(range(len(curve.lrs)), curve.lrs, curve.losses, curve.smoothed, strict=True))


def draw(path: Path, curve: Curve, found: Peak | None, title: str) -> None:
    """The losses over the rate, and the suggestion."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve.lrs, curve.losses, color="tab:blue", alpha=0.3, label="loss of the step")
    axes.plot(curve.lrs, curve.smoothed, color="tab:blue", label="smoothed")
    if found:
        axes.axvline(found.suggested, color="tab:red", linestyle="--", label=f"suggested peak {found.suggested:.3g}")
    finite = [loss for loss in curve.smoothed if math.isfinite(loss)]
    if finite:  # else one lost step would flatten all others
        axes.set_ylim(0.8 * min(finite), 1.1 * min(max(finite), LOST * min(finite)))
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def told(made: dict[str, Any]) -> str:
    """The last words of a range test, from its result."""
    return (
        f"suggested peak: optim.lr={made['suggested_lr']:.3g} (the averaged loss falls steepest at {made['steepest_lr']:.3g} and "
        f"is least at {made['least_loss_lr']:.3g}: the first, but at most a tenth of the second)\n"
        f"{Path(made['out']) / PNG}, {CSV} beside it; to train give another out="
    )
