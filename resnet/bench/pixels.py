"""The pipelines that ours is compared with, and whether a batch has the images' pixels, as Pillow decodes them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from resnet.bench.workers import require
from resnet.config.data import Records
from resnet.data import pipeline
from resnet.data.source import Source

IMAGES = 64  # of the reference
SAMPLE = 16  # of a crop that is only decoded, the mean of every so many pixels a side is what the row is checked by


class Pixels:
    """Some training images of a source, decoded by Pillow, and what a batch of this shape must have in common with them."""

    def __init__(self, source: Source, shape: tuple[int, ...]) -> None:
        assert source.train and source.train_reader
        self.settings, self.shape, count = source.settings, shape, len(source.train)
        records = [source.train_reader(number) for number in range(0, count, max(1, count // IMAGES))]
        encoded = tf.io.parse_example(records, pipeline.FEATURES)["image/encoded"].numpy()
        decoded = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB"), np.float32) for one in encoded]
        self.different = min(len(set(encoded)), shape[0])
        self.levels = 15 + 200 / shape[0] ** 0.5  # by which the mean of a batch may differ; of an image, by some 50
        self.mean = float(np.mean([image.mean() for image in decoded]))
        self.std = float(np.mean([image.std() for image in decoded]))

    def check(self, batch: Any) -> None:
        """Raise Wrong unless the first part of `batch` is images in grey levels."""
        self.compare(np.asarray(batch[0], np.float32))

    def check_normalized(self, batch: Any) -> None:
        """The same for images from which the mean was subtracted."""
        assert isinstance(self.settings, Records)
        self.compare(np.asarray(batch[0], np.float32) * self.settings.std + self.settings.mean)

    def check_means(self, means: Any) -> None:
        """The same for the mean of each image."""
        values = np.asarray(means, np.float32)
        require(values.shape == self.shape[:1], f"{values.shape} images, not {self.shape[:1]}")
        require(
            bool(abs(values.mean() - self.mean) < self.levels),
            f"grey level {values.mean():.1f}, and {self.mean:.1f} is right",
        )
        require(len(np.unique(values)) > self.different // 2, "the same image many times")

    def compare(self, images: NDArray[np.floating[Any]]) -> None:
        require(images.shape == self.shape, f"images of shape {images.shape}, not {self.shape}")
        self.check_means(images.mean((1, 2, 3)))
        contrast = float(images.std((1, 2, 3)).mean())
        require(self.std / 2 < contrast < self.std * 2, f"contrast {contrast:.1f}, and {self.std:.1f} is right")


def naive(source: Source, batch: int) -> Any:
    """A first tf.data pipeline: each image by itself, in float, on the host. Dataset of (images, labels)."""
    settings = source.settings
    assert isinstance(settings, Records) and source.train

    def decode(serialized: Any) -> Any:
        example = tf.io.parse_single_example(serialized, pipeline.FEATURES)
        image = tf.io.decode_jpeg(example["image/encoded"], channels=3)
        shape, draws = tf.shape(image), tf.random.uniform([4, pipeline.TRIES])
        top, left, height, width = tf.unstack(pipeline.crop_box(shape[0], shape[1], draws, 0.08, 4 / 3))
        image = tf.image.resize(image[top : top + height, left : left + width], [settings.image_size] * 2)
        image = tf.image.random_flip_left_right(image)
        return (image - settings.mean) / settings.std, example["image/class/label"]

    paths = tf.data.Dataset.from_tensor_slices(list(source.train.files))
    records = paths.interleave(tf.data.TFRecordDataset, cycle_length=4).repeat().shuffle(64)
    return records.map(decode, tf.data.AUTOTUNE).batch(batch).prefetch(tf.data.AUTOTUNE)


def crops_alone(source: Source, batch: int, size: int | None = None) -> Any:
    """The part that no pipeline can leave out: decoding the crop, with `size` resizing it. From memory; no image is batched.

    Dataset of float32 [batch]: the mean of some pixels of each crop. Without them TensorFlow would leave out the work.
    """
    assert source.train and source.train_reader
    blocks = [source.train_reader(number) for number in range(len(source.train))]
    encoded = tf.io.parse_example(blocks, pipeline.FEATURES)["image/encoded"]

    def crop(jpeg: Any) -> Any:
        shape, draws = tf.image.extract_jpeg_shape(jpeg), tf.random.uniform([4, pipeline.TRIES])
        box = pipeline.crop_box(shape[0], shape[1], draws, 0.08, 4 / 3)
        image = tf.image.decode_and_crop_jpeg(jpeg, box, channels=3, dct_method="INTEGER_ACCURATE")
        image = pipeline.resize(image, [size, size]) if size else image
        return tf.reduce_mean(tf.cast(image[::SAMPLE, ::SAMPLE], tf.float32))

    cropped = tf.data.Dataset.from_tensor_slices(encoded).repeat().map(crop, tf.data.AUTOTUNE)
    return cropped.batch(batch).prefetch(tf.data.AUTOTUNE)
