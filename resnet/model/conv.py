"""Convolution, and ways to its gradients that a CPU with AMX goes faster in bfloat16 than oneDNN's own (docs/performance.md)."""

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
DEEP, SHALLOW = 256, 4  # from, and up to, how many channels other ways than oneDNN's are faster, measured
NARROW = 16  # channels of a group below which oneDNN has no kernel with AMX


class Conv(tf.keras.layers.Layer):
    """Convolution without bias, [B, H, W, C] -> [B, H', W', filters], padded by (size - 1) // 2 on every side.

    tf.keras.layers.Conv2D(groups=...) goes through XLA on a CPU, hundreds of times slower; tf.nn.conv2d takes a
    [size, size, C / groups, filters] kernel natively. `amx` is for a CPU with AMX, in bfloat16: narrow groups are computed
    several at once as `packed` puts them, and gradients as `convolve` does.
    """

    def __init__(
        self, filters: int, size: int, stride: int = 1, groups: int = 1, amx: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.filters, self.size, self.stride, self.groups = filters, size, stride, groups
        self.amx = amx

    def build(self, shape: Sequence[int]) -> None:
        """One variable: kernel."""
        # `initializer` is copied, or every layer would share one stream of random numbers.
        self.kernel = self.add_weight(
            "kernel",
            [self.size, self.size, shape[-1] // self.groups, self.filters],
            initializer=KERNEL.__class__.from_config(KERNEL.get_config()),
        )

    def call(self, images: Any) -> Any:
        """Convolve. At stride 1 "SAME" is the symmetric padding; else tf.pad, for which oneDNN has kernels (not for explicit)."""
        side = (self.size - 1) // 2
        padding = "SAME" if self.stride == 1 or not side else "VALID"
        if padding == "VALID":
            images = tf.pad(images, [[0, 0], [side, side], [side, side], [0, 0]])
        kernel = tf.convert_to_tensor(self.kernel)
        if self.amx and self.groups == 1:
            return convolve(images, kernel, self.stride, padding)
        return tf.nn.conv2d(images, pack_groups(kernel, self.groups) if self.amx else kernel, self.stride, padding)

    def get_config(self) -> dict[str, Any]:
        """What __init__ needs to make this layer again."""
        mine = ("filters", "size", "stride", "groups", "amx")
        return {**super().get_config(), **{name: getattr(self, name) for name in mine}}


def convolve(images: Any, kernel: Any, stride: int, padding: str) -> Any:
    """tf.nn.conv2d of [B, H, W, C] by [size, size, C, filters], with gradients of our own where they are faster.

    Filter gradients of 1x1 convolutions, and of those of many channels, are matrix products; that of the first layer, of few
    channels, is one of stride 1; input gradients of 1x1 convolutions with a stride are matrix products, too.
    """
    size, _, channels, _ = kernel.shape
    if size == 1 or channels >= DEEP:
        by_filters = filter_grad_matmul
    elif stride > 1 and channels <= SHALLOW:
        by_filters = filter_grad_space_to_depth
    else:
        return tf.nn.conv2d(images, kernel, stride, padding)

    @tf.custom_gradient
    def convolved(images: Any, kernel: Any) -> Any:
        def gradients(slope: Any) -> Any:
            if size == 1 and stride > 1:
                by_images = input_grad_1x1(slope, kernel, stride, images)
            else:
                by_images = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=tf.shape(images),
                    filter=kernel,
                    out_backprop=slope,
                    strides=[1, stride, stride, 1],
                    padding=padding,
                )
            with tf.control_dependencies([slope]):  # or copies of the images were made on the way forward, and kept
                side = (size - 1) // 2 if padding == "SAME" else 0
                seen = tf.pad(images, [[0, 0], [side, side], [side, side], [0, 0]]) if side else images
                return by_images, by_filters(seen, slope, size, stride)

        return tf.nn.conv2d(images, kernel, stride, padding), gradients

    return convolved(images, kernel)


def pack_groups(kernel: Any, groups: int) -> Any:
    """[size, size, C / groups, filters] for fewer groups, of NARROW channels if that many fit: zeros where two do not meet."""
    size, _, channels, filters = kernel.shape
    many = math.gcd(groups, NARROW // channels) if channels < NARROW else 1
    if many == 1:
        return kernel
    group = np.arange(filters) // (filters // groups)
    own = tf.constant(group % many == np.arange(many)[:, None], kernel.dtype)  # [many, filters]
    return tf.reshape(kernel[:, :, None] * own[:, None], [size, size, many * channels, filters])


def extent(tensor: Any) -> list[Any]:
    """Its shape, of integers as far as they are known."""
    shape = tf.shape(tensor)
    return [shape[axis] if known is None else known for axis, known in enumerate(tensor.shape)]


def split_phases(images: Any, size: int, stride: int, height: Any, width: Any) -> Any:
    """[B, H, W, C] -> [B, H', stride, W', stride * C]: rows and columns by their remainder over `stride`.

    H' and W' are what a convolution without padding reaches for an output of `height` and `width`; what is missing is 0.
    """
    reach = -(-size // stride) - 1
    _, tall, wide, channels = extent(images)
    below, beside = (height + reach) * stride - tall, (width + reach) * stride - wide
    if not (isinstance(below, int) and isinstance(beside, int) and below == beside == 0):
        images = tf.pad(images, [[0, 0], [0, below], [0, beside], [0, 0]])
    return tf.reshape(images, [-1, height + reach, stride, width + reach, stride * channels])


def filter_grad_matmul(images: Any, slope: Any, size: int, stride: int) -> Any:
    """Filter gradient [size, size, C, filters] of padded images [B, H, W, C]: one matrix product for each tap.

    Slices whose step is 1 are copied row by row; with a step TensorFlow takes twenty times as long.
    """
    _, height, width, filters = extent(slope)
    channels = images.shape[-1]
    phases, flat = split_phases(images, size, stride, height, width), tf.reshape(slope, [-1, filters])
    taps = []
    for row, column in itertools.product(range(size), repeat=2):
        top, left, first = row // stride, column // stride, column % stride * channels
        tap = phases[:, top : top + height, row % stride, left : left + width, first : first + channels]
        taps.append(tf.matmul(tf.reshape(tap, [-1, channels]), flat, transpose_a=True))
    return tf.reshape(tf.stack(taps), [size, size, channels, filters])


def filter_grad_space_to_depth(images: Any, slope: Any, size: int, stride: int) -> Any:
    """The same, by the filter gradient at stride 1 of stride * stride * C channels."""
    _, height, width, filters = extent(slope)
    channels = images.shape[-1]
    taps, deep = -(-size // stride), stride * stride * channels
    phases = tf.transpose(split_phases(images, size, stride, height, width), [0, 1, 3, 2, 4])
    folded = tf.raw_ops.Conv2DBackpropFilter(
        input=tf.reshape(phases, [-1, height + taps - 1, width + taps - 1, deep]),
        filter_sizes=[taps, taps, deep, filters],
        out_backprop=slope,
        strides=[1, 1, 1, 1],
        padding="VALID",
    )
    unfolded = tf.transpose(tf.reshape(folded, [taps, taps, stride, stride, channels, filters]), [0, 2, 1, 3, 4, 5])
    return tf.reshape(unfolded, [taps * stride, taps * stride, channels, filters])[:size, :size]


def input_grad_1x1(slope: Any, kernel: Any, stride: int, images: Any) -> Any:
    """Input gradient, of the shape of `images`, of a 1x1 convolution with a stride: products, with zeros between them."""
    _, height, width, filters = extent(slope)
    _, tall, wide, channels = extent(images)
    product = tf.matmul(tf.reshape(slope, [-1, filters]), tf.reshape(kernel, [channels, filters]), transpose_b=True)
    alone = tf.reshape(product, [-1, height, 1, width, channels])
    apart = tf.pad(alone, [[0, 0], [0, 0], [0, stride - 1], [0, 0], [0, (stride - 1) * channels]])
    return tf.reshape(apart, [-1, height * stride, width * stride, channels])[:, :tall, :wide]
