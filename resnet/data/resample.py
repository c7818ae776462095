"""Antialiased resizing and the centre crop of evaluation, as Pillow and torchvision have them, in TensorFlow's operations.

A resized row is a sum of a few rows, so each direction is a product with a sparse matrix, and only the crop's rows and
columns are computed: three times as fast as TensorFlow's ScaleAndTranslate.
"""

from __future__ import annotations

import tensorflow as tf

from resnet.config.data import Interpolation

CHANNELS = 3


def centre(image: tf.Tensor, short: int, side: int, interpolation: Interpolation) -> tf.Tensor:
    """The centre of `image`, uint8 [H, W, 3], once its short side has `short` pixels: uint8 [side, side, 3].

    The long side is truncated, and half a pixel of an offset rounded to even, as torchvision's Resize and CenterCrop do.
    """
    with tf.device("/CPU:0"):  # a GPU's product with a sparse matrix is not deterministic
        old = tf.shape(image)[:2]
        new = short * old // tf.reduce_min(old)
        first = tf.cast(tf.round(tf.cast(new - side, tf.float32) / 2), tf.int32)

        def cropped() -> tf.Tensor:
            return image[first[0] : first[0] + side, first[1] : first[1] + side]

        unchanged = tf.reduce_min(old) == short  # as in shards prepared with resize=256
        pixels = tf.cond(unchanged, cropped, lambda: resized(image, old, new, first, side, interpolation))
        return tf.ensure_shape(pixels, [side, side, CHANNELS])


def resized(
    image: tf.Tensor, old: tf.Tensor, new: tf.Tensor, first: tf.Tensor, side: int, interpolation: Interpolation
) -> tf.Tensor:
    """The square of `side` pixels from `first` on of an image of size `old` resized to `new`, uint8; int32 [2] each."""
    cubic = interpolation is Interpolation.bicubic
    top, bottom, down = matrix(old[0], new[0], first[0], side, cubic, 1)
    left, right, across = matrix(old[1], new[1], first[1], side, cubic, CHANNELS)
    pixels = tf.cast(image[top:bottom, left:right], tf.float32)
    pixels = tf.reshape(pixels, [bottom - top, (right - left) * CHANNELS])
    if cubic:  # Pillow clips what overshoots between its two passes, of which the horizontal one is the first
        pixels = tf.clip_by_value(horizontal(across, pixels), 0, 255)
        pixels = tf.clip_by_value(tf.sparse.sparse_dense_matmul(down, pixels), 0, 255)
    else:  # the faster order
        pixels = horizontal(across, tf.sparse.sparse_dense_matmul(down, pixels))
    return tf.reshape(tf.cast(pixels + 0.5, tf.uint8), [side, side, CHANNELS])


def horizontal(across: tf.SparseTensor, pixels: tf.Tensor) -> tf.Tensor:
    """float32 [h, w * 3] to [h, side * 3]."""
    return tf.transpose(tf.sparse.sparse_dense_matmul(across, tf.transpose(pixels)))


def matrix(
    old: tf.Tensor, new: tf.Tensor, first: tf.Tensor, side: int, cubic: bool, channels: int
) -> tuple[tf.Tensor, tf.Tensor, tf.SparseTensor]:
    """(start, stop, matrix) that make pixels first..first + side of `new` from pixels start..stop of `old`; all int32.

    The sparse matrix is float32 [side * channels, (stop - start) * channels], for pixels whose channels lie side by side.
    """
    scale = tf.cast(old, tf.float64) / tf.cast(new, tf.float64)
    stretch = tf.maximum(scale, 1)  # the filter's; it does not shrink where the image grows
    support = (2.0 if cubic else 1.0) * stretch
    centres = tf.cast(first + tf.range(side), tf.float64) * scale + scale / 2
    lowest = tf.cast(tf.floor(centres - support), tf.int32)
    taps = lowest[:, None] + tf.range(tf.cast(tf.math.ceil(2 * support), tf.int32) + 1)  # [side, taps of a pixel]
    distance = tf.abs(tf.cast(taps, tf.float64) + 0.5 - centres[:, None]) / stretch
    inside = tf.cast((taps >= 0) & (taps < old), tf.float64)
    weights = (keys(distance) if cubic else tf.maximum(1 - distance, 0)) * inside
    weights = tf.cast(weights / tf.reduce_sum(weights, axis=1, keepdims=True), tf.float32)
    start, stop = tf.maximum(taps[0, 0], 0), tf.minimum(taps[-1, -1] + 1, old)
    sources = tf.clip_by_value(taps, start, stop - 1) - start
    pairs = tf.stack([tf.broadcast_to(tf.range(side)[:, None], tf.shape(taps)), sources], axis=-1)
    pairs = pairs[:, :, None] * channels + tf.range(channels)[:, None]
    values = tf.repeat(tf.reshape(weights, [-1]), channels)
    shape = tf.cast(tf.stack([side, stop - start]) * channels, tf.int64)
    return start, stop, tf.SparseTensor(tf.cast(tf.reshape(pairs, [-1, 2]), tf.int64), values, shape)


def keys(distance: tf.Tensor) -> tf.Tensor:
    """Keys' cubic kernel with a = -0.5 (IEEE Trans. ASSP 29, 1981, eq. 15) at distances of at least 0; Pillow's bicubic."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return tf.where(distance < 1, near, tf.where(distance < 2, far, tf.zeros_like(distance)))
