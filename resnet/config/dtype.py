"""Arithmetic of the network: conf/dtype/. The head and every variable stay float32."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from resnet.config.checks import MISSING


class Policy(Enum):
    float32 = "float32"
    mixed_bfloat16 = "mixed_bfloat16"
    mixed_float16 = "mixed_float16"  # with dynamic loss scaling: resnet/optim/loss_scale.py


@dataclass
class Dtype:
    name: str = MISSING
    policy: Policy = MISSING  # Keras' mixed-precision policy
    jit: bool = False  # compile the forward and backward pass with XLA; GPU only
    # Gaudi's own way to bf16, beside dtype=fp32: full, basic, or a file of operations
    gaudi_conversion: str | None = None
