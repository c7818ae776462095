"""on_nan: what happens when a loss, a gradient or a weight is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tensorflow as tf

from resnet import UserError
from resnet.config.run import Run
from resnet.config.training import NanPolicy
from resnet.optim.loss_scale import LossScaleOptimizer, all_finite
from resnet.optim.optimizers import Optimizer
from resnet.optim.schedule import Plan
from resnet.training import checkpoint
from resnet.training.checkpoint import CheckpointWriter
from resnet.training.meter import NotFinite, Reading
from resnet.training.run_log import RunLog
from resnet.training.state import Progress, TrainState


class SkipNonFinite:
    """on_nan.policy=skip around a step: unless its loss and gradients are finite, no variable changes.

    That includes batch norm's moving statistics in `network`, which the forward pass updates before the loss is known.
    Whether a step counts is decided in the graph by means over the ranks, so that all ranks decide the same.
    """

    def __init__(self, optimizer: Optimizer | LossScaleOptimizer, network: tf.keras.Model) -> None:
        self.optimizer, self.statistics = optimizer, network.non_trainable_weights

    def snapshot(self) -> list[tf.Tensor]:
        """The statistics before the forward pass; no copy is made unless they change."""
        return [weight.read_value() for weight in self.statistics]

    def apply(
        self, gradients: Sequence[tf.Tensor], loss: tf.Tensor, lr: tf.Tensor, before: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        """In a graph: apply the gradients, or restore the statistics `before`; a bool scalar, whether they were applied.

        Gradients and loss are means over the ranks. Under float16 gradients overflow every now and then, which
        LossScaleOptimizer handles; only the loss counts.
        """
        finite = all_finite([loss] if isinstance(self.optimizer, LossScaleOptimizer) else [loss, *gradients])

        def accept() -> tf.Tensor:
            self.optimizer.apply(gradients, lr)
            return finite

        def refuse() -> tf.Tensor:
            for weight, value in zip(self.statistics, before, strict=True):
                weight.assign(value)
            return finite

        return tf.cond(finite, accept, refuse)


class NanHandler:
    """on_nan around the loop. Every rank calls the same methods in the same order."""

    def __init__(self, run: Run, out: Path, plan: Plan, state: TrainState, log: RunLog) -> None:
        self.run, self.out, self.plan, self.state, self.log = run, out, plan, state, log
        self.policy = run.on_nan.policy

    def count_skipped(self, reading: Reading) -> dict[str, float | None]:
        """Count and report skipped updates; the metric. Raises UserError for more than on_nan.max_skips in all."""
        if self.policy is not NanPolicy.skip:
            return {}
        steps, limit = reading.skipped, self.run.on_nan.max_skips
        progress = self.state.progress = replace(self.state.progress, skipped=self.state.progress.skipped + len(steps))
        if steps:
            listed = ", ".join(str(step + 1) for step in steps[:8]) + (", ..." if len(steps) > 8 else "")
            line = f"step {listed}: loss or gradients not finite, update skipped; {progress.skipped} in all (on_nan.policy=skip)"
            if progress.skipped > limit:
                raise UserError(
                    f"{line}, and on_nan.max_skips={limit}; lower optim.lr={self.run.optim.lr:g} in another out=, "
                    "or resume this run with on_nan.policy=rollback"
                )
            self.log.say(line)
        return {"train/skipped": progress.skipped}

    def roll_back(self, error: NotFinite, checkpoints: CheckpointWriter) -> None:
        """Restore the newest good checkpoint, with a lower learning rate. Raises UserError if the policy does not allow it."""
        state, limit = self.state, self.run.on_nan.max_rollbacks
        checkpoints.wait()
        if self.policy is not NanPolicy.rollback or state.progress.rollbacks >= limit:
            raise self.as_user_error(error) from None
        primary = state.ranks.primary
        saved, notes = checkpoint.restore(self.out, state.trackable) if primary else (None, [])
        if (saved := state.ranks.broadcast_object(saved)) is None:
            raise self.as_user_error(error) from None
        state.ranks.broadcast_variables(state.variables)
        progress = Progress(**saved.state).rolled_back(self.run.on_nan.lr_factor)
        if primary:
            saved = checkpoint.amend(saved, saved.top1, progress)  # so that a later start knows of it
        state.step, state.progress, state.saved = saved.step, progress, saved
        scale = f"{progress.lr_scale:g} times the learning rate"
        count = f"{progress.rollbacks} of at most {limit}"
        for line in (*notes, f"{error}; back at step {saved.step}, with {scale} (on_nan.policy=rollback, {count})"):
            self.log.say(line)
        self.log.metrics(saved.step, {"train/rollbacks": progress.rollbacks, "train/lr_scale": progress.lr_scale})

    def as_user_error(self, error: NotFinite) -> UserError:
        """The error that ends the run: step, learning rate, the last checkpoint and what to do."""
        run, saved, progress = self.run, self.state.saved, self.state.progress
        lr = float(self.plan.lr(error.step)) * progress.lr_scale
        last = f"the last good checkpoint is {saved.path}" if saved else "no checkpoint was written yet"
        more = f"on_nan.max_rollbacks={max(1, 2 * run.on_nan.max_rollbacks)}, after {progress.rollbacks} rollbacks"
        way = more if self.policy is NanPolicy.rollback else "on_nan.policy=rollback"
        return UserError(
            f"{error} at lr {lr:.6g}; {last}; lower optim.lr={run.optim.lr:g} or lengthen schedule.warmup_epochs="
            f"{run.schedule.warmup_epochs:g}, in another out=, or resume this run with {way}"
        )
