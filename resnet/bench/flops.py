"""Floating-point operations of a trained image, counted in the graph; and the peak of matrix products on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from resnet.bench.workers import Work, require

TURN_S = 0.15  # of each size in a turn, at least
DTYPES = {"bf16": tf.bfloat16, "fp32": tf.float32}


def gflop(network: Any, size: int) -> float:
    """GFLOP of one image trained on, a multiply-add being two: forward, input gradients and filter gradients.

    Convolutions and matrix products only; the first convolution's input gradient is never computed. ResNet-50 v1.5 at 224 px
    comes to 24.3, Keras's v1 to 22.9. Zeros that `conv.pack_groups` puts between groups are not counted.
    """
    packing = [layer for layer in network.layers if getattr(layer, "amx", False)]
    for layer in packing:
        layer.amx = False
    forward = tf.function(lambda image: network(image, training=True))
    graph = forward.get_concrete_function(tf.TensorSpec([1, size, size, 3], tf.float32)).graph
    for layer in packing:
        layer.amx = True
    counts = []  # of each operation, forward
    for op in graph.get_operations():
        if op.type in ("Conv2D", "MatMul"):
            left, weights = (tensor.shape for tensor in op.inputs)
            inner = weights[:-1].num_elements() if op.type == "Conv2D" else left[-1]
            counts.append(2 * op.outputs[0].shape.num_elements() * inner)
    return float(3 * sum(counts) - counts[0]) / 1e9


def products(dtype: str, sizes: Sequence[int] = (1024, 2048, 4096)) -> Work:
    """(ignored) -> the seconds that a GFLOP takes at the best of these sizes. Every call measures again."""
    pairs = [[tf.cast(tf.random.normal([size, size]), DTYPES[dtype]) for _ in range(2)] for size in sizes]
    return lambda _steps: min(seconds_per_gflop(left, right) for left, right in pairs)


def seconds_per_gflop(left: Any, right: Any) -> float:
    """Of one product, repeated for TURN_S."""
    tf.matmul(left, right)
    began, repeats, seconds = time.perf_counter(), 0, 0.0
    while seconds < TURN_S:
        tf.matmul(left, right)[0, 0].numpy()
        repeats, seconds = repeats + 1, time.perf_counter() - began
    product = tf.matmul(left, right)[0, 0]
    exact = np.dot(*(part.numpy().astype(np.float64) for part in (left[0], right[:, 0])))
    require(
        abs(float(product) - exact) < 0.05 * left.shape[0] ** 0.5,
        f"a product is {float(product)}, and {exact} is right",
    )
    return seconds / repeats / (2 * int(left.shape[0]) ** 3 / 1e9)
