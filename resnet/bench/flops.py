"""Floating-point operations of a trained image, counted in the graph; and the peak that matrix products reach on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from resnet.bench import turns

SIZES = 1024, 2048, 4096  # of square matrices
LEAST_S = 0.15  # of each of them in a turn


def gflop(network: Any, size: int) -> float:
    """GFLOP of one image trained on, a multiply-add being two: forward, input gradients and filter gradients.

    Convolutions and matrix products only; the first convolution's input gradient is never computed. ResNet-50 v1.5 at 224 px
    comes to 24.3, Keras's v1 to 22.9. Zeros that `convolution.packed` puts between groups are not counted.
    """
    import tensorflow as tf

    packing = [layer for layer in network.layers if getattr(layer, "amx", False)]
    for layer in packing:
        layer.amx = False
    try:
        forward = tf.function(lambda image: network(image, training=True))
        graph = forward.get_concrete_function(tf.TensorSpec([1, size, size, 3], tf.float32)).graph
    finally:
        for layer in packing:
            layer.amx = True
    sums = [operations(op) for op in graph.get_operations() if op.type in ("Conv2D", "MatMul")]
    return (3 * sum(sums) - sums[0]) / 1e9


def operations(op: Any) -> int:
    """Of one convolution or matrix product of a graph, forward."""
    made, weights = op.outputs[0].shape, op.inputs[1].shape
    inner = weights[:-1].num_elements() if op.type == "Conv2D" else op.inputs[0].shape[-1]
    return int(2 * made.num_elements() * inner)


def products(dtype: str, sizes: Sequence[int] = SIZES) -> Callable[[int], float]:
    """(ignored) -> the seconds that a GFLOP takes at the best of these sizes. Every call measures anew."""
    import tensorflow as tf

    kind = {"bf16": tf.bfloat16, "fp32": tf.float32, "fp16": tf.float16}[dtype]
    pairs = [[tf.cast(tf.random.normal([size, size]), kind) for _ in range(2)] for size in sizes]

    def best(_steps: int) -> float:
        return min(seconds_per_gflop(left, right) for left, right in pairs)

    return best


def seconds_per_gflop(left: Any, right: Any) -> float:
    """Of one product, done again and again for LEAST_S."""
    import tensorflow as tf

    tf.matmul(left, right)
    began, done, spent = time.perf_counter(), 0, 0.0
    while spent < LEAST_S:
        tf.matmul(left, right)[0, 0].numpy()
        done, spent = done + 1, time.perf_counter() - began
    return spent / done / (2 * int(left.shape[0]) ** 3 / 1e9)


def main(dtype: str) -> None:
    """Be the child that finds the peak."""
    import tensorflow as tf

    turns.quiet()
    work = products(dtype)
    work(1)
    turns.take_turns({"versions": f"TensorFlow {tf.__version__}"}, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
