"""Keras as people use it, each a process of its own: python -m resnet.bench.keras_child step|start WORD ..."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import tensorflow as tf

from resnet.bench import flops, workers
from resnet.config.model import Model
from resnet.model.resnet import build

POLICIES = {"bf16": "mixed_bfloat16", "fp32": "float32"}


class Clock(tf.keras.callbacks.Callback):
    """The time.time() of each step's begin and end; with `wait` when its loss has been fetched."""

    def __init__(self, wait: bool) -> None:
        super().__init__()
        self._supports_tf_logs = not wait  # without, Keras fetches the loss before the call
        self.begins: list[float] = []
        self.ends: list[float] = []

    def on_train_batch_begin(self, _number: int, _logs: Any = None) -> None:
        self.begins.append(time.time())

    def on_train_batch_end(self, _number: int, _logs: Any = None) -> None:
        self.ends.append(time.time())


def compile_network(network: Any) -> Any:
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(tf.keras.optimizers.SGD(1e-4, momentum=0.9), loss, jit_compile=False)
    return network


def application(dtype: str, size: int) -> Any:
    tf.keras.mixed_precision.set_global_policy(POLICIES[dtype])
    shape = (size, size, 3)
    return compile_network(tf.keras.applications.ResNet50(weights=None, input_shape=shape, classifier_activation=None))


def check_fit(history: Any, clock: Clock, steps: int) -> None:
    """Raise Wrong unless model.fit did so many steps with a finite loss."""
    workers.require(len(clock.ends) == steps, f"model.fit did {len(clock.ends)} steps, not {steps}")
    losses = history.history["loss"]
    workers.require(all(map(math.isfinite, losses)), f"the loss is {losses}")


def random_batch(batch: str, size: str) -> tuple[Any, Any]:
    return tf.random.normal([int(batch), int(size), int(size), 3]), tf.random.uniform([int(batch)], 0, 1000, tf.int32)


def step(dtype: str, batch: str, size: str) -> workers.Sides:
    """keras.applications.ResNet50 with model.fit, with every advantage.

    One batch of normalized float images that is never read again, no weight decay, no metric but the loss, and a clock that
    leaves out what model.fit does before its first step and after its last.
    """
    network = application(dtype, int(size))
    dataset = tf.data.Dataset.from_tensors(random_batch(batch, size)).cache().repeat()

    bias = network.trainable_variables[-1]
    changed = workers.moving(lambda: float(tf.reduce_sum(tf.abs(bias))))

    def work(steps: int) -> float:
        clock = Clock(wait=False)
        history = network.fit(dataset, steps_per_epoch=steps + 1, epochs=1, verbose=0, callbacks=[clock])
        check_fit(history, clock, steps + 1)
        changed()
        return clock.ends[-1] - clock.begins[1]  # the first step warms up

    versions = f"TensorFlow {tf.__version__}, its keras.applications"
    return {"versions": versions, "gflop": flops.gflop(network, int(size))}, {"": work}


def start(network: str, dtype: str, batch: str, size: str) -> workers.Sides:
    """A plain script: model.compile and model.fit for one step, with the network of resnet.model that is `network` in JSON.

    The fact `first_step_at` is the time.time() at the end of the step.
    """
    row = json.loads(network)
    model = compile_network(build(Model.of_row(row), 1000, POLICIES[dtype]))
    clock = Clock(wait=True)
    history = model.fit(*random_batch(batch, size), batch_size=int(batch), epochs=1, verbose=0, callbacks=[clock])
    check_fit(history, clock, 1)
    return {"first_step_at": clock.ends[0]}, {}


if __name__ == "__main__":
    workers.serve({"step": step, "start": start})
