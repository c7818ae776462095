"""The network, one row of conf/model/, and its arithmetic, conf/dtype/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from resnet.config.checks import MISSING, Settings

MAX_DEPTH = 256  # blocks of a stage; ResNet-200 has 36
MAX_WEIGHTS = 10_000_000_000  # were all stages as wide as the last; ResNeXt-101 32x48d: 3,062,366,208


class Block(Enum):
    """Residual block: two 3x3 convolutions, or 1x1 - 3x3 - 1x1 with a four times wider output."""

    basic = 1
    bottleneck = 4  # the value is the expansion of the output over the inner width


class Stem(Enum):
    """The first layers, with side and stride of their convolution; max pooling follows in `imagenet` alone.

    `small` is for images of about 32 pixels (arXiv:1512.03385 sec. 4.2).
    """

    imagenet = 7, 2
    small = 3, 1


@dataclass
class Model(Settings):
    """One row of the ResNet family: v1.5 of arXiv:1512.03385, groups as in arXiv:1611.05431."""

    GROUP = "model."
    name: str = MISSING
    block: Block = MISSING
    depths: list[int] = field(default_factory=list)  # blocks in each of the four stages
    groups: int = 1
    width: int = 64  # channels of a group in the first stage, doubled from stage to stage
    filters: int = 64  # of the stem; a stage's output is filters * 2**stage * the block's expansion
    stem: Stem = Stem.imagenet
    zero_init_residual: bool = True  # last gamma of a block starts at 0 (arXiv:1706.02677 sec. 5.1)
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Model:
        """The network of these knobs, the enums among them by their names, as in a file of conf/model/."""
        return cls(**{**row, "block": Block[row["block"]], "stem": Stem[row.get("stem", "imagenet")]})

    def __post_init__(self) -> None:
        four = len(self.depths) == 4 and min(self.depths) > 0 and max(self.depths) <= MAX_DEPTH
        self.check("depths", four, f"give four numbers above 0 and up to {MAX_DEPTH}, such as [3,4,6,3]")
        self.check_above(0, "groups", "width", "filters")
        self.check_at_most(4096, "groups", "width", "filters")
        outer, inner = 8 * self.filters * self.block.value, 8 * self.width * self.groups  # channels of the last stage
        weights = sum(self.depths) * (2 * outer * inner + 9 * inner * inner // self.groups)
        self.check(
            "width", weights <= MAX_WEIGHTS, f"up to {weights:,} weights; at most {MAX_WEIGHTS:,} are tried here"
        )
        plain = self.groups == 1 and self.width == self.filters
        way_out = "basic blocks have one group as wide as the stem; use model.block=bottleneck"
        self.check("groups", self.block is not Block.basic or plain, way_out)
        self.check_at_least(0, "batch_norm_momentum", below=1)
        self.check_above(0, "batch_norm_epsilon", below=1)


class Policy(Enum):
    float32 = "float32"
    mixed_bfloat16 = "mixed_bfloat16"
    mixed_float16 = "mixed_float16"  # with dynamic loss scaling: resnet/optim/loss_scale.py


@dataclass
class Dtype:
    """Arithmetic of the network. The head and every variable stay float32."""

    name: str = MISSING
    policy: Policy = MISSING  # Keras' mixed-precision policy
    jit: bool = False  # compile the forward and backward pass with XLA; GPU only
    # Gaudi's own way to bf16, beside dtype=fp32: full, basic, or a file of operations
    gaudi_conversion: str | None = None
