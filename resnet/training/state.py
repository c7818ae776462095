"""Everything that a run changes: the network, its optimizer, the averaged weights, the step and the progress beside them."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet import rundir
from resnet.config.model import Policy
from resnet.config.run import Run
from resnet.distributed import device
from resnet.distributed.ranks import Ranks
from resnet.model import resnet
from resnet.model.norm import batch_norm_class
from resnet.optim import layer_decay, optimizers
from resnet.optim.ema import Ema
from resnet.optim.loss_scale import LossScaleOptimizer, all_finite
from resnet.training import checkpoint, trained
from resnet.training.checkpoint import CheckpointWriter, Saved
from resnet.training.evaluation import EvalResult
from resnet.training.meter import NotFinite


@dataclass(frozen=True)
class Progress:
    """Stored in every checkpoint, so that a resumed run ends with the figures of all its starts."""

    best_top1: float | None = None
    scores: dict[str, Any] | None = None  # of the newest evaluation: top1, top5, loss, seen
    averaged: dict[str, Any] | None = None  # the same of the averaged weights, if any
    scored_at: int | None = None  # the step of that evaluation
    seconds: float = 0.0  # of training alone: no evaluation, no checkpoint, no first iteration
    images: int = 0  # trained on in those seconds
    speeds: tuple[float, ...] = field(default=())  # images/s between two readings, the newest thousand
    minutes: float = 0.0  # wall-clock time of all starts
    skipped: int = 0  # updates skipped (on_nan.policy=skip)
    rollbacks: int = 0  # on_nan.policy=rollback
    lr_scale: float = 1.0  # factor on the schedule's learning rate, lowered by rollbacks

    def record_evaluation(self, step: int, result: EvalResult, averaged: EvalResult | None = None) -> Progress:
        """With the evaluation of the weights at `step`, and of their average."""
        top1 = (averaged or result).top1
        best = top1 if self.best_top1 is None else max(self.best_top1, top1)
        average = averaged.as_dict() if averaged else None
        return replace(self, best_top1=best, scores=result.as_dict(), averaged=average, scored_at=step)

    def add_time(self, seconds: float, images: int, speeds: list[float]) -> Progress:
        """With more training time; arguments as `Meter.take` returns them."""
        newest = [*self.speeds, *speeds][-1000:]
        return replace(self, seconds=self.seconds + seconds, images=self.images + images, speeds=tuple(newest))

    def rolled_back(self, lr_factor: float) -> Progress:
        """After one more rollback, which lowers the learning rate by `lr_factor`."""
        return replace(self, rollbacks=self.rollbacks + 1, lr_scale=self.lr_scale * lr_factor)

    def top1(self, step: int) -> float | None:
        """Top-1 of the weights at `step`, of their average if there is one; None if they were not evaluated."""
        scores = self.averaged or self.scores
        return scores["top1"] if scores and self.scored_at == step else None

    def reached(self, stop_at_top1: float | None, step: int) -> bool:
        top1 = self.top1(step)
        return stop_at_top1 is not None and top1 is not None and top1 >= stop_at_top1


class TrainState:
    """The variables and the progress of a run; the same on every rank."""

    def __init__(self, run: Run, ranks: Ranks, started: float | None = None) -> None:
        """New weights on the device, at step 0. `started` is the time.monotonic() at which the run started."""
        self.run, self.ranks = run, ranks
        self.started = time.monotonic() if started is None else started
        self.step, self.progress, self.earlier_minutes = 0, Progress(), 0.0
        self.saved: Saved | None = None  # the newest checkpoint
        with device.device_scope(run.cluster):
            batch_norm, amx = batch_norm_class(run.cluster, ranks.hvd), device.uses_amx(run.cluster, run.dtype)
            settings = (run.model, run.data.classes, run.dtype.policy.value, batch_norm, amx)
            self.network = resnet.build(*settings)
            resnet.freeze(self.network, run.finetune.freeze)
            factors = resnet.lr_factors(self.network, run.finetune.lr_multipliers or {})
            if run.finetune.layer_decay is not None:
                decays = layer_decay.factors(self.network, run.finetune.layer_decay)
                factors = [one * other for one, other in zip(factors, decays, strict=True)]
            optimizer = optimizers.build(run.optim, self.network.trainable_variables, factors)
            scaled = run.dtype.policy is Policy.mixed_float16
            self.optimizer = LossScaleOptimizer(optimizer) if scaled else optimizer
            self.ema = Ema(self.network, resnet.build(*settings)) if run.ema.on else None
        average = {"average": self.ema.mean} if self.ema else {}
        self.trackable = tf.train.Checkpoint(network=self.network, optimizer=self.optimizer, **average)

    @property
    def networks(self) -> list[tf.keras.Model]:
        """The network, and that of the averaged weights if there is one."""
        return [self.network, *([self.ema.mean] if self.ema else [])]

    @property
    def variables(self) -> list[tf.Variable]:
        return [*self.network.weights, *self.optimizer.state, *(self.ema.mean.weights if self.ema else ())]

    def restore(self, out: Path) -> list[str]:
        """Give every rank the newest good checkpoint of `out`, else the weights of init=, else those of rank 0; returns notes.

        Raises UserError for weights that do not fit.
        """
        notes: list[str] = []
        if self.ranks.primary:
            self.saved, notes = checkpoint.restore(out, self.trackable)
            if self.run.init and not self.saved:
                notes += trained.initialize(self.network, self.run)
        self.saved = self.ranks.broadcast_object(self.saved)
        if self.saved:
            self.step, self.progress = self.saved.step, Progress(**self.saved.state)
            self.earlier_minutes = self.progress.minutes
        elif self.ema:
            self.ema.start()
        self.ranks.broadcast_variables(self.variables)
        self.restore_statistics()
        return notes

    def restore_statistics(self) -> None:
        """Give this rank its own moving statistics, if the checkpoint has them for as many ranks as there are now."""
        by_rank = self.ranks.broadcast_object(checkpoint.read_statistics(self.saved) if self.ranks.primary else None)
        if by_rank is not None and by_rank.shape == (self.ranks.size, sum(v.shape[0] for v in self.statistics)):
            at = 0
            for variable in self.statistics:
                variable.assign(by_rank[self.ranks.rank, at : at + variable.shape[0]])
                at += variable.shape[0]

    def save(self, checkpoints: CheckpointWriter, by_rank: NDArray[np.float32] | None = None) -> None:
        """Have rank 0 write a checkpoint of the weights as they are.

        `by_rank` are the moving statistics before their average, if a signal asked for the save: an undisturbed run would not
        have averaged them at this step, and a resumed run takes them back.
        """
        self.record_time()
        if self.ranks.primary:
            self.saved = checkpoints.save(self.step, self.top1, self.progress, by_rank)
        else:
            self.saved = Saved(checkpoint.path_of(checkpoints.out, self.step), self.step, self.top1, {})

    def amend(self) -> None:
        """Have rank 0 replace the progress in the checkpoint that was restored."""
        if self.ranks.primary and self.saved:
            self.saved = checkpoint.amend(self.saved, self.top1, self.progress)

    @property
    def statistics(self) -> list[tf.Variable]:
        """Batch norm's moving means and variances, float32 [C] each; each rank updates its own from its own images."""
        layers = [layer for network in self.networks for layer in network.layers]
        return [
            part
            for layer in layers
            if hasattr(layer, "moving_mean")
            for part in (layer.moving_mean, layer.moving_variance)
        ]

    def average_statistics(self) -> NDArray[np.float32] | None:
        """Average the moving statistics over the ranks; returns those before, [ranks, n], or None with one rank."""
        if self.ranks.size == 1:
            return None
        by_rank = self.ranks.allgather(np.concatenate([variable.numpy() for variable in self.statistics]))
        self.ranks.average_variables(self.statistics)
        return by_rank

    def assert_finite(self) -> None:
        """Raise NotFinite unless every variable is finite: no checkpoint is written of others."""
        if not self.all_finite():
            raise NotFinite(self.step - 1, "the loss is finite, and the weights after it are not")

    @tf.function(autograph=False)
    def all_finite(self) -> tf.Tensor:
        """In a graph: whether every variable is finite."""
        return all_finite(variable for variable in self.variables if variable.dtype.is_floating)

    @property
    def top1(self) -> float | None:
        """Top-1 of the weights as they are; None if they were not evaluated."""
        return self.progress.top1(self.step)

    @property
    def evaluated(self) -> bool:
        return self.progress.scored_at == self.step

    def reached(self, stop_at_top1: float | None) -> bool:
        return self.progress.reached(stop_at_top1, self.step)

    def record_time(self) -> None:
        """Set `progress.minutes` to the wall-clock time of this start and those before it."""
        minutes = self.earlier_minutes + (time.monotonic() - self.started) / 60
        self.progress = replace(self.progress, minutes=minutes)


