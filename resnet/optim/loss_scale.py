"""Dynamic loss scaling for float16."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tensorflow as tf

from resnet.optim.optimizers import Optimizer

INITIAL = 2.0**15
GROWTH_STEPS = 2000  # updates before the scale doubles; both are those of tf.keras.mixed_precision.LossScaleOptimizer


def all_finite(tensors: Iterable[tf.Tensor]) -> tf.Tensor:
    """In a graph: whether every number in these float tensors or variables is finite; a bool scalar."""
    return tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors]))


class LossScaleOptimizer(tf.Module):
    """An optimizer under dynamic loss scaling (arXiv:1710.03740 sec. 3.2).

    The scale is halved when gradients overflow, and that update is skipped; it is doubled after GROWTH_STEPS updates without.
    """

    def __init__(self, inner: Optimizer) -> None:
        super().__init__("loss_scaled")
        self.inner = inner
        self.scale = tf.Variable(INITIAL, trainable=False, name="scale")
        self.good = tf.Variable(0, trainable=False, name="good")  # updates since the scale changed
        self.skipped = tf.Variable(0, trainable=False, name="skipped")  # updates, in all

    @property
    def state(self) -> list[tf.Variable]:
        return [*self.inner.state, self.scale, self.good, self.skipped]

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        return loss * self.scale

    def apply(self, gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        """In a graph: one step with the gradients of the scaled loss, unless one is not finite."""

        def accept() -> tf.Tensor:
            self.inner.apply([gradient / self.scale for gradient in gradients], lr)
            grows = self.good + 1 >= GROWTH_STEPS
            self.scale.assign(tf.where(grows, 2 * self.scale, self.scale))
            return self.good.assign(tf.where(grows, 0, self.good + 1))

        def refuse() -> tf.Tensor:
            self.scale.assign(tf.maximum(self.scale / 2, 1.0))
            self.skipped.assign_add(1)
            return self.good.assign(0)

        tf.cond(all_finite(gradients), accept, refuse)
