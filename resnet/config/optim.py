"""Optimizers: conf/optim/."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from resnet.config.checks import MISSING, check_range


@dataclass
class Optim:
    """What every optimizer has. Decay is added to the gradient once: g + weight_decay * w."""

    name: str = MISSING
    lr: float = MISSING  # type: ignore[assignment]  # peak, after warm-up
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        check_range("optim.lr", self.lr, 0, math.inf)
        check_range("optim.momentum", self.momentum, 0, 1)
        check_range("optim.weight_decay", self.weight_decay, 0, math.inf)


@dataclass
class Sgd(Optim):
    """Momentum SGD; decay on all but batch-norm gamma and beta."""

    name: str = "sgd"
    nesterov: bool = False


@dataclass
class LarsRow:
    """LARS settings for global batches up to and including `up_to` (null: any)."""

    up_to: int | None = MISSING  # type: ignore[assignment]
    lr: float = MISSING  # type: ignore[assignment]
    warmup_epochs: float = MISSING  # type: ignore[assignment]
    weight_decay: float = MISSING  # type: ignore[assignment]
    epochs: float = MISSING  # type: ignore[assignment]
    horizon_epochs: float | None = None  # where the curve ends; null: with the epochs
    source: str = MISSING


@dataclass
class Lars(Optim):
    """Layer-wise scaled momentum, arXiv:1708.03888; batch-norm gamma, beta and biases are neither scaled nor decayed."""

    name: str = "lars"
    trust_coefficient: float = 0.001
    epsilon: float = 0.0
    rows: list[LarsRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("optim.trust_coefficient", self.trust_coefficient, 0, math.inf, open_low=True)
        check_range("optim.epsilon", self.epsilon, 0, math.inf)
