"""Arithmetic: conf/dtype/."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from resnet.config.checks import MISSING


class Policy(Enum):
    """Keras mixed-precision policy; variables are float32 under all."""

    float32 = "float32"
    mixed_bfloat16 = "mixed_bfloat16"
    mixed_float16 = "mixed_float16"  # with a dynamic scale of the loss: resnet/guard.py


@dataclass
class Dtype:
    """Arithmetic of the network; the head and every variable stay float32."""

    name: str = MISSING
    policy: Policy = MISSING  # type: ignore[assignment]
    jit: bool = False  # compile the forward and backward pass with XLA; GPU only
    gaudi_conversion: str | None = (
        None  # Gaudi's own way to bf16, beside dtype=fp32: full, basic, or a file of operations
    )
