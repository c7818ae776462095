"""What a run trains: the network, its optimizer and the average of its weights, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet import checkpoint, device, model, optim, scores, weights
from resnet.average import Average
from resnet.config import Run
from resnet.guard import LossScaled
from resnet.settings.dtype import Policy


@dataclass(frozen=True, eq=False)
class Learner:
    """`stored` is what a checkpoint holds, `state` all of its variables, `statistics` those that each rank has of its own."""

    network: Any
    optimizer: Any
    average: Average | None
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


def build(run: Run, world: device.World) -> Learner:
    """As `run` says, on the device, with new weights."""
    with device.place(run.cluster):
        batch_norm, amx = device.norm(run.cluster, world.ranks), device.amx(run.cluster, run.dtype)
        made = (run.model, run.data.classes, run.dtype.policy.value, batch_norm, amx)
        network = model.build(*made)
        model.freeze(network, run.finetune.freeze)
        factors = model.lr_factors(network, run.finetune.lr_multipliers or {})
        optimizer: Any = optim.build(run.optim, network.trainable_variables, factors)
        if run.dtype.policy is Policy.mixed_float16:
            optimizer = LossScaled(optimizer)
        average = Average(network, model.build(*made)) if run.ema.on else None
        mean = average.mean if average else None
        stored = checkpoint.trackable(network, optimizer, mean)
        return Learner(network, optimizer, average, stored, scores.step(network, mean, run.data))


def begin(learner: Learner, run: Run, out: Path, world: device.World) -> tuple[checkpoint.Saved | None, list[str]]:
    """Give every rank the weights to go on from: the newest good checkpoint's, else those of init=, else its own.

    Returns that checkpoint, and what is to be told. Raises UserError for weights that do not fit.
    """
    first = world.rank == 0
    saved, notes = checkpoint.restore(out, learner.stored) if first else (None, [])
    if first and run.init and not saved:
        notes += weights.put(learner.network, weights.read(run.init), run.init)
    saved = world.told(saved)
    if learner.average and not saved:
        learner.average.start()
    world.share(learner.state)
    return saved, notes
