"""ReLUs and residual sums of a training step in bfloat16 on a CPU, compiled by XLA.

TensorFlow's own kernels are built for any CPU and take two to three times as long (docs/performance.md).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import tensorflow as tf


class AddRelu(tf.keras.layers.Layer):
    """relu(x + shortcut) of two [B, H, W, C], twice: for the next block's convolutions, and for its shortcut.

    So both gradients arrive here, and are added in the same pass as the ReLU's gradient is computed.
    """

    def call(self, pair: tuple[tf.Tensor, tf.Tensor], training: bool | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """The same tensor twice."""
        if training:
            init_xla_quietly()
            return add_relu(*pair)
        output = tf.nn.relu(tf.add(*pair))
        return output, output


@tf.custom_gradient
def add_relu(x: tf.Tensor, shortcut: tf.Tensor) -> tf.Tensor:
    output = xla_fused(relu_of_sum, x, shortcut)

    def gradients(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        grad = xla_fused(relu_gradient_of_sum, output, left, right)
        return grad, grad

    return (output, output), gradients


@tf.custom_gradient
def relu(x: tf.Tensor) -> tf.Tensor:
    """tf.nn.relu by TensorFlow's own operation, which it fuses with batch norm; its gradient by XLA."""
    output = tf.nn.relu(x)
    return output, lambda grad: xla_fused(relu_gradient, output, grad)


def relu_of_sum(x: tf.Tensor, shortcut: tf.Tensor) -> tf.Tensor:
    return tf.nn.relu(x + shortcut)


def relu_gradient(output: tf.Tensor, grad: tf.Tensor) -> tf.Tensor:
    return tf.where(output > 0, grad, tf.zeros([], grad.dtype))


def relu_gradient_of_sum(output: tf.Tensor, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    return relu_gradient(output, left + right)


def xla_fused(function: Callable[..., tf.Tensor], *tensors: tf.Tensor) -> tf.Tensor:
    """function(*tensors), compiled by XLA once for each set of shapes; profiles show it as xla_<function>."""
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors]
    with tf.name_scope(f"xla_{function.__name__}"):
        return compiled(function, *specs)(*tensors)


@functools.cache
def compiled(function: Callable[..., tf.Tensor], *specs: tf.TensorSpec) -> Callable[..., tf.Tensor]:
    """The compiled graph for these shapes, built outside of any graph that is being traced."""
    with tf.init_scope():
        return tf.function(function, autograph=False, jit_compile=True).get_concrete_function(*specs)


@functools.cache
def init_xla_quietly() -> None:
    """Let XLA compile a first function with stderr silenced: it logs three lines of no interest then."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with tf.init_scope():
            xla_fused(relu_of_sum, tf.zeros([1]), tf.zeros([1])).numpy()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
