"""The network: one row of conf/model/."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from resnet.config.checks import MISSING, check, check_range


class Block(Enum):
    """Residual block: two 3x3 convolutions, or 1x1 - 3x3 - 1x1 with a four times wider output."""

    basic = 1
    bottleneck = 4  # the value is the expansion of the output over the inner width


@dataclass
class Model:
    """One row of the ResNet family: v1.5 of arXiv:1512.03385, groups as in arXiv:1611.05431."""

    name: str = MISSING
    block: Block = MISSING  # type: ignore[assignment]
    depths: list[int] = field(default_factory=list)  # blocks in each of the four stages
    groups: int = 1
    width: int = 64  # channels of a group in the first stage, doubled from stage to stage
    filters: int = 64  # of the stem; a stage's output is filters * 2**stage * the block's expansion
    zero_init_residual: bool = True  # last gamma of a block starts at 0 (arXiv:1706.02677 sec. 5.1)
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        four = len(self.depths) == 4 and min(self.depths, default=0) > 0
        check(four, "model.depths", self.depths, "give four numbers above 0, such as [3,4,6,3]")
        for knob in ("groups", "width", "filters"):
            check(getattr(self, knob) > 0, f"model.{knob}", getattr(self, knob), "must be above 0")
        plain = self.groups == 1 and self.width == self.filters
        check(
            self.block is not Block.basic or plain,
            "model.groups",
            self.groups,
            "basic blocks have one group as wide as the stem; use model.block=bottleneck",
        )
        check_range("model.batch_norm_momentum", self.batch_norm_momentum, 0, 1)
        check_range("model.batch_norm_epsilon", self.batch_norm_epsilon, 0, 1, open_low=True)
