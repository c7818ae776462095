"""ReLUs and additions of a training step in bfloat16 on a CPU, compiled by XLA.

TensorFlow's own kernels are built for any CPU, and take two to three times as long (docs/performance.md).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf


class AddRelu(tf.keras.layers.Layer):
    """relu(x + shortcut) of two [B, H, W, C], twice: for the next block's convolutions, and for its shortcut.

    So the slopes of both come back to one place, and are added in the same pass as the ReLU's gradient.
    """

    def call(self, pair: Any, training: Any = None) -> Any:
        """The same tensor twice."""
        if training:
            init_xla_quietly()
            return add_relu(*pair)
        relued = tf.nn.relu(tf.add(*pair))
        return relued, relued


@tf.custom_gradient
def add_relu(x: Any, shortcut: Any) -> Any:
    """relu(x + shortcut), twice, as AddRelu has it."""
    relued = xla_fused(relu_of_sum, x, shortcut)

    def gradients(left: Any, right: Any) -> Any:
        slope = xla_fused(slope_of_both, relued, left, right)
        return slope, slope

    return (relued, relued), gradients


@tf.custom_gradient
def relu(x: Any) -> Any:
    """tf.nn.relu, by TensorFlow's own operation, which it computes with batch norm; its gradient in one pass."""
    relued = tf.nn.relu(x)
    return relued, lambda slope: xla_fused(slope_of_one, relued, slope)


def relu_of_sum(x: Any, shortcut: Any) -> Any:
    return tf.nn.relu(x + shortcut)


def slope_of_one(relued: Any, slope: Any) -> Any:
    return tf.where(relued > 0, slope, tf.zeros([], slope.dtype))


def slope_of_both(relued: Any, left: Any, right: Any) -> Any:
    return slope_of_one(relued, left + right)


def xla_fused(function: Callable[..., Any], *tensors: Any) -> Any:
    """What the function makes of them, compiled once for all of their shapes; profiles name it xla_<function>."""
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors]
    with tf.name_scope(f"xla_{function.__name__}"):
        return compiled(function, *specs)(*tensors)


@functools.cache
def compiled(function: Callable[..., Any], *specs: Any) -> Any:
    """A graph for each shape, made apart from whatever is being traced."""
    with tf.init_scope():
        return tf.function(function, autograph=False, jit_compile=True).get_concrete_function(*specs)


@functools.cache
def init_xla_quietly() -> None:
    """Have XLA compile something with nobody listening: for its first function it tells three things that concern nobody."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with tf.init_scope():
            xla_fused(relu_of_sum, tf.zeros([1]), tf.zeros([1])).numpy()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
