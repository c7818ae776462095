"""Augmentation of one image in the threads that read, on uint8 pixels after the crop; see `resnet.data.augment.policies`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet.config.training import Augment
from resnet.data.augment import policies
from resnet.data.source import Source


def augmentation(source: Source, augment: Augment, seed: int, side: int) -> Callable[..., tf.Tensor]:
    """In a graph: (image uint8 [side, side, 3], whether it is mirrored first, its key) -> the image after its operations."""
    transform = policies.transform_of(augment, source.settings.mean, seed)

    def in_python(image: NDArray[np.uint8], mirrored: np.bool_, key: np.int64) -> NDArray[np.uint8]:
        with source.reads.call():
            return transform(image, bool(mirrored), int(key))

    def in_graph(image: tf.Tensor, mirrored: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(in_python, [image, mirrored, key], tf.uint8), [side, side, 3])

    return in_graph
