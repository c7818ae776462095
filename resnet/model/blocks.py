"""The parts that networks are built of: stem, residual block, squeeze-and-excitation, blur. Layers carry timm's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from resnet.config.model import Antialias, Block, Model, se_channels
from resnet.model.conv import KERNEL, Conv
from resnet.model.drop import Drop
from resnet.model.norm import RowNorm
from resnet.model.relu import AddRelu

layers = tf.keras.layers


class Blur(tf.keras.layers.Layer):
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C] by the filter [1, 2, 1] / 4 in both directions.

    arXiv:1904.11486. `edge` is that of tf.pad. Two average pools of 2x2 are that filter; in bfloat16 on a CPU they take half
    the time of a depthwise convolution.
    """

    def __init__(self, stride: int, edge: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stride, self.edge = stride, edge

    def call(self, images: tf.Tensor) -> tf.Tensor:
        padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], self.edge)
        return tf.nn.avg_pool2d(tf.nn.avg_pool2d(padded, 2, 1, "VALID"), 2, self.stride, "VALID")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stride": self.stride, "edge": self.edge}


@dataclass(frozen=True)
class Parts:
    """What builds the parts of one network; the fields are the arguments of `resnet.build`."""

    model: Model
    policy: str
    batch_norm: Any
    amx: bool

    def conv(self, x: tf.Tensor, filters: int, size: int, stride: int, name: str, groups: int = 1) -> tf.Tensor:
        # FFCV's networks blur before each strided convolution but that of the image.
        if self.model.antialias is Antialias.ffcv and stride > 1 and x.shape[-1] > 3:
            x = Blur(1, "CONSTANT", dtype=self.policy, name=f"{name}.blur")(x)
        return Conv(filters, size, stride, groups, self.amx, dtype=self.policy, name=name)(x)

    def norm(self, x: tf.Tensor, name: str, act: str = "", last: bool = False) -> tf.Tensor:
        """Batch norm, and a ReLU of the name `act` if there is one; `last` is that of a residual branch."""
        within = bool(act) and self.batch_norm is RowNorm
        x = self.batch_norm(
            momentum=self.model.batch_norm_momentum,
            epsilon=self.model.batch_norm_epsilon,
            gamma_initializer="zeros" if last and self.model.zero_init_residual else "ones",
            dtype=self.policy,
            name=name,
            **({"relu": True} if within else {}),
        )(x)
        return self.relu(x, act) if act and not within else x

    def relu(self, x: tf.Tensor, name: str) -> tf.Tensor:
        return layers.Activation("relu", dtype=self.policy, name=name)(x)

    def blur_pool(self, x: tf.Tensor, stride: int, name: str) -> tf.Tensor:
        """What takes the stride of the layer before it, where that one has stride 1 for it."""
        return Blur(stride, "REFLECT", dtype=self.policy, name=name)(x)

    # ------------------------------------------------------------------------------------------------------------ stem
    def stem(self, images: tf.Tensor) -> tf.Tensor:
        """Normalized images [B, H, W, 3] to the first block's input."""
        model = self.model
        convolutions, size, stride, pool = model.stem.value
        if convolutions == 1:
            x = self.conv(images, model.filters, size, stride, "conv1")
        else:
            half = model.filters // 2
            x = self.norm(self.conv(images, half, size, stride, "conv1.0"), "conv1.1", "conv1.2")
            x = self.norm(self.conv(x, half, size, 1, "conv1.3"), "conv1.4", "conv1.5")
            x = self.conv(x, model.filters, size, 1, "conv1.6")
        x = self.norm(x, "bn1", "act1")
        blurs = model.antialias is Antialias.blurpool
        match pool:
            case "max":
                # Zeros are as good as -inf: after a ReLU nothing is below 0.
                x = layers.ZeroPadding2D(1, dtype=self.policy, name="pad")(x)
                x = layers.MaxPooling2D(3, 1 if blurs else 2, "valid", dtype=self.policy, name="maxpool")(x)
                return self.blur_pool(x, 2, "maxpool.1") if blurs else x
            case "conv":
                x = self.conv(x, model.filters, 3, 1 if blurs else 2, "maxpool.0")
                if not blurs:
                    return self.norm(x, "maxpool.1", "maxpool.2")
                return self.norm(self.blur_pool(x, 2, "maxpool.1"), "maxpool.2", "maxpool.3")
            case _:
                return x

    # ----------------------------------------------------------------------------------------------------------- block
    def block(
        self,
        x: tf.Tensor,
        shortcut: tf.Tensor,
        filters: tuple[int, int],
        stride: int,
        name: str,
        projects: bool,
        drop: tuple[float, int],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The output of a residual block, for the next one's convolutions and for its shortcut.

        `filters` are those inside and of the output; `drop` is the rate of stochastic depth, and the stream of its draws.
        """
        model, (inner, outer) = self.model, filters
        if projects:
            shortcut = self.project(shortcut, outer, stride, f"{name}.downsample")
        convs = [(inner, 3, stride, 1), (outer, 3, 1, 1)]
        if model.block is Block.bottleneck:
            convs = [(inner, 1, 1, 1), (inner, 3, stride, model.groups), (outer, 1, 1, 1)]
        for number, (width, size, step, groups) in enumerate(convs, 1):
            blurs, last = model.antialias is Antialias.blurpool and step > 1, number == len(convs)
            x = self.conv(x, width, size, 1 if blurs else step, f"{name}.conv{number}", groups)
            x = self.norm(x, f"{name}.bn{number}", "" if last else f"{name}.act{number}", last)
            if blurs:
                x = self.blur_pool(x, step, f"{name}.aa")
        x = self.scale(x, drop, name)
        if self.batch_norm is RowNorm and self.policy == "mixed_bfloat16":
            return AddRelu(dtype=self.policy, name=f"{name}.act")([x, shortcut])
        x = layers.Add(dtype=self.policy, name=f"{name}.add")([x, shortcut])
        return (self.relu(x, f"{name}.act"),) * 2

    def project(self, shortcut: tf.Tensor, outer: int, stride: int, name: str) -> tf.Tensor:
        """The shortcut of a block whose output has another shape."""
        if not self.model.avg_down:
            return self.norm(self.conv(shortcut, outer, 1, stride, f"{name}.0"), f"{name}.1")
        if stride > 1:  # "same": the mean of the pixels that there are, where the last row or column stands alone
            pool = layers.AveragePooling2D(stride, stride, "same", dtype=self.policy, name=f"{name}.0")
            shortcut = pool(shortcut)
        return self.norm(self.conv(shortcut, outer, 1, 1, f"{name}.1"), f"{name}.2")

    def scale(self, x: tf.Tensor, drop: tuple[float, int], name: str) -> tf.Tensor:
        """A residual branch times the gates of squeeze-and-excitation and the mask of stochastic depth, where there are any."""
        rate, stream = drop
        gates = self.gates(x, f"{name}.se") if self.model.se_ratio else None
        if rate and gates is None:
            return Drop(rate, stream, dtype=self.policy, name=f"{name}.drop_path")(x)
        if rate:  # the product of the two first: one number a channel, not a pixel
            gates = Drop(rate, stream, dtype="float32", name=f"{name}.drop_path")(gates)
        return x if gates is None else layers.Multiply(dtype=self.policy, name=f"{name}.se")([x, gates])

    def gates(self, x: tf.Tensor, name: str) -> tf.Tensor:
        """A factor in (0, 1) for each channel of each image, float32 [B, 1, 1, C] (arXiv:1709.01507 sec. 3).

        In float32 throughout: TensorFlow's mean over bfloat16 adds up in bfloat16 on a CPU, and is wrong above 256 pixels.
        """
        channels = x.shape[-1]
        means = layers.GlobalAveragePooling2D(keepdims=True, dtype="float32", name=f"{name}.pool")(x)

        def dense(x: tf.Tensor, filters: int, act: str, name: str) -> tf.Tensor:
            kernel = KERNEL.__class__.from_config(KERNEL.get_config())
            return layers.Conv2D(filters, 1, activation=act, kernel_initializer=kernel, dtype="float32", name=name)(x)

        hidden = dense(means, se_channels(channels, self.model.se_ratio), "relu", f"{name}.fc1")
        return dense(hidden, channels, "sigmoid", f"{name}.fc2")
