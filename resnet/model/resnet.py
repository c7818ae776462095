"""ResNet v1.5 and ResNeXt from one builder; a variant is a row of numbers (conf/model/).

v1.5: a stage's first block has its stride on the 3x3 convolution and on the 1x1 projection. Padding is symmetric, as in
PyTorch, so that public weights agree. Layers carry timm's names (conv1, bn1, layer1.0.conv1, ..., fc).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from resnet import UserError
from resnet.config.model import Block, Model
from resnet.model.blocks import Parts
from resnet.model.drop import HEAD_STREAM, Drop, depth_rates

HEAD = "fc"
layers = tf.keras.layers


def build(
    model: Model, classes: int, policy: str, batch_norm: Any = layers.BatchNormalization, amx: bool = False
) -> tf.keras.Model:
    """The network: normalized images [B, H, W, 3] -> logits [B, classes] float32. H and W are at least 8 pixels.

    `policy` is a Keras mixed-precision policy, given to each layer; the head is float32 under all of them. `batch_norm` is
    the batch norm layer; a RowNorm includes the ReLU that follows it. `amx` is that of `Conv`.
    """
    images = layers.Input([None, None, 3], name="images")
    parts, rates = Parts(model, policy, batch_norm, amx), depth_rates(model.stochastic_depth, sum(model.depths))
    x = shortcut = parts.stem(images)
    for stage, depth in enumerate(model.depths):
        filters = model.width * model.groups * 2**stage, model.filters * model.block.value * 2**stage
        for number in range(depth):
            stride = 2 if stage > 0 and number == 0 else 1
            # Basic blocks of the first stage keep shape, and have no projection in the published parameter counts.
            projects = number == 0 and (stage > 0 or model.block is Block.bottleneck)
            place = sum(model.depths[:stage]) + number
            drop = rates[place], place
            x, shortcut = parts.block(x, shortcut, filters, stride, f"layer{stage + 1}.{number}", projects, drop)
    x = layers.GlobalAveragePooling2D(dtype="float32", name="pool")(x)
    if model.dropout:
        x = Drop(model.dropout, HEAD_STREAM, each=True, dtype="float32", name="drop")(x)
    kernel = tf.keras.initializers.RandomNormal(stddev=0.01)
    logits = layers.Dense(classes, kernel_initializer=kernel, dtype="float32", name=HEAD)(x)
    return tf.keras.Model(images, logits, name=model.name)


def under(name: str, part: str) -> bool:
    """Whether the layer `name` is `part` or inside it: layer1.0.conv1 is under layer1.0, and under layer1."""
    return name == part or name.startswith(f"{part}.")


def check_parts(network: tf.keras.Model, knob: str, parts: Iterable[str]) -> None:
    """Raise UserError for a part that no layer with weights is under."""
    names = [layer.name for layer in network.layers if layer.weights]
    for part in parts:
        if not any(under(name, part) for name in names):
            tops = dict.fromkeys(name.partition(".")[0] for name in names)
            raise UserError(
                f"{knob}={part}: no layer of {network.name} is under this name; there are {', '.join(tops)}, "
                f"and in them such as {next(name for name in names if '.' in name)}"
            )


def freeze(network: tf.keras.Model, what: str | list[str]) -> None:
    """Make parts of the network untrainable: `what` is finetune.freeze. Their batch norm uses its moving statistics."""
    parts = [] if isinstance(what, str) else what
    check_parts(network, "finetune.freeze", parts)
    for layer in network.layers:
        if (what == "head" and layer.name != HEAD) or any(under(layer.name, part) for part in parts):
            layer.trainable = False
    if not network.trainable_variables:
        raise UserError(f"finetune.freeze={what}: nothing would be trained; leave a part out")


def lr_factors(network: tf.keras.Model, multipliers: dict[str, float]) -> list[float]:
    """The factor of every trainable variable: that of the longest part its layer is under, 1 where there is none."""
    check_parts(network, "finetune.lr_multipliers", multipliers)
    factors = []
    for variable in network.trainable_variables:
        parts = [part for part in multipliers if under(variable.name.partition("/")[0], part)]
        factors.append(float(multipliers[max(parts, key=len)]) if parts else 1.0)
    return factors
