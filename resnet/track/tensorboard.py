"""A run's metrics as TensorBoard's event files, in <out>/tensorboard: `tensorboard --logdir runs` compares them."""

from __future__ import annotations

import math
from pathlib import Path

FOLDER = "tensorboard"


class Events:
    """Open for the length of a run; a thread of TensorFlow writes them to disk every few seconds."""

    def __init__(self, out: Path) -> None:
        import tensorflow as tf  # not above: sync needs none

        self.tf = tf
        with tf.device("/CPU:0"):
            self.writer = tf.summary.create_file_writer(str(out / FOLDER))

    def log(self, step: int, metrics: dict[str, float | None]) -> None:
        """Record metrics after `step` updates. None and non-finite values are left out."""
        with self.tf.device("/CPU:0"), self.writer.as_default(step=step):
            for name, value in metrics.items():
                if value is not None and math.isfinite(value):
                    self.tf.summary.scalar(name, value)

    def close(self) -> None:
        self.writer.close()
