"""Convolution, with gradients that are faster than oneDNN's in bfloat16 on a CPU with AMX (docs/performance.md)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

KERNEL = tf.keras.initializers.VarianceScaling(
    2.0, "fan_out", "truncated_normal"
)  # he_normal by fan-out, arXiv:1502.01852
# Measured: oneDNN's filter gradients are slower from DEEP channels on, and up to SHALLOW channels.
DEEP, SHALLOW = 256, 4
NARROW = 16  # channels of a group below which oneDNN has no AMX kernel


class Conv(tf.keras.layers.Layer):
    """Convolution without bias, [B, H, W, C] -> [B, H', W', filters], padded by (size - 1) // 2 on every side.

    tf.keras.layers.Conv2D(groups=...) runs through XLA on a CPU, hundreds of times slower; tf.nn.conv2d takes a
    [size, size, C / groups, filters] kernel natively. `amx` is for bfloat16 on a CPU with AMX: it uses pack_groups() for
    grouped convolutions and convolve() for the others.
    """

    def __init__(
        self, filters: int, size: int, stride: int = 1, groups: int = 1, amx: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.filters, self.size, self.stride, self.groups = filters, size, stride, groups
        self.amx = amx

    def build(self, shape: Sequence[int]) -> None:
        # `initializer` is copied, or every layer would share one stream of random numbers.
        self.kernel = self.add_weight(
            "kernel",
            [self.size, self.size, shape[-1] // self.groups, self.filters],
            initializer=KERNEL.__class__.from_config(KERNEL.get_config()),
        )

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Convolve. "SAME" pads symmetrically at stride 1; otherwise tf.pad: oneDNN has no kernels for explicit padding."""
        side = (self.size - 1) // 2
        padding = "SAME" if self.stride == 1 or not side else "VALID"
        if padding == "VALID":
            images = tf.pad(images, [[0, 0], [side, side], [side, side], [0, 0]])
        kernel = tf.convert_to_tensor(self.kernel)
        if self.amx and self.groups == 1:
            return convolve(images, kernel, self.stride, padding)
        return tf.nn.conv2d(images, pack_groups(kernel, self.groups) if self.amx else kernel, self.stride, padding)

    def get_config(self) -> dict[str, Any]:
        names = ("filters", "size", "stride", "groups", "amx")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def convolve(images: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
    """tf.nn.conv2d of [B, H, W, C] by [size, size, C, filters], with custom gradients where they are faster.

    Filter gradients of 1x1 convolutions and of many channels are matrix products; that of the first layer, of few channels,
    is computed at stride 1; input gradients of 1x1 convolutions with a stride are matrix products too.
    """
    size, _, channels, _ = kernel.shape
    if size == 1 or channels >= DEEP:
        filter_grad = filter_grad_matmul
    elif stride > 1 and channels <= SHALLOW:
        filter_grad = filter_grad_space_to_depth
    else:
        return tf.nn.conv2d(images, kernel, stride, padding)

    @tf.custom_gradient
    def convolved(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradients(grad: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if size == 1 and stride > 1:
                input_grad = input_grad_1x1(grad, kernel, stride, images)
            else:
                input_grad = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=tf.shape(images),
                    filter=kernel,
                    out_backprop=grad,
                    strides=[1, stride, stride, 1],
                    padding=padding,
                )
            with tf.control_dependencies(
                [grad]
            ):  # or the padded copy would be made in the forward pass, and stay in memory
                side = (size - 1) // 2 if padding == "SAME" else 0
                padded = tf.pad(images, [[0, 0], [side, side], [side, side], [0, 0]]) if side else images
                return input_grad, filter_grad(padded, grad, size, stride)

        return tf.nn.conv2d(images, kernel, stride, padding), gradients

    return convolved(images, kernel)


def pack_groups(kernel: tf.Tensor, groups: int) -> tf.Tensor:
    """[size, size, C / groups, filters] as the block-diagonal kernel of fewer groups, of at most NARROW channels."""
    size, _, channels, filters = kernel.shape
    many = math.gcd(groups, NARROW // channels) if channels < NARROW else 1
    if many == 1:
        return kernel
    group = np.arange(filters) // (filters // groups)
    own = tf.constant(group % many == np.arange(many)[:, None], kernel.dtype)  # [many, filters]
    return tf.reshape(kernel[:, :, None] * own[:, None], [size, size, many * channels, filters])


def extent(tensor: tf.Tensor) -> list[int | tf.Tensor]:
    """The shape of a tensor, with integers where it is static."""
    shape = tf.shape(tensor)
    return [shape[axis] if known is None else known for axis, known in enumerate(tensor.shape)]


def split_phases(
    images: tf.Tensor, size: int, stride: int, height: int | tf.Tensor, width: int | tf.Tensor
) -> tf.Tensor:
    """[B, H, W, C] -> [B, H', stride, W', stride * C]: rows and columns by their remainder modulo `stride`.

    H' and W' are what a convolution without padding reads for an output of `height` and `width`; padded with 0.
    """
    reach = -(-size // stride) - 1
    _, tall, wide, channels = extent(images)
    below, beside = (height + reach) * stride - tall, (width + reach) * stride - wide
    if not (isinstance(below, int) and isinstance(beside, int) and below == beside == 0):
        images = tf.pad(images, [[0, 0], [0, below], [0, beside], [0, 0]])
    return tf.reshape(images, [-1, height + reach, stride, width + reach, stride * channels])


def filter_grad_matmul(images: tf.Tensor, grad: tf.Tensor, size: int, stride: int) -> tf.Tensor:
    """Filter gradient [size, size, C, filters] of padded images [B, H, W, C]: one matrix product for each tap.

    Slices of step 1 are copied row by row; TensorFlow's strided slices take twenty times as long.
    """
    _, height, width, filters = extent(grad)
    channels = images.shape[-1]
    phases, flat = split_phases(images, size, stride, height, width), tf.reshape(grad, [-1, filters])
    taps = []
    for row, column in itertools.product(range(size), repeat=2):
        top, left, first = row // stride, column // stride, column % stride * channels
        tap = phases[:, top : top + height, row % stride, left : left + width, first : first + channels]
        taps.append(tf.matmul(tf.reshape(tap, [-1, channels]), flat, transpose_a=True))
    return tf.reshape(tf.stack(taps), [size, size, channels, filters])


def filter_grad_space_to_depth(images: tf.Tensor, grad: tf.Tensor, size: int, stride: int) -> tf.Tensor:
    """The same as filter_grad_matmul: space to depth, then a filter gradient at stride 1 of stride * stride * C channels."""
    _, height, width, filters = extent(grad)
    channels = images.shape[-1]
    taps, deep = -(-size // stride), stride * stride * channels
    phases = tf.transpose(split_phases(images, size, stride, height, width), [0, 1, 3, 2, 4])
    folded = tf.raw_ops.Conv2DBackpropFilter(
        input=tf.reshape(phases, [-1, height + taps - 1, width + taps - 1, deep]),
        filter_sizes=[taps, taps, deep, filters],
        out_backprop=grad,
        strides=[1, 1, 1, 1],
        padding="VALID",
    )
    unfolded = tf.transpose(tf.reshape(folded, [taps, taps, stride, stride, channels, filters]), [0, 2, 1, 3, 4, 5])
    return tf.reshape(unfolded, [taps * stride, taps * stride, channels, filters])[:size, :size]


def input_grad_1x1(grad: tf.Tensor, kernel: tf.Tensor, stride: int, images: tf.Tensor) -> tf.Tensor:
    """Input gradient, in the shape of `images`, of a 1x1 convolution with a stride: a matrix product, spread with zeros."""
    _, height, width, filters = extent(grad)
    _, tall, wide, channels = extent(images)
    product = tf.matmul(tf.reshape(grad, [-1, filters]), tf.reshape(kernel, [channels, filters]), transpose_b=True)
    cells = tf.reshape(product, [-1, height, 1, width, channels])
    spread = tf.pad(cells, [[0, 0], [0, 0], [0, stride - 1], [0, 0], [0, (stride - 1) * channels]])
    return tf.reshape(spread, [-1, height * stride, width * stride, channels])[:, :tall, :wide]
