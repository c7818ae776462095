"""Augmentation of a batch on the device, inside the step. The host provides uint8; see `resnet.data.pipeline`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

STREAM = 1 << 32  # keys of the mixing ratios: apart from those of the order, whose second word is an epoch


def mix_ratios(alpha: float, seed: int, steps: Iterable[int]) -> NDArray[np.float32]:
    """The share of the batch itself in each step's mixture, from Beta(alpha, alpha) (arXiv:1710.09412); 1 for alpha 0.

    A function of (seed, step): the same on every rank and after resuming.
    """
    keys = [np.array([seed, STREAM + step], np.uint64) for step in steps]
    generators = (np.random.Generator(np.random.Philox(key=key)) for key in keys)
    return np.array([random.beta(alpha, alpha) if alpha else 1.0 for random in generators], np.float32)


def prepare_images(images: tf.Tensor, flip: tf.Tensor | None, mean: list[float], std: list[float]) -> tf.Tensor:
    """Mirror where `flip` (bool [B], or None), then (x - mean) / std. uint8 [B, S, S, 3] -> float32."""
    if flip is not None:
        images = tf.where(flip[:, None, None, None], tf.reverse(images, [2]), images)
    # Rows of W * 3 numbers: broadcasting over 3 channels does not vectorise on a CPU.
    width = images.shape[2]
    scale = np.tile(1 / np.asarray(std, np.float32), width)
    offset = np.tile(-np.asarray(mean, np.float32) / np.asarray(std, np.float32), width)
    rows = tf.cast(tf.reshape(images, [-1, width * 3]), tf.float32) * scale + offset
    return tf.reshape(rows, tf.shape(images))


def mix_up(images: tf.Tensor, targets: tf.Tensor, ratio: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each image with its opposite in the batch: ratio * x + (1 - ratio) * reversed x, and the targets likewise.

    images [B, S, S, 3] and targets [B, classes] float32, ratio a float32 scalar.
    """

    def mixed(x: tf.Tensor) -> tf.Tensor:
        return ratio * x + (1 - ratio) * tf.reverse(x, [0])

    return mixed(images), mixed(targets)