def metrics(prefix: str, result: EvalResult | None) -> dict[str, float]:
    """Metrics of an evaluation by their names in MLflow: prefix `eval` for the weights, `ema` for their average."""
    return {f"{prefix}/{name}": getattr(result, name) for name in ("top1", "top5", "loss")} if result else {}


def summary(state: TrainState, epochs: float, fingerprint: str, to_train: float | None = None) -> dict[str, Any]:
    """The content of result.json, metrics by their names in MLflow. `fingerprint` tells later starts what the run was.

    `to_train` is MLPerf's time to train in minutes, if it was measured.
    """
    progress, run = state.progress, state.run
    scores, averaged = ((state.evaluated and part) or {} for part in (progress.scores, progress.averaged))
    return {
        "status": "stopped at top-1" if state.reached(run.stop_at_top1) else "finished",
        "fingerprint": fingerprint,
        **rundir.versions(),
        "steps": state.step,
        "epochs": epochs,
        "eval/top1": scores.get("top1"),
        "eval/top5": scores.get("top5"),
        "eval/loss": scores.get("loss"),
        **{f"ema/{name}": averaged[name] for name in ("top1", "top5", "loss") if averaged},
        "best/top1": progress.best_top1,
        "final/top1": state.top1,
        # The published tables' definition: the mean over all iterations but the first.
        "final/images_per_s": progress.images / progress.seconds if progress.seconds else None,
        "final/images_per_s_median": statistics.median(progress.speeds) if progress.speeds else None,
        "final/training_minutes": progress.seconds / 60,
        "final/minutes": progress.minutes,  # of all starts: each from its first line to its newest checkpoint
        **({} if to_train is None else {"final/time_to_train_minutes": to_train}),
        "out": run.out,
    }
