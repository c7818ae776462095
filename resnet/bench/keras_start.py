"""The plain script that `bench start` is measured against: resnet.benchmarks.keras_start NETWORK DTYPE BATCH SIZE.

The same network from resnet.model, so that only what surrounds it differs; model.compile and model.fit over random images. Its
last line is the time at which the first step had been done.
"""

import json
import sys
import time

import tensorflow as tf

from resnet.config.model import Block, Model
from resnet.model.resnet import build

POLICIES = {"bf16": "mixed_bfloat16", "fp16": "mixed_float16", "fp32": "float32"}


class Clock(tf.keras.callbacks.Callback):
    """Tells when the first step has been done."""

    def on_train_batch_end(self, _number: int, _logs: object = None) -> None:
        """Print the time."""
        print(time.time(), flush=True)


def main(network: str, dtype: str, batch: str, size: str) -> None:
    """Train for one step."""
    row = json.loads(network)
    model = build(Model(**{**row, "block": Block[row["block"]]}), 1000, POLICIES[dtype])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(1e-4, momentum=0.9), loss)
    images = tf.random.normal([int(batch), int(size), int(size), 3])
    labels = tf.random.uniform([int(batch)], 0, 1000, tf.int32)
    model.fit(images, labels, batch_size=int(batch), epochs=1, verbose=0, callbacks=[Clock()])


if __name__ == "__main__":
    main(*sys.argv[1:])
