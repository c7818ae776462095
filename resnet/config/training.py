"""Augmentation, conf/augment/; EMA, progressive resizing, fine-tuning and the NaN policy, which conf/ has no options for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from resnet.config.checks import Settings, check


class ErasingMode(Enum):
    """What erased pixels become: the mean of the data set, or normal noise."""

    const = "const"
    pixel = "pixel"


class Resampling(Enum):
    """Of the pixels of a turned, sheared or moved image; random: bilinear or bicubic, one of the two for each operation."""

    nearest = "nearest"
    bilinear = "bilinear"
    bicubic = "bicubic"
    random = "random"


@dataclass
class Augment(Settings):
    """Augmentation of single images, beyond the crop and the mirror image that data.* describes. See docs/augmentation.md."""

    GROUP = "augment."
    name: str = "none"
    # Largest change of brightness, contrast, saturation and hue, as of torchvision's ColorJitter, such as [0.4,0.4,0.4,0.1]
    color_jitter: list[float] | None = None
    repeats: int = 1  # times that each image is in a row in an epoch, augmented anew (arXiv:1901.09335)
    erasing: float = 0.0  # probability that a random rectangle of an image is erased (arXiv:1708.04896)
    erasing_mode: ErasingMode = ErasingMode.const  # pixel: normal noise in place of the mean

    @property
    def changes_pixels(self) -> bool:
        """Whether the pixels of an image are changed on the host."""
        return self.name != "none" or self.color_jitter is not None

    def __post_init__(self) -> None:
        jitter = self.color_jitter
        if jitter is not None:
            four = len(jitter) == 4 and all(0 <= part < math.inf for part in jitter) and jitter[3] <= 0.5
            way_out = "give four numbers, at least 0, the last (hue) at most 0.5, such as [0.4,0.4,0.4,0.1]"
            self.check("color_jitter", four and any(jitter), way_out)
        self.check_above(0, "repeats")
        self.check_at_most(1000, "repeats")
        self.check("erasing", 0 <= self.erasing <= 1, "must be a probability, from 0 to 1")
        used = self.erasing > 0 or self.erasing_mode is ErasingMode.const
        self.check("erasing_mode", used, "changes nothing while augment.erasing=0; give its probability, such as 0.1")


TIMM = re.compile(
    r"rand(-(m(?P<m>\d+)|n(?P<n>\d+)|p(?P<p>\d*\.?\d+)|mstd(?P<mstd>\d*\.?\d+)|mmax(?P<mmax>\d+)|inc(?P<inc>[01])))*"
)


@dataclass
class TimmConfig:
    """timm's RandAugment: `num_ops` operations, each applied with `prob`, its magnitude from N(magnitude, std) in [0, most]."""

    num_ops: int = 2
    magnitude: float = 10.0
    std: float = 0.0  # above 100: uniform in [0, magnitude]
    most: float = 10.0
    prob: float = 0.5
    increasing: bool = False  # operations whose effect grows with the magnitude


