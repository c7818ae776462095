"""The random numbers of what happens to a batch on the device: how its images are mixed, and which parts are erased.

They are drawn on the host for all images of a step, over all ranks, by generators keyed by (seed, step). A rank takes those of
its positions in the batch: rank, rank + ranks, ... So they are the same for any number of ranks and after resuming.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet.config.run import Run
from resnet.config.training import MixBy
from resnet.data import blocks

Floats = NDArray[np.float32]

MIXING = 1 << 32  # second words of the keys: apart from those of the order, which are epochs
ERASING = 2 << 32
AREA = (0.02, 0.33)  # of an erased rectangle, as shares of the image (torchvision's RandomErasing)
ASPECT = (0.3, 3.3)  # its height by its width
TRIES = 10  # to find one that fits into the image
WINDOWS = 1024  # places of an image's window in a step's field of noise


class Draws(NamedTuple):
    """Arrays or tensors, of some steps in `parts` accumulated parts of B images of this rank; what is off has 0 for B."""

    mix: Any  # [steps, parts, B or 1, 6], see mixing()
    erase: Any  # [steps, parts, B, 5], see erasing()
    noise: Any  # [steps, parts, 2], seeds of a step's field of noise
    step: Any  # [steps, parts], the numbers of the steps
    positions: Any  # [steps, parts, B], where the images are in the batch of all ranks


def specs(run: Run) -> Draws:
    """Shapes and types of the draws of any number of steps."""
    parts = run.cluster.gradient_accumulation
    images = run.local_batch // parts
    mixed = 0 if not run.mixes else images if run.mix_by is MixBy.image else 1
    return Draws(
        tf.TensorSpec([None, parts, mixed, 6], tf.float32),
        tf.TensorSpec([None, parts, images if run.augment.erasing else 0, 5], tf.float32),
        tf.TensorSpec([None, parts, 2], tf.int32),
        tf.TensorSpec([None, parts], tf.int32),
        tf.TensorSpec([None, parts, images], tf.int32),
    )


def of_steps(run: Run, steps: Iterable[int], size: int, rank: int = 0, ranks: int = 1) -> Draws:
    """The draws of `rank` for images of side `size`."""
    steps, parts = list(steps), run.cluster.gradient_accumulation
    positions = blocks.positions(run.data, run.batch, run.batch, rank, ranks, strided=run.by_position)
    mixes = [mixing(run, step, size) for step in steps] if run.mixes else []
    erases = [erasing(run.augment.erasing, run.seed, step, run.batch, size) for step in steps if run.augment.erasing]
    return Draws(
        by_parts(mixes, positions, len(steps), parts, 6),
        by_parts(erases, positions, len(steps), parts, 5),
        np.array([[[run.seed, -1 - step]] * parts for step in steps], np.int32),
        np.array([[step] * parts for step in steps], np.int32),
        np.stack([positions.reshape(parts, -1).astype(np.int32)] * len(steps)),
    )


def by_parts(draws: list[Floats], positions: NDArray[np.int64], steps: int, parts: int, columns: int) -> Floats:
    """Of the draws of each step those at `positions`, [steps, parts, B, columns]; if they are the same for all images, B is 1."""
    if not draws:
        return np.zeros([steps, parts, 0, columns], np.float32)
    if len(draws[0]) == 1:
        return np.stack([[draw] * parts for draw in draws])
    return np.stack([draw[positions].reshape(parts, -1, columns) for draw in draws])


def mixing(run: Run, step: int, size: int) -> Floats:
    """float32 [batch, 6], or [1, 6] with mix_by=batch: how much of an image's target is its own, how much of its pixels within
    a box, and that box: top, bottom, left, right. Outside it every pixel is the image's own.

    MixUp (arXiv:1710.09412): both shares are Beta(alpha, alpha), the box is the image. CutMix (arXiv:1905.04899 sec. 3.1): none
    of the box is the image's own; its centre is uniform, its sides are sqrt(1 - share) of the image's, clipped at the border,
    and the share is then that of the pixels outside.
    """
    random = np.random.Generator(np.random.Philox(key=np.array([run.seed, MIXING + step], np.uint64)))
    count = run.batch if run.mix_by is MixBy.image else 1
    share = random.beta(run.mixup, run.mixup, count) if run.mixup else np.ones(count)
    nothing = np.zeros(count)
    draws = np.stack([share, share, nothing, nothing + size, nothing, nothing + size], 1)
    if run.cutmix:
        half = np.floor(np.sqrt(1 - random.beta(run.cutmix, run.cutmix, count)) * size / 2)
        centre = np.floor(random.random([2, count]) * size)
        top, left = np.maximum(centre - half, 0)
        bottom, right = np.minimum(centre + half, size)
        boxes = np.stack([1 - (bottom - top) * (right - left) / size**2, nothing, top, bottom, left, right], 1)
        cut = random.random(count) < (run.mix_switch if run.mixup else 1)
        draws = np.where(cut[:, None], boxes, draws)
    return draws.astype(np.float32)


def erasing(probability: float, seed: int, step: int, batch: int, size: int) -> Floats:
    """float32 [batch, 5]: the rectangle to erase in each image, top, bottom, left, right, which is empty for none; and where
    its window in the field of noise begins.

    arXiv:1708.04896, algorithm 1, as torchvision has it: area uniform, aspect log-uniform, the first of ten tries that fits.
    """
    random = np.random.Generator(np.random.Philox(key=np.array([seed, ERASING + step], np.uint64)))
    erased = random.random(batch) < probability
    area = size**2 * random.uniform(*AREA, [TRIES, batch])
    aspect = np.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), [TRIES, batch]))
    heights, widths = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (heights < size) & (widths < size)
    first, images = fits.argmax(0), np.arange(batch)
    erased &= fits.any(0)
    height, width = heights[first, images] * erased, widths[first, images] * erased
    top, left = (np.floor(random.random(batch) * (size - side + 1)) for side in (height, width))
    window = random.integers(WINDOWS, size=batch)
    return np.stack([top, top + height, left, left + width, window], 1).astype(np.float32)
