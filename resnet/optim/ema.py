"""The exponential moving average (EMA) of all weights, in a network of its own: it is evaluated and saved like the other."""

from __future__ import annotations

import tensorflow as tf


class Ema:
    """`mean` has the layers of `network`; its weights, batch norm's statistics included, follow those of `network`."""

    def __init__(self, network: tf.keras.Model, mean: tf.keras.Model) -> None:
        self.network, self.mean = network, mean

    def start(self) -> None:
        for mean, now in zip(self.mean.weights, self.network.weights, strict=True):
            mean.assign(now)

    @tf.function(autograph=False)
    def update(self, decay: tf.Tensor) -> None:
        """mean = decay * mean + (1 - decay) * now; `decay` is a float32 scalar."""
        for mean, now in zip(self.mean.weights, self.network.weights, strict=True):
            mean.assign_sub((1 - decay) * (mean - now))
