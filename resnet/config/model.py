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
    """The first layers: number, side and first stride of their convolutions, and what halves the image after them.

    `small` is for images of about 32 pixels (arXiv:1512.03385 sec. 4.2), `deep` of ResNet-D (arXiv:1812.01187 sec. 4.1),
    `deep_conv` of ResNet-RS, with a strided convolution in place of max pooling (arXiv:2103.07579 sec. 5; timm's
    replace_stem_pool).
    """

    imagenet = 1, 7, 2, "max"
    small = 1, 3, 1, ""
    deep = 3, 3, 2, "max"
    deep_conv = 3, 3, 2, "conv"


class Antialias(Enum):
    """Where images are blurred as they become smaller, by [1, 2, 1] / 4 (arXiv:1904.11486).

    `blurpool`: after max pooling and 3x3 convolutions, which have stride 1 then (timm's aa_layer, resnetblur50). `ffcv`:
    before each strided convolution but the first, shortcuts among them (ffcv-imagenet's BlurPoolConv2d).
    """

    none = "none"
    blurpool = "blurpool"
    ffcv = "ffcv"


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
    avg_down: bool = False  # shortcuts average 2x2 pixels, and project without a stride (arXiv:1812.01187 sec. 4.1)
    se_ratio: float = 0.0  # squeeze-and-excitation's inner width over the block's output (arXiv:1709.01507); 0: none
    antialias: Antialias = Antialias.none
    stochastic_depth: float = 0.0  # the last block's probability to be skipped, linear from 0 (arXiv:1603.09382)
    dropout: float = 0.0  # of features before the head
    zero_init_residual: bool = True  # last gamma of a block starts at 0 (arXiv:1706.02677 sec. 5.1)
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Model:
        """The network of these knobs, the enums among them by their names, as in a file of conf/model/."""
        enums = {"block": Block, "stem": Stem, "antialias": Antialias}
        named = {knob: enums[knob][value] for knob, value in row.items() if knob in enums and isinstance(value, str)}
        return cls(**{**row, **named})

    def __post_init__(self) -> None:
        four = len(self.depths) == 4 and min(self.depths) > 0 and max(self.depths) <= MAX_DEPTH
        self.check("depths", four, f"give four numbers above 0 and up to {MAX_DEPTH}, such as [3,4,6,3]")
        self.check_at_least(0, "stochastic_depth", "dropout", below=1)
        self.check("se_ratio", 0 <= self.se_ratio <= 1, "must be at least 0 and at most 1, such as 0.0625")
        self.check_above(0, "groups", "width", "filters")
        self.check_at_most(4096, "groups", "width", "filters")
        outer, inner = 8 * self.filters * self.block.value, 8 * self.width * self.groups  # channels of the last stage
        gates = 2 * outer * se_channels(outer, self.se_ratio) if self.se_ratio else 0
        weights = sum(self.depths) * (2 * outer * inner + 9 * inner * inner // self.groups + gates)
        self.check(
            "width", weights <= MAX_WEIGHTS, f"up to {weights:,} weights; at most {MAX_WEIGHTS:,} are tried here"
        )
        even = self.stem.value[0] == 1 or self.filters % 2 == 0
        self.check(
            "filters",
            even,
            f"the first convolutions of model.stem={self.stem.name} have half of it; give an even number",
        )
        plain = self.groups == 1 and self.width == self.filters
        way_out = "basic blocks have one group as wide as the stem; use model.block=bottleneck"
        self.check("groups", self.block is not Block.basic or plain, way_out)
        self.check_at_least(0, "batch_norm_momentum", below=1)
        self.check_above(0, "batch_norm_epsilon", below=1)


def se_channels(channels: int, ratio: float) -> int:
    """Inner width of squeeze-and-excitation: the nearest multiple of 8, at least 8 (timm's make_divisible)."""
    return max(8, int(channels * ratio + 4) // 8 * 8)


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
