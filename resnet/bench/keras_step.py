"""A child that trains keras.applications.ResNet50 with model.fit, as people do: resnet.benchmarks.keras_step DTYPE BATCH SIZE.

It is given every advantage: one batch of normalised float images that is never read again, no weight decay, no metric but the
loss, and a clock that leaves out what model.fit does before its first step and after its last.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from resnet.bench import flops, turns

POLICIES = {"bf16": "mixed_bfloat16", "fp16": "mixed_float16", "fp32": "float32"}


def compiled(dtype: str, size: int) -> Any:
    """The network, ready for model.fit."""
    import tensorflow as tf

    tf.keras.mixed_precision.set_global_policy(POLICIES[dtype])
    network = tf.keras.applications.ResNet50(weights=None, input_shape=(size, size, 3), classifier_activation=None)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(tf.keras.optimizers.SGD(1e-4, momentum=0.9), loss, jit_compile=False)
    return network


def fitting(network: Any, batch: int, size: int) -> Callable[[int], float]:
    """steps -> the seconds from the beginning of the first one to the end of the last, within one model.fit."""
    import tensorflow as tf

    images, labels = tf.random.normal([batch, size, size, 3]), tf.random.uniform([batch], 0, 1000, tf.int32)
    dataset = tf.data.Dataset.from_tensors((images, labels)).cache().repeat()

    class Clock(tf.keras.callbacks.Callback):
        _supports_tf_logs = True  # or Keras would fetch the loss at every step

        def on_train_batch_begin(self, number: int, _logs: Any = None) -> None:
            if number == 1:  # the one before finds its feet
                self.began = time.perf_counter()

        def on_train_batch_end(self, _number: int, _logs: Any = None) -> None:
            self.ended = time.perf_counter()

    def work(steps: int) -> float:
        clock = Clock()
        network.fit(dataset, steps_per_epoch=steps + 1, epochs=1, verbose=0, callbacks=[clock])
        return float(clock.ended - clock.began)

    return work


def main(dtype: str, batch: str, size: str) -> None:
    """Be the child."""
    turns.quiet()
    import tensorflow as tf

    network = compiled(dtype, int(size))
    work = fitting(network, int(batch), int(size))
    work(1)
    turns.take_turns(
        {"versions": f"TensorFlow {tf.__version__}, its keras.applications", "gflop": flops.gflop(network, int(size))},
        work,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
