"""How the learning rate moves: conf/schedule/."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from resnet.config.checks import MISSING, check, check_range


@dataclass
class Schedule:
    """How the learning rate moves; every schedule starts with a linear warm-up from 0 to optim.lr."""

    name: str = MISSING
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        check_range("schedule.warmup_epochs", self.warmup_epochs, 0, math.inf)


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
        rising = [self.warmup_epochs, *self.boundaries_epochs]
        check(
            rising == sorted(set(rising)) and all(map(math.isfinite, rising)),
            "schedule.boundaries_epochs",
            self.boundaries_epochs,
            f"must rise, from above schedule.warmup_epochs={self.warmup_epochs:g}",
        )
        check_range("schedule.factor", self.factor, 0, math.inf, open_low=True)


@dataclass
class Horizon(Schedule):
    """A curve that reaches its end at `horizon_epochs` (null: at the run's `epochs`)."""

    horizon_epochs: float | None = None
    end_lr: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("schedule.end_lr", self.end_lr, 0, math.inf)
        if self.horizon_epochs is not None:
            check(
                self.horizon_epochs > self.warmup_epochs,
                "schedule.horizon_epochs",
                self.horizon_epochs,
                f"must be above schedule.warmup_epochs={self.warmup_epochs:g}",
            )


@dataclass
class Polynomial(Horizon):
    """end + (peak - end) * (1 - progress) ** power."""

    name: str = "polynomial"
    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("schedule.power", self.power, 0, math.inf, open_low=True)


@dataclass
class Cosine(Horizon):
    """Half a cosine from the peak down to end_lr (arXiv:1608.03983, without restarts)."""

    name: str = "cosine"
