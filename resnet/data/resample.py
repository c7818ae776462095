"""Antialiased resizing and the centre crop of evaluation, as Pillow and torchvision have them, in TensorFlow's operations.

A resized row is a sum of a few rows, so each direction is a product with a sparse matrix, and only the crop's rows and
columns are computed: three times as fast as TensorFlow's ScaleAndTranslate.
"""

from __future__ import annotations

import numpy as np
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
    sources, weights = filters(old, new, first, side, cubic)
    start, stop = sources[:, 0, 0], sources[:, -1, -1] + 1
    size = stop - start
    sources -= start[:, None, None]
    down = matrix(sources[0], weights[0], size[0], 1)
    across = matrix(sources[1], weights[1], size[1], CHANNELS)
    pixels = tf.cast(image[start[0] : stop[0], start[1] : stop[1]], tf.float32)
    pixels = tf.reshape(pixels, [size[0], size[1] * CHANNELS])
    if cubic:  # Pillow clips what overshoots between its two passes, of which the horizontal one is the first
        pixels = tf.clip_by_value(horizontal(across, pixels), 0, 255)
        pixels = tf.clip_by_value(tf.sparse.sparse_dense_matmul(down, pixels), 0, 255)
    else:  # the faster order
        pixels = horizontal(across, tf.sparse.sparse_dense_matmul(down, pixels))
    return tf.reshape(tf.cast(pixels + 0.5, tf.uint8), [side, side, CHANNELS])


def horizontal(across: tf.SparseTensor, pixels: tf.Tensor) -> tf.Tensor:
    """float32 [h, w * 3] to [h, side * 3]."""
    return tf.transpose(tf.sparse.sparse_dense_matmul(across, tf.transpose(pixels)))


def filters(old: tf.Tensor, new: tf.Tensor, first: tf.Tensor, side: int, cubic: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """(sources int64, weights float32), [2, side, n]: pixel first + i of the size `new` is a sum of n pixels of `old`.

    For both directions at once: there are a hundred operations of a few numbers each.
    """
    last = tf.cast(old, tf.float64)[:, None, None] - 1
    scale = (last + 1) / tf.cast(new, tf.float64)[:, None, None]
    stretch = tf.maximum(scale, 1)  # the filter's; it does not shrink where the image grows
    support = (2.0 if cubic else 1.0) * stretch
    centres = (tf.cast(first, tf.float64)[:, None, None] + (np.arange(side) + 0.5)[:, None]) * scale
    taps = tf.floor(centres - support) + tf.range(tf.reduce_max(tf.math.ceil(2 * support)) + 1)
    sources = tf.clip_by_value(taps, 0, last)
    distance = tf.abs(taps + 0.5 - centres) / stretch
    weights = (keys(distance) if cubic else tf.maximum(1 - distance, 0)) * tf.cast(sources == taps, tf.float64)
    weights /= tf.reduce_sum(weights, axis=2, keepdims=True)
    return tf.cast(sources, tf.int64), tf.cast(weights, tf.float32)


def matrix(sources: tf.Tensor, weights: tf.Tensor, size: tf.Tensor, channels: int) -> tf.SparseTensor:
    """float32 [side * channels, size * channels], for pixels whose channels lie side by side; of filters [side, n]."""
    numbers = np.arange(channels, dtype=np.int64)
    rows = np.arange(sources.shape[0])[:, None, None] * channels + numbers
    columns = sources[..., None] * channels + numbers
    pairs = tf.stack([tf.broadcast_to(rows, tf.shape(columns)), columns], axis=-1)
    values = weights[..., None] * np.ones(channels, np.float32)
    shape = tf.stack([sources.shape[0], size]) * channels
    return tf.SparseTensor(tf.reshape(pairs, [-1, 2]), tf.reshape(values, [-1]), shape)


def keys(distance: tf.Tensor) -> tf.Tensor:
    """Keys' cubic kernel with a = -0.5 (IEEE Trans. ASSP 29, 1981, eq. 15) at distances of at least 0; Pillow's bicubic."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return tf.where(distance < 1, near, tf.where(distance < 2, far, tf.zeros_like(distance)))
