"""What a run trains: the network, its optimizer and the average of its weights, the same on every rank."""

from __future__ import annotations

import functools
import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from resnet.config.cluster import Cluster, Device
from resnet.config.dtype import Policy
from resnet.config.run import Run
from resnet.distributed import device
from resnet.distributed.ranks import Ranks
from resnet.model import resnet, weights
from resnet.model.norm import RowNorm
from resnet.optim import optimizers
from resnet.optim.ema import Ema
from resnet.optim.loss_scale import LossScaleOptimizer
from resnet.rundir import stamp
from resnet.training import checkpoint, evaluation


@dataclass(frozen=True, eq=False)
class Learner:
    """`stored` is what a checkpoint holds, `state` all of its variables, `statistics` those that each rank has of its own."""

    network: Any
    optimizer: Any
    average: Ema | None
    stored: Any
    evaluate: Any  # the compiled step of an evaluation: scores.step

    @property
    def networks(self) -> list[Any]:
        """The network, and that of the averaged weights where there is one."""
        return [self.network, *([self.average.mean] if self.average else [])]

    @property
    def state(self) -> list[Any]:
        """Every variable that training changes."""
        return [*self.network.weights, *self.optimizer.state, *(self.average.mean.weights if self.average else ())]

    @property
    def statistics(self) -> list[Any]:
        """Batch norm's moving statistics."""
        return [weight for network in self.networks for weight in network.non_trainable_weights]


def batch_norm_class(cluster: Cluster, ranks: Ranks) -> Any:
    """The batch norm layer: Keras's, by rows on a CPU, or Horovod's with statistics over all ranks.

    Horovod's moving variance is that of the batch; Keras's fused kernel multiplies it by N / (N - 1). So one rank with
    cluster.sync_batch_norm=true is not fused.
    """
    if not cluster.sync_batch_norm:
        return RowNorm if cluster.device is Device.cpu else tf.keras.layers.BatchNormalization
    if ranks.hvd is None:
        return functools.partial(tf.keras.layers.BatchNormalization, fused=False)
    return ranks.hvd.SyncBatchNormalization


def build(run: Run, ranks: Ranks) -> Learner:
    """As `run` says, on the device, with new weights."""
    with device.device_scope(run.cluster):
        batch_norm, amx = batch_norm_class(run.cluster, ranks), device.uses_amx(run.cluster, run.dtype)
        made = (run.model, run.data.classes, run.dtype.policy.value, batch_norm, amx)
        network = resnet.build(*made)
        resnet.freeze(network, run.finetune.freeze)
        factors = resnet.lr_factors(network, run.finetune.lr_multipliers or {})
        optimizer: Any = optimizers.build(run.optim, network.trainable_variables, factors)
        if run.dtype.policy is Policy.mixed_float16:
            optimizer = LossScaleOptimizer(optimizer)
        average = Ema(network, resnet.build(*made)) if run.ema.on else None
        mean = average.mean if average else None
        stored = checkpoint.trackable(network, optimizer, mean)
        return Learner(network, optimizer, average, stored, evaluation.step(network, mean, run.data))


def begin(learner: Learner, run: Run, out: Path, ranks: Ranks) -> tuple[checkpoint.Saved | None, list[str]]:
    """Give every rank the weights to go on from: the newest good checkpoint's, else those of init=, else its own.

    Returns that checkpoint, and what is to be told. Raises UserError for weights that do not fit.
    """
    first = ranks.rank == 0
    saved, notes = checkpoint.restore(out, learner.stored) if first else (None, [])
    if first and run.init and not saved:
        notes += weights.load_into(learner.network, weights.read(run.init), run.init)
    saved = ranks.broadcast_object(saved)
    if learner.average and not saved:
        learner.average.start()
    ranks.broadcast_variables(learner.state)
    return saved, notes


@dataclass(frozen=True)
class Progress:
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

    def judged(self, scores: Any, done: int, averaged: Any = None) -> Progress:
        """After an evaluation (`scores.Scores`) of the weights after `done` updates, and of their average."""
        top1 = (averaged or scores).top1
        best = top1 if self.best_top1 is None else max(self.best_top1, top1)
        return replace(
            self, best_top1=best, scores=asdict(scores), averaged=averaged and asdict(averaged), scored_at=done
        )

    def timed(self, seconds: float, images: int, speeds: list[float]) -> Progress:
        """After so many more seconds of training."""
        speeds = [*self.speeds, *speeds][-1000:]
        return replace(self, seconds=self.seconds + seconds, images=self.images + images, speeds=tuple(speeds))

    def rolled_back(self, lr_factor: float) -> Progress:
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


def summary(
    run: Run, standing: Progress, done: int, epochs: float, minutes: float, mark: str, to_train: float | None = None
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
