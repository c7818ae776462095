"""Knobs that conf/ has no options for: averaged weights, growing crops, fine-tuning, what is not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from resnet.config.checks import check, check_range


@dataclass
class Ema:
    """Exponential moving average of all weights, evaluated and kept beside them; off while both of the first are null.

    Published +0.25 in short schedules (MosaicML, Methodology of ResNet-50 recipes, 2022).
    """

    decay: float | None = None  # what the average keeps of itself at a step
    half_life_steps: float | None = None  # the same, as the steps after which a weight's share has halved
    every_steps: int = 10  # an update so often, by decay ** every_steps

    @property
    def on(self) -> bool:
        """Whether there is an average at all."""
        return self.decay is not None or self.half_life_steps is not None

    @property
    def kept(self) -> float:
        """What the average keeps of itself over one step."""
        return self.decay if self.decay is not None else 0.5 ** (1 / (self.half_life_steps or math.inf))

    def __post_init__(self) -> None:
        check(
            self.decay is None or self.half_life_steps is None,
            "ema.decay",
            self.decay,
            f"ema.half_life_steps={self.half_life_steps} says it already; give one of the two",
        )
        if self.decay is not None:
            check_range("ema.decay", self.decay, 0, 1, open_low=True)
        if self.half_life_steps is not None:
            check_range("ema.half_life_steps", self.half_life_steps, 0, math.inf, open_low=True)
        check(self.every_steps > 0, "ema.every_steps", self.every_steps, "must be above 0")


@dataclass
class Progressive:
    """Training crops that grow by epochs from `start_size` to the size of the others; off while that is null.

    arXiv:2104.00298 sec. 4; published: 160 to 192 px, 30 % less time at equal top-1 (FFCV, MosaicML).
    """

    start_size: int | None = None  # side of the training crops at first, pixels
    start_epochs: float = 0.0  # where the growth begins
    end_epochs: float = 0.0  # and where it is done
    multiple: int = 32  # sizes are multiples of it: a graph is compiled for each

    def __post_init__(self) -> None:
        check(self.multiple > 0, "progressive.multiple", self.multiple, "must be above 0")
        check_range("progressive.start_epochs", self.start_epochs, 0, math.inf)
        check_range("progressive.end_epochs", self.end_epochs, 0, math.inf)
        check(
            self.end_epochs >= self.start_epochs,
            "progressive.end_epochs",
            self.end_epochs,
            f"must be at least progressive.start_epochs={self.start_epochs:g}",
        )
        size, multiple = self.start_size, self.multiple
        check(
            size is None or self.end_epochs > 0,
            "progressive.end_epochs",
            self.end_epochs,
            f"the crops would never be of progressive.start_size={size}; give the epoch they are full-grown in",
        )
        check(
            size is None or (size >= 8 and size % multiple == 0),
            "progressive.start_size",
            size,
            f"must be a multiple of progressive.multiple={multiple}, of at least 8 pixels",
        )


@dataclass
class Finetune:
    """What of the network is trained, and how fast, by the names of its layers (conv1, bn1, layer1.0.conv1, ..., fc)."""

    # head: the head alone is trained; a list, as in [conv1,bn1,layer1]: these stand still, their batch norm too; or none
    freeze: Any = "none"
    # by the longest name that fits, as in {layer4: 0.5, fc: 10}; 1 for the others
    lr_multipliers: Any = None

    def __post_init__(self) -> None:
        names = isinstance(self.freeze, list) and all(isinstance(name, str) and name for name in self.freeze)
        check(
            names or self.freeze in ("none", "head"),
            "finetune.freeze",
            self.freeze,
            "must be none, head (only the head is trained) or a list of layers' names, such as [conv1,bn1,layer1]",
        )
        factors = self.lr_multipliers or {}
        check(
            isinstance(factors, dict),
            "finetune.lr_multipliers",
            factors,
            "must be factors by layers' names, such as {layer4: 0.5, fc: 10}",
        )
        for name, factor in factors.items():
            number = isinstance(factor, (int, float)) and not isinstance(factor, bool) and 0 <= factor < math.inf
            check(number, f"finetune.lr_multipliers.{name}", factor, "must be a number, at least 0")


class NanPolicy(Enum):
    """What a step whose loss or gradients are not finite does to a run: end it, change nothing, or send it back."""

    stop = "stop"
    skip = "skip"
    rollback = "rollback"


@dataclass
class OnNan:
    """What becomes of a run whose loss or gradients are not finite. It may change when a run goes on."""

    # skip: leave out that step's update; rollback: go on from the newest checkpoint with a lower learning rate
    policy: NanPolicy = NanPolicy.stop
    max_skips: int = 100  # updates left out, in all; one more ends the run
    max_rollbacks: int = 3  # in all; one more ends the run
    lr_factor: float = 0.5  # of the learning rate, at every rollback, from there to the end

    def __post_init__(self) -> None:
        check(self.max_skips >= 0, "on_nan.max_skips", self.max_skips, "must be at least 0")
        check(self.max_rollbacks >= 0, "on_nan.max_rollbacks", self.max_rollbacks, "must be at least 0")
        check(0 < self.lr_factor <= 1, "on_nan.lr_factor", self.lr_factor, "must be above 0 and at most 1")
