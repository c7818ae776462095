"""What is done to a batch on the device, inside the step. The host hands over uint8; see `resnet.data`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

STREAM = 1 << 32  # keys of the mixing ratios: apart from those of the order, whose second word is an epoch


def mix_ratios(alpha: float, seed: int, steps: Iterable[int]) -> NDArray[np.float32]:
    """The share of the batch itself in each step's mixture, from Beta(alpha, alpha) (arXiv:1710.09412); 1 for alpha 0.

    A function of (seed, step): the same on every rank and after going on.
    """
    keys = [np.array([seed, STREAM + step], np.uint64) for step in steps]
    return np.array([np.random.Generator(np.random.Philox(key=key)).beta(alpha, alpha) if alpha else 1.0 for key in keys],
                    np.float32)  # fmt: skip


def mix_up(images: Any, targets: Any, ratio: Any) -> tuple[Any, Any]:
    """Each image with its opposite in the batch: ratio * x + (1 - ratio) * reversed x, and the targets likewise.

    images [B, S, S, 3] and targets [B, classes] float32, ratio a float32 scalar.
    """

    def mixed(x: Any) -> Any:
        return ratio * x + (1 - ratio) * tf.reverse(x, [0])

    return mixed(images), mixed(targets)
