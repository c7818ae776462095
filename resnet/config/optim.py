"""Optimizers: conf/optim/. Weight decay is added to the gradient: g + weight_decay * w."""

from __future__ import annotations

from dataclasses import dataclass, field

from resnet.config.checks import MISSING, Settings


@dataclass
class Optim(Settings):
    GROUP = "optim."
    name: str = MISSING
    lr: float = MISSING  # peak, after warm-up
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        self.check_at_least(0, "lr", "weight_decay")
        self.check_at_least(0, "momentum", below=1)


@dataclass
class Sgd(Optim):
    """Momentum SGD; decay on all but batch-norm gamma and beta."""

    name: str = "sgd"
    nesterov: bool = False


@dataclass
class LarsRow:
    """LARS settings for global batches up to and including `up_to` (null: any)."""

    up_to: int | None = MISSING
    lr: float = MISSING
    warmup_epochs: float = MISSING
    weight_decay: float = MISSING
    epochs: float = MISSING
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
        self.check_above(0, "trust_coefficient")
        self.check_at_least(0, "epsilon")
