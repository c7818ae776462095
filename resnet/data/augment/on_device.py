"""Augmentation of a batch on the device, inside the step. The host provides uint8; see `resnet.data.pipeline`."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from resnet.data.augment.draws import WINDOWS


def prepare_images(images: tf.Tensor, flip: tf.Tensor | None, mean: list[float], std: list[float]) -> tf.Tensor:
    """Mirror where `flip` (bool [B], or None), then (x - mean) / std. uint8 [B, S, S, 3] -> float32."""
    if flip is not None:
        images = tf.where(flip[:, None, None, None], tf.reverse(images, [2]), images)
    # Rows of W * 3 numbers, as in_rows() has them; of images whose height is unknown too.
    width = images.shape[2]
    scale = np.tile(1 / np.asarray(std, np.float32), width)
    offset = np.tile(-np.asarray(mean, np.float32) / np.asarray(std, np.float32), width)
    rows = tf.cast(tf.reshape(images, [-1, width * 3]), tf.float32) * scale + offset
    return tf.reshape(rows, tf.shape(images))


def mix(
    images: tf.Tensor, targets: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor, boxes: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Each image with the one half a batch further on: images and targets mixed, and of both labels the heavier.

    images [B, S, S, 3] and targets [B, classes] float32, labels int32 [B], B even; draws float32 [B or 1, 6], see
    draws.mixing(). Without `boxes` every box is the whole image.
    """
    own = draws[:, 0]
    rows = in_rows(images)
    inner = draws[:, 1, None, None]
    # 0 * a pixel of its own + 1 * the other's is the other's.
    weight = tf.where(inside(draws[:, 2:6], rows), inner, 1.0) if boxes else inner
    mixed = weight * rows + (1 - weight) * partners(rows)
    soft = own[:, None] * targets + (1 - own[:, None]) * partners(targets)
    return tf.reshape(mixed, tf.shape(images)), soft, tf.where(own >= 0.5, labels, partners(labels))


def partners(x: tf.Tensor) -> tf.Tensor:
    """The image half a batch further on, of each: the other way round for it, and the same pairs for any number of ranks."""
    half = x.shape[0] // 2
    return tf.concat([x[half:], x[:half]], 0)


def erase(images: tf.Tensor, draws: tf.Tensor, noise: tf.Tensor | None) -> tf.Tensor:
    """Random erasing of normalized images [B, S, S, 3]: 0, the mean, within the rectangles of draws.erasing(), [B, 5].

    With `noise`, int32 [2], the seeds of a field of normal noise, each image has its own window of that field there.
    """
    rows = in_rows(images)
    value: tf.Tensor | float = 0.0
    if noise is not None:
        # A field for each image would cost as much as reading the images.
        field = tf.random.stateless_normal([WINDOWS + rows.shape[1], rows.shape[2]], noise)
        value = tf.gather(field, tf.cast(draws[:, 4:], tf.int32) + tf.range(rows.shape[1]))
    return tf.reshape(tf.where(inside(draws[:, :4], rows), value, rows), tf.shape(images))


def in_rows(images: tf.Tensor) -> tf.Tensor:
    """[B, S, S, 3] -> [B, S, S * 3]: broadcasting over 3 channels does not vectorise on a CPU."""
    return tf.reshape(images, [-1, images.shape[1], images.shape[2] * images.shape[3]])


def inside(boxes: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """bool [n, S, S * 3]: which values of images in rows lie in boxes (top, bottom, left, right), float32 [n, 4]."""
    top, bottom, left, right = (boxes[:, number, None, None] for number in range(4))
    y = tf.range(rows.shape[1], dtype=tf.float32)[None, :, None]
    x = tf.constant(np.repeat(np.arange(rows.shape[2] // 3, dtype=np.float32), 3))[None, None, :]
    return ((y >= top) & (y < bottom)) & ((x >= left) & (x < right))
