"""Steps that must leave no trace: those of float16 whose gradients overflowed, and under on_nan.policy=skip all with a NaN.

Whether a step counts is decided in the graph, by what is the mean over the ranks already, so that all ranks decide alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

FIRST = 2.0**15  # the scale at first
GROWTH_STEPS = 2000  # updates before it doubles; both are Keras's figures (tf.keras.mixed_precision.LossScaleOptimizer)


def all_finite(tensors: Iterable[Any]) -> Any:
    """In a graph: whether every number in these float tensors or variables is finite; a bool scalar."""
    return tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors]))


class Skipping:
    """on_nan.policy=skip around a step: unless its loss and gradients are finite, nothing that is trained or kept changes.

    Among that are batch norm's moving statistics in `network`, which the forward pass has moved before anybody knows.
    """

    def __init__(self, optimizer: Any, network: Any) -> None:
        self.optimizer, self.statistics = optimizer, network.non_trainable_weights

    def before(self) -> list[Any]:
        """The statistics before the forward pass; no copy is made unless they change."""
        return [weight.read_value() for weight in self.statistics]

    def apply(self, gradients: Sequence[Any], loss: Any, lr: Any, before: Sequence[Any]) -> Any:
        """In a graph: make the step, or take back what has been done of it; whether it was made. All are means over the ranks.

        Under float16 gradients that overflow are `LossScaled`'s daily business; only the loss counts.
        """
        sound = all_finite([loss] if isinstance(self.optimizer, LossScaleOptimizer) else [loss, *gradients])

        def accept() -> Any:
            self.optimizer.apply(gradients, lr)
            return sound

        def refuse() -> Any:
            for weight, value in zip(self.statistics, before, strict=True):
                weight.assign(value)
            return sound

        return tf.cond(sound, accept, refuse)


class LossScaleOptimizer(tf.Module):
    """An optimizer of `resnet.optim` under dynamic loss scaling (arXiv:1710.03740 sec. 3.2).

    The scale is halved when gradients overflow, and that update left out; it is doubled after GROWTH_STEPS updates without.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__("loss_scaled")
        self.inner = inner
        self.scale = tf.Variable(FIRST, trainable=False, name="scale")
        self.good = tf.Variable(0, trainable=False, name="good")  # updates since it changed
        self.skipped = tf.Variable(0, trainable=False, name="skipped")  # updates left out, in all

    @property
    def state(self) -> list[Any]:
        """Variables that go with the weights."""
        return [*self.inner.state, self.scale, self.good, self.skipped]

    def scaled(self, loss: Any) -> Any:
        """What is to be differentiated."""
        return loss * self.scale

    def apply(self, gradients: Sequence[Any], lr: Any) -> None:
        """In a graph: one step with the gradients of the scaled loss, if all are finite."""

        def accept() -> Any:
            self.inner.apply([gradient / self.scale for gradient in gradients], lr)
            grows = self.good + 1 >= GROWTH_STEPS
            self.scale.assign(tf.where(grows, 2 * self.scale, self.scale))
            return self.good.assign(tf.where(grows, 0, self.good + 1))

        def refuse() -> Any:
            self.scale.assign(tf.maximum(self.scale / 2, 1.0))
            self.skipped.assign_add(1)
            return self.good.assign(0)

        tf.cond(all_finite(gradients), accept, refuse)
