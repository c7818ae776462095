"""Whether a batch that was read has the images' pixels: compared with the same files as Pillow decodes them."""

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
