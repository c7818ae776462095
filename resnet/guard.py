"""What float16 needs: a loss scaled so that small gradients survive, and no update from gradients that overflowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

FIRST = 2.0**15  # the scale at first
GROWTH_STEPS = 2000  # updates before it doubles; both are Keras's figures (tf.keras.mixed_precision.LossScaleOptimizer)


class LossScaled(tf.Module):
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
        """In a graph: one step with the gradients of the scaled loss, if all are finite.

        They are the mean over the ranks already, so that all ranks decide alike.
        """
        finite = tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients]))

        def accept() -> Any:
            self.inner.apply([gradient / self.scale for gradient in gradients], lr)
            grows = self.good + 1 >= GROWTH_STEPS
            self.scale.assign(tf.where(grows, 2 * self.scale, self.scale))
            return self.good.assign(tf.where(grows, 0, self.good + 1))

        def refuse() -> Any:
            self.scale.assign(tf.maximum(self.scale / 2, 1.0))
            self.skipped.assign_add(1)
            return self.good.assign(0)

        tf.cond(finite, accept, refuse)
