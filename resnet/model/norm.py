"""Batch norm for CPUs: that of tf.keras.layers, with its input in a shape that oneDNN is faster with (docs/performance.md)."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import tensorflow as tf

from resnet.config.cluster import Cluster, Device
from resnet.model.conv import extent
from resnet.model.relu import relu


class RowNorm(tf.keras.layers.BatchNormalization):
    """Batch norm of [B, H, W, C] over all axes but C, followed by a ReLU if `relu`; variables as in Keras's layer.

    oneDNN's kernel reads an image once for every 16 channels. Its input is reshaped to rows, [B * H, 1, W, C], which stay in the
    cache; the statistics are over the same numbers. In float32 with fixed statistics, as in evaluation and in frozen layers,
    the input keeps its shape: TensorFlow fuses the layer into the convolution before it.
    """

    def __init__(self, relu: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.relu = relu

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The same shape, normalized, and with `relu` not below 0."""
        if self.compute_dtype == "float32" and not (training and self.trainable):
            return self.activate(super().call(inputs, training=training))
        *_, wide, channels = shape = extent(inputs)
        rows = tf.reshape(inputs, [-1, 1, wide, channels])
        return tf.reshape(self.activate(super().call(rows, training=training)), shape)

    def activate(self, normalized: tf.Tensor) -> tf.Tensor:
        """The ReLU, if there is one; applied to the rows, or TensorFlow would not fuse the two."""
        if not self.relu:
            return normalized
        return relu(normalized) if self.compute_dtype == "bfloat16" else tf.nn.relu(normalized)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "relu": self.relu}


def batch_norm_class(cluster: Cluster, hvd: ModuleType | None = None) -> Any:
    """The batch norm layer: Keras's, by rows on a CPU, or Horovod's with statistics over all ranks.

    Horovod's moving variance is that of the batch; Keras's fused kernel multiplies it by N / (N - 1). So with one rank (`hvd` is
    None) cluster.sync_batch_norm=true uses the layer that is not fused.
    """
    if not cluster.sync_batch_norm:
        return RowNorm if cluster.device is Device.cpu else tf.keras.layers.BatchNormalization
    if hvd is None:
        return functools.partial(tf.keras.layers.BatchNormalization, fused=False)
    return hvd.SyncBatchNormalization
