"""Layer-wise decay of the learning rate, for fine-tuning: the further from the head, the slower (arXiv:1801.06146 sec. 3.2)."""

from __future__ import annotations

import re

import tensorflow as tf


def group(layer: str) -> tuple[int, int, int]:
    """Where a layer lies: (0, 0, 0) in the stem, (1, stage, number) in a block, (2, 0, 0) in the head."""
    if block := re.match(r"layer(\d+)\.(\d+)\.", layer):
        return 1, int(block[1]), int(block[2])
    return (0, 0, 0) if layer.startswith(("conv1", "bn1")) else (2, 0, 0)


def factors(network: tf.keras.Model, decay: float) -> list[float]:
    """decay ** (groups between its own and the head, counted with its own) of every trainable variable.

    Groups are the stem, each block and the head, as timm's param_groups_layer_decay groups a ResNet: ResNet-50 has 18.
    """
    groups = sorted({group(variable.name.partition("/")[0]) for variable in network.variables}, reverse=True)
    return [decay ** groups.index(group(v.name.partition("/")[0])) for v in network.trainable_variables]
