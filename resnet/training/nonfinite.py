"""What `on_nan` has a run do about a loss, a gradient or a weight that is not finite; `guard` is its part in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from resnet import UserError
from resnet.config.run import Run
from resnet.config.training import NanPolicy
from resnet.optim.loss_scale import all_finite
from resnet.training import checkpoint
from resnet.training.meter import NotFinite
from resnet.training.state import Progress


@dataclass(frozen=True, eq=False)
class Recovery:
    """Of one run. `stored` is what checkpoints hold, `state` its variables; ranks call the same in the same order."""

    run: Run
    out: Path
    ranks: Any  # device.World
    stored: Any
    state: Sequence[Any]
    display: Any  # progress.Display
    tracker: Any  # track.Tracker

    def check(self, step: int) -> None:
        """Raise NotFinite unless every variable is finite after `step`, counted from 0: no checkpoint is to be of others."""
        if not self.sound():
            raise NotFinite(step, "the loss is finite, and the weights after it are not")

    @tf.function(autograph=False)
    def sound(self) -> Any:
        """Whether every variable is finite."""
        return all_finite(variable for variable in self.state if variable.dtype.is_floating)

    def left_out(self, standing: Progress, steps: Sequence[int]) -> tuple[Progress, dict[str, float | None]]:
        """(standing, metric) after these updates were not made; tells of them. Raises UserError if they are too many in all."""
        if self.run.on_nan.policy is not NanPolicy.skip:
            return standing, {}
        standing, limit = replace(standing, skipped=standing.skipped + len(steps)), self.run.on_nan.max_skips
        if steps:
            listed = ", ".join(str(step + 1) for step in steps[:8]) + (", ..." if len(steps) > 8 else "")
            said = f"step {listed}: loss or gradients not finite, update left out; {standing.skipped} in all (on_nan.policy=skip)"
            if standing.skipped > limit:
                raise UserError(
                    f"{said}, and on_nan.max_skips={limit}; lower optim.lr={self.run.optim.lr:g} in another out=, "
                    "or go on in this one with on_nan.policy=rollback"
                )
            self.display.say(said)
        return standing, {"train/skipped": standing.skipped}

    def back(self, error: NotFinite, standing: Progress) -> tuple[checkpoint.Saved, Progress]:
        """To the newest good checkpoint, to go on from there at a lower learning rate; raises `error` where that is not to be."""
        limit = self.run.on_nan.max_rollbacks
        if self.run.on_nan.policy is not NanPolicy.rollback or standing.rollbacks >= limit:
            raise error
        saved, notes = checkpoint.restore(self.out, self.stored) if self.ranks.rank == 0 else (None, [])
        if (saved := self.ranks.broadcast_object(saved)) is None:
            raise error
        self.ranks.broadcast_variables(self.state)
        lowered = Progress(**saved.state).rolled_back(self.run.on_nan.lr_factor)
        if self.ranks.rank == 0:
            saved = checkpoint.amend(saved, saved.top1, lowered)  # a start after this one is to know of it
        said = f"{error}; back to step {saved.step}, from there on at {lowered.lr_scale:g} times the learning rate"
        for line in (*notes, f"{said} (on_nan.policy=rollback, {lowered.rollbacks} of at most {limit})"):
            self.display.say(line)
        self.tracker.log(saved.step, {"train/rollbacks": lowered.rollbacks, "train/lr_scale": lowered.lr_scale})
        return saved, lowered

    def ended(self, error: NotFinite, lr: float, saved: checkpoint.Saved | None, standing: Progress) -> UserError:
        """What is told when that is the end of the run; `lr` is that of the step."""
        run, most = self.run, self.run.on_nan.max_rollbacks
        kept = f"the last good checkpoint is {saved.path}" if saved else "no checkpoint was written yet"
        used_up = f"on_nan.max_rollbacks={max(1, 2 * most)}, for there were {standing.rollbacks}"
        more = used_up if run.on_nan.policy is NanPolicy.rollback else "on_nan.policy=rollback"
        return UserError(
            f"{error} at lr {lr:.6g}; {kept}; lower optim.lr={run.optim.lr:g} or lengthen schedule.warmup_epochs="
            f"{run.schedule.warmup_epochs:g}, in another out=, or go on in this one with {more}"
        )
