"""How the learning rate moves: conf/schedule/. Every schedule starts with a linear warm-up to optim.lr."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from resnet.config.checks import MISSING, Settings


@dataclass
class Schedule(Settings):
    GROUP = "schedule."
    name: str = MISSING
    warmup_epochs: float = 0.0
    warmup_start: float = 0.0  # the first learning rate, as a share of optim.lr (LinearLR's start_factor)

    def __post_init__(self) -> None:
        self.check_at_least(0, "warmup_epochs")
        self.check_at_least(0, "warmup_start", below=1)
        way_out = "there is no warm-up; add schedule.warmup_epochs, or use schedule.warmup_start=0"
        self.check("warmup_start", not self.warmup_start or self.warmup_epochs > 0, way_out)


@dataclass
class Constant(Schedule):
    """The peak for ever."""

    name: str = "constant"


@dataclass
class Piecewise(Schedule):
    """The peak times `factor` once more from each boundary on (arXiv:1706.02677 sec. 2.2)."""

    name: str = "piecewise"
    boundaries_epochs: list[float] = field(default_factory=lambda: [30.0, 60.0, 80.0])
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        epochs = [self.warmup_epochs, *self.boundaries_epochs]
        rising = epochs == sorted(set(epochs)) and all(map(math.isfinite, epochs))
        way_out = f"must rise, from above schedule.warmup_epochs={self.warmup_epochs:g}"
        self.check("boundaries_epochs", rising, way_out)
        self.check_above(0, "factor")


@dataclass
class Horizon(Schedule):
    """A curve that reaches its end at `horizon_epochs` (null: at the run's `epochs`), or `cooldown_epochs` earlier."""

    horizon_epochs: float | None = None
    end_lr: float = 0.0
    cooldown_epochs: float = 0.0  # epochs at end_lr, the last before the horizon

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(0, "end_lr", "cooldown_epochs")
        later = self.horizon_epochs is None or self.horizon_epochs > self.warmup_epochs
        self.check("horizon_epochs", later, f"must be above schedule.warmup_epochs={self.warmup_epochs:g}")


@dataclass
class Polynomial(Horizon):
    """end + (peak - end) * (1 - progress) ** power."""

    name: str = "polynomial"
    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "power")


@dataclass
class Linear(Horizon):
    """end + (peak - end) * (1 - progress)."""

    name: str = "linear"


@dataclass
class Cosine(Horizon):
    """Half a cosine from the peak down to end_lr (arXiv:1608.03983, without restarts)."""

    name: str = "cosine"


@dataclass
class Exponential(Schedule):
    """peak * decay_rate ** (epochs since the warm-up / decay_epochs), as TensorFlow's ExponentialDecay."""

    name: str = "exponential"
    decay_rate: float = 0.97
    decay_epochs: float = 2.4
    staircase: bool = False  # the exponent rounded down: one drop after every decay_epochs

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "decay_epochs")
        self.check("decay_rate", 0 < self.decay_rate <= 1, "must be above 0 and at most 1")