@dataclass
class RandAugment(Augment):
    """arXiv:1909.13719, by torchvision's knobs or by timm's string, which have operations and strengths of their own."""

    name: str = "randaugment"
    num_ops: int = 2
    magnitude: int = 9  # the bin of their strength
    num_magnitude_bins: int = 31
    timm: str | None = None  # such as rand-m7-mstd0.5-inc1, in place of the three knobs above
    interpolation: Resampling | None = None  # null: nearest as torchvision, random as timm

    @property
    def timm_config(self) -> TimmConfig | None:
        """What timm's string says."""
        match = TIMM.fullmatch(self.timm or "")
        if not match:
            return None
        parts = {name: float(value) for name, value in match.groupdict().items() if value is not None}
        most = parts.get("mmax") or 10.0
        return TimmConfig(
            int(parts.get("n", 2)),
            parts.get("m", 10.0),
            parts.get("mstd", 0.0),
            most,
            parts.get("p", 0.5),
            parts.get("inc") == 1,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "num_ops")
        self.check_at_most(100, "num_ops")
        self.check_at_most(1000, "num_magnitude_bins")
        self.check("num_magnitude_bins", self.num_magnitude_bins > 1, "must be at least 2")
        most = self.num_magnitude_bins - 1
        self.check(
            "magnitude", 0 <= self.magnitude <= most, f"must be a bin, 0 to {most} (augment.num_magnitude_bins - 1)"
        )
        if self.timm is None:
            return
        config = self.timm_config
        way_out = "give timm's parts m, n, p, mstd, mmax, inc, each with a number, such as rand-m7-mstd0.5-inc1"
        self.check("timm", config is not None, way_out)
        assert config
        self.check(
            "timm",
            config.magnitude <= config.most,
            f"its magnitude is above {config.most:g}; add -mmax{config.magnitude:g}",
        )
        self.check("timm", config.prob <= 1, "p is a probability, at most 1")
        self.check("timm", 0 < config.num_ops <= 100, "n must be 1 to 100")
        own = (self.num_ops, self.magnitude, self.num_magnitude_bins) == (2, 9, 31)
        self.check("timm", own, "says it already; leave out augment.num_ops, magnitude and num_magnitude_bins")


@dataclass
class TrivialAugment(Augment):
    """arXiv:2103.10158: one operation of torchvision's list at a strength uniform over the bins of its wide ranges."""

    name: str = "trivialaugment"
    num_magnitude_bins: int = 31
    interpolation: Resampling | None = None  # null: nearest, as torchvision

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_most(1000, "num_magnitude_bins")
        self.check("num_magnitude_bins", self.num_magnitude_bins > 1, "must be at least 2")


class EmaStart(Enum):
    """How the average starts: with a decay that rises to the full one, or as a copy of the weights."""

    rise = "rise"
    copy = "copy"


@dataclass
class Ema(Settings):
    """Exponential moving average of all weights, evaluated and saved beside them; off while the first three are null.

    Published +0.25 in short schedules (MosaicML, Methodology of ResNet-50 recipes, 2022).
    """

    GROUP = "ema."
    decay: float | None = None  # decay of the average over one step
    half_life_steps: float | None = None  # the same, as the steps after which a weight's share has halved
    # --model-ema-decay of torchvision's train.py: decay of an update is 1 - (1 - this) * batch * every_steps / epochs
    torchvision_decay: float | None = None
    every_steps: int = 10  # an update so often, by decay ** every_steps
    # rise: decay at most (1 + step) / (10 + step); copy: the weights themselves to the end of the warm-up, as torchvision
    start: EmaStart = EmaStart.rise

    @property
    def on(self) -> bool:
        """Whether there is an average at all."""
        return not self.decay is self.half_life_steps is self.torchvision_decay is None

    @property
    def per_step(self) -> float:
        """Decay over one step, by the first two knobs."""
        return self.decay if self.decay is not None else 0.5 ** (1 / (self.half_life_steps or math.inf))

    def __post_init__(self) -> None:
        way_out = f"ema.half_life_steps={self.half_life_steps} says it already; give one of the two"
        self.check("decay", self.decay is None or self.half_life_steps is None, way_out)
        alone = self.torchvision_decay is None or self.decay is self.half_life_steps is None
        self.check("torchvision_decay", alone, "give it, or ema.decay, or ema.half_life_steps, and no two of them")
        self.check_above(0, "decay", "torchvision_decay", below=1)
        self.check_above(0, "half_life_steps", "every_steps")
        way_out = "there is no average; add ema.decay, ema.half_life_steps or ema.torchvision_decay"
        check(self.on or self.start is EmaStart.rise, "ema.start", self.start.name, way_out)


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
    # times this for each block further from the head: 1 for the head, 0.75 for the last block, 0.75^2 for the one before
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        self.check(
            "layer_decay", self.layer_decay is None or 0 < self.layer_decay <= 1, "must be above 0 and at most 1"
        )
        way_out = "changes nothing where only the head is trained (finetune.freeze=head); leave one of the two out"
        self.check("layer_decay", self.layer_decay is None or self.freeze != "head", way_out)
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
