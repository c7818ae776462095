"""EMA, progressive resizing, fine-tuning and the NaN policy: knobs that conf/ has no options for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from resnet.config.checks import Settings, check


@dataclass
class Ema(Settings):
    """Exponential moving average of all weights, evaluated and saved beside them; off while the first two are null.

    Published +0.25 in short schedules (MosaicML, Methodology of ResNet-50 recipes, 2022).
    """

    GROUP = "ema."
    decay: float | None = None  # decay of the average over one step
    half_life_steps: float | None = None  # the same, as the steps after which a weight's share has halved
    every_steps: int = 10  # an update so often, by decay ** every_steps

    @property
    def on(self) -> bool:
        """Whether there is an average at all."""
        return self.decay is not None or self.half_life_steps is not None

    @property
    def per_step(self) -> float:
        """Decay over one step."""
        return self.decay if self.decay is not None else 0.5 ** (1 / (self.half_life_steps or math.inf))

    def __post_init__(self) -> None:
        way_out = f"ema.half_life_steps={self.half_life_steps} says it already; give one of the two"
        self.check("decay", self.decay is None or self.half_life_steps is None, way_out)
        self.check_above(0, "decay", below=1)
        self.check_above(0, "half_life_steps", "every_steps")


class ErasingMode(Enum):
    """What erased pixels become: the mean of the data set, or normal noise."""

    const = "const"
    pixel = "pixel"


@dataclass
class Augment(Settings):
    """Augmentation of single images."""

    GROUP = "augment."
    erasing: float = 0.0  # probability that a random rectangle of an image is erased (arXiv:1708.04896)
    erasing_mode: ErasingMode = ErasingMode.const  # pixel: normal noise in place of the mean

    def __post_init__(self) -> None:
        self.check("erasing", 0 <= self.erasing <= 1, "must be a probability, from 0 to 1")
        used = self.erasing > 0 or self.erasing_mode is ErasingMode.const
        self.check("erasing_mode", used, "changes nothing while augment.erasing=0; give its probability, such as 0.1")


@dataclass
class Progressive(Settings):
    """Training crops that grow by epochs from `start_size` to the size of the others; off while that is null.

    arXiv:2104.00298 sec. 4; published: 160 to 192 px, 30 % less time at equal top-1 (FFCV, MosaicML).
    """

    GROUP = "progressive."
    start_size: int | None = None  # side of the training crops at first, pixels
    start_epochs: float = 0.0  # where the growth starts
    end_epochs: float = 0.0  # and where it is done
    multiple: int = 32  # sizes are multiples of it: a graph is compiled for each

    def __post_init__(self) -> None:
        size, multiple = self.start_size, self.multiple
        self.check_above(0, "multiple")
        self.check_at_least(0, "start_epochs", "end_epochs")
        later = self.end_epochs >= self.start_epochs
        self.check("end_epochs", later, f"must be at least progressive.start_epochs={self.start_epochs:g}")
        way_out = f"the crops would never be of progressive.start_size={size}; give the epoch they are full-grown in"
        self.check("end_epochs", size is None or self.end_epochs > 0, way_out)
        way_out = f"must be a multiple of progressive.multiple={multiple}, of at least 8 pixels"
        self.check("start_size", size is None or (size >= 8 and size % multiple == 0), way_out)


@dataclass
class Finetune(Settings):
    """What of the network is trained, and how fast, by the names of its layers (conv1, bn1, layer1.0.conv1, ..., fc)."""

    GROUP = "finetune."
    # head: the head alone is trained; a list, as in [conv1,bn1,layer1]: these are frozen, their batch norm too; or none
    freeze: Any = "none"
    # by the longest name that fits, as in {layer4: 0.5, fc: 10}; 1 for the others
    lr_multipliers: Any = None

    def __post_init__(self) -> None:
        names = isinstance(self.freeze, list) and all(isinstance(name, str) and name for name in self.freeze)
        way_out = "must be none, head (only the head is trained) or a list of layers' names, such as [conv1,bn1,layer1]"
        self.check("freeze", names or self.freeze in ("none", "head"), way_out)
        factors = self.lr_multipliers or {}
        way_out = "must be factors by layers' names, such as {layer4: 0.5, fc: 10}"
        self.check("lr_multipliers", isinstance(factors, dict), way_out)
        for name, factor in factors.items():
            number = isinstance(factor, (int, float)) and not isinstance(factor, bool) and 0 <= factor < math.inf
            check(number, f"finetune.lr_multipliers.{name}", factor, "must be a number, at least 0")


class MixBy(Enum):
    """What has a method, a share and a box of its own in MixUp and CutMix."""

    batch = "batch"
    image = "image"


class Loss(Enum):
    """Softmax cross-entropy, or binary cross-entropy of each class."""

    softmax = "softmax"
    bce = "bce"


class NanPolicy(Enum):
    """What a run does after a step whose loss or gradients are not finite: end, skip the update, or go back."""

    stop = "stop"
    skip = "skip"
    rollback = "rollback"


@dataclass
class OnNan(Settings):
    """What becomes of a run whose loss or gradients are not finite. It may change when a run is resumed."""

    GROUP = "on_nan."
    # skip: leave out that step's update; rollback: resume from the newest checkpoint with a lower learning rate
    policy: NanPolicy = NanPolicy.stop
    max_skips: int = 100  # updates skipped, in all; one more ends the run
    max_rollbacks: int = 3  # in all; one more ends the run
    lr_factor: float = 0.5  # of the learning rate, at every rollback, from there to the end

    def __post_init__(self) -> None:
        self.check_at_least(0, "max_skips", "max_rollbacks")
        self.check("lr_factor", 0 < self.lr_factor <= 1, "must be above 0 and at most 1")
