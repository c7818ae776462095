"""Optimizers: conf/optim/."""

from __future__ import annotations

from dataclasses import dataclass, field

from resnet.config.checks import MISSING, Settings


@dataclass
class Optim(Settings):
    GROUP = "optim."
    name: str = MISSING
    lr: float = MISSING  # peak, after warm-up
    weight_decay: float = 1e-4
    decay_norm: bool = False  # decay batch norm's gamma and beta too
    decay_bias: bool = False  # decay biases too
    # scale the gradients of all variables, as one vector, down to this Euclidean norm if theirs is larger; null: never
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        self.check_at_least(0, "lr", "weight_decay")
        self.check_above(0, "clip_norm")
        way_out = "nothing is decayed with optim.weight_decay=0; leave it false"
        self.check("decay_norm", not self.decay_norm or self.weight_decay > 0, way_out)


@dataclass
class Momentum(Optim):
    """What has a velocity."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(0, "momentum", below=1)


@dataclass
class Sgd(Momentum):
    """Momentum SGD; decay on all but batch-norm gamma and beta."""

    name: str = "sgd"
    decay_bias: bool = True
    nesterov: bool = False
    # false: weight_decay * w is added to the gradient (PyTorch's SGD); true: w *= 1 - lr * weight_decay (timm's SGDW)
    decoupled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        way_out = "nothing is decayed with optim.weight_decay=0; leave it false"
        self.check("decoupled", not self.decoupled or self.weight_decay > 0, way_out)


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
class Lars(Momentum):
    """Layer-wise scaled momentum, arXiv:1708.03888; what is not decayed is not scaled either."""

    name: str = "lars"
    trust_coefficient: float = 0.001
    epsilon: float = 0.0
    rows: list[LarsRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "trust_coefficient")
        self.check_at_least(0, "epsilon")


@dataclass
class Adam(Optim):
    """What has a mean of the gradients and of their squares (arXiv:1412.6980)."""

    beta1: float = 0.9  # decay of the mean of the gradients
    beta2: float = 0.999  # and of their squares
    epsilon: float = 1e-8  # added to the root of the mean square

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "beta1", "beta2", below=1)
        self.check_above(0, "epsilon")


@dataclass
class AdamW(Adam):
    """Adam with decoupled decay, w *= 1 - lr * weight_decay (arXiv:1711.05101 alg. 2, PyTorch's AdamW)."""

    name: str = "adamw"


@dataclass
class Lamb(Adam):
    """Layer-wise scaled Adam, arXiv:1904.00962, as timm has it; what is not decayed is not scaled either."""

    name: str = "lamb"
    epsilon: float = 1e-6
