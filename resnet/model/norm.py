"""Batch norm for CPUs: that of tf.keras.layers, in an order that oneDNN goes through faster (docs/performance.md)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from resnet.model.conv import extent
from resnet.model.relu import relu


class RowNorm(tf.keras.layers.BatchNormalization):
    """Batch norm of [B, H, W, C] over all but C, and a ReLU behind it if `relu`; variables as Keras's layer has them.

    oneDNN's kernel goes through an image once for every 16 channels of it. It is given rows for images, [B * H, 1, W, C], which
    stay in the cache meanwhile; the statistics are over the same numbers. Only where these stand still and numbers are float32,
    as in evaluation and in frozen layers, are there images: TensorFlow computes all of it with the convolution before it then.
    """

    def __init__(self, relu: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.relu = relu

    def call(self, inputs: Any, training: Any = None) -> Any:
        """The same shape, normalized, and with `relu` not below 0."""
        if self.compute_dtype == "float32" and not (training and self.trainable):
            return self.ended(super().call(inputs, training=training))
        *_, wide, channels = shape = extent(inputs)
        rows = tf.reshape(inputs, [-1, 1, wide, channels])
        return tf.reshape(self.ended(super().call(rows, training=training)), shape)

    def ended(self, normalized: Any) -> Any:
        """Behind the ReLU, if there is one; within the rows, or TensorFlow would not compute both in one pass."""
        if not self.relu:
            return normalized
        return relu(normalized) if self.compute_dtype == "bfloat16" else tf.nn.relu(normalized)

    def get_config(self) -> dict[str, Any]:
        """What __init__ needs to make this layer again."""
        return {**super().get_config(), "relu": self.relu}
