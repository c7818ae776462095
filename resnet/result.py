"""Where a run stands beside its weights, and what it came to: <out>/result.json."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from resnet import stamp
from resnet.config import Run

FILE = "result.json"


@dataclass(frozen=True)
class Standing:
    """Kept in every checkpoint, so that a run that goes on ends with the figures of all its parts."""

    best_top1: float | None = None
    scores: dict[str, Any] | None = None  # of the newest evaluation: top1, top5, loss, seen
    averaged: dict[str, Any] | None = None  # the same of the averaged weights, where there are any
    scored_at: int | None = None  # after how many updates that was
    seconds: float = 0.0  # of training alone: no evaluation, no checkpoint, no first iteration
    images: int = 0  # trained on in those seconds
    speeds: tuple[float, ...] = field(default=())  # images/s between two readings, the newest thousand
    minutes: float = 0.0  # of all starts that led here, by the clock on the wall
    skipped: int = 0  # updates left out (on_nan.policy=skip)
    rollbacks: int = 0  # so often it went back (on_nan.policy=rollback)
    lr_scale: float = 1.0  # of the schedule's learning rate, since then

    def judged(self, scores: Any, done: int, averaged: Any = None) -> Standing:
        """After an evaluation (`scores.Scores`) of the weights after `done` updates, and of their average."""
        top1 = (averaged or scores).top1
        best = top1 if self.best_top1 is None else max(self.best_top1, top1)
        return replace(
            self, best_top1=best, scores=asdict(scores), averaged=averaged and asdict(averaged), scored_at=done
        )

    def timed(self, seconds: float, images: int, speeds: list[float]) -> Standing:
        """After so many more seconds of training."""
        speeds = [*self.speeds, *speeds][-1000:]
        return replace(self, seconds=self.seconds + seconds, images=self.images + images, speeds=tuple(speeds))

    def rolled_back(self, lr_factor: float) -> Standing:
        """After going back here, to go on with a learning rate of so much less."""
        return replace(self, rollbacks=self.rollbacks + 1, lr_scale=self.lr_scale * lr_factor)

    def top1(self, done: int) -> float | None:
        """Of the weights after `done` updates, of their average where there is one; None if they were not evaluated."""
        scores = self.averaged or self.scores
        return scores["top1"] if scores and self.scored_at == done else None

    def reached(self, stop_at_top1: float | None, done: int) -> bool:
        """Whether the weights after `done` updates have the top-1 to stop at."""
        top1 = self.top1(done)
        return stop_at_top1 is not None and top1 is not None and top1 >= stop_at_top1


def metrics(kind: str, scores: Any) -> dict[str, float]:
    """What an evaluation is called in MLflow: `eval` is of the weights, `ema` of their average; nothing of None."""
    return {f"{kind}/{name}": getattr(scores, name) for name in ("top1", "top5", "loss")} if scores else {}


def conclusion(
    run: Run, standing: Standing, done: int, epochs: float, minutes: float, mark: str, to_train: float | None = None
) -> dict[str, Any]:
    """The result; metrics under MLflow's names. `mark` tells later starts what was asked for (comparison.fingerprint).

    `to_train` is MLPerf's time to train in minutes, where it was taken.
    """
    current = standing.scored_at == done
    scores, averaged = ((current and part) or {} for part in (standing.scores, standing.averaged))
    return {
        "status": "stopped at top-1" if standing.reached(run.stop_at_top1, done) else "finished",
        "fingerprint": mark,
        **stamp.stamp(),
        "steps": done,
        "epochs": epochs,
        "eval/top1": scores.get("top1"),
        "eval/top5": scores.get("top5"),
        "eval/loss": scores.get("loss"),
        **{f"ema/{name}": averaged[name] for name in ("top1", "top5", "loss") if averaged},
        "best/top1": standing.best_top1,
        "final/top1": standing.top1(done),
        # The published tables' definition: the mean over all iterations but the first.
        "final/images_per_s": standing.images / standing.seconds if standing.seconds else None,
        "final/images_per_s_median": statistics.median(standing.speeds) if standing.speeds else None,
        "final/training_minutes": standing.seconds / 60,
        "final/minutes": minutes,  # of all starts: each from the first line of the training to its newest checkpoint
        **({} if to_train is None else {"final/time_to_train_minutes": to_train}),
        "out": run.out,
    }


def read(out: Path) -> dict[str, Any] | None:
    """<out>/result.json; None while the run has not ended."""
    try:
        return dict(json.loads((out / FILE).read_text()))
    except (OSError, ValueError):
        return None


def write(out: Path, content: dict[str, Any]) -> Path:
    """Write <out>/result.json aside, then rename it."""
    aside = out / f".{FILE}.{os.getpid()}"
    aside.write_text(json.dumps(content, indent=1) + "\n")
    return aside.replace(out / FILE)
