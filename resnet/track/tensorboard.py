"""A run's metrics as TensorBoard's event files, in <out>/tensorboard: `tensorboard --logdir runs` compares them."""

from __future__ import annotations

import math
from pathlib import Path

import tensorflow as tf

FOLDER = "tensorboard"


class Events:
    """Open for the length of a run; written to disk every few seconds by a thread of TensorFlow's."""

    def __init__(self, out: Path) -> None:
        with tf.device("/CPU:0"):
            self.writer = tf.summary.create_file_writer(str(out / FOLDER))

    def log(self, step: int, metrics: dict[str, float | None]) -> None:
        """Record metrics after `step` updates. None and non-finite values are left out."""
        with tf.device("/CPU:0"), self.writer.as_default(step=step):
            for name, value in metrics.items():
                if value is not None and math.isfinite(value):
                    tf.summary.scalar(name, value)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()
