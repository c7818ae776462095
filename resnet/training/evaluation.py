"""Counts of an evaluation, and what they come to. Summed over batches and ranks first, divided once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet.config.data import Data
from resnet.data.augment import prepare_images


@dataclass(frozen=True)
class EvalResult:
    """An evaluation's result: shares in 0..1, mean cross-entropy in nats without smoothing, and the images it is over."""

    top1: float
    top5: float
    loss: float
    seen: int


def counts(logits: Any, labels: Any, mask: Any) -> Any:
    """float32 [4]: images right at first, right within the first five, sum of cross-entropy, images; all where mask is 1.

    logits float32 [B, classes], labels int32 [B], mask float32 [B]. Ties count as argsort would order them, and a label
    whose logit is not a number is wrong.
    """
    target = tf.gather(logits, labels, axis=1, batch_dims=1)[:, None]
    before = tf.range(tf.shape(logits)[1])[None, :] < labels[:, None]
    ahead = tf.reduce_sum(tf.cast((logits > target) | ((logits == target) & before), tf.int32), axis=1)
    number = tf.math.is_finite(target[:, 0])
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    right = [tf.cast(number & (ahead < k), tf.float32) * mask for k in (1, 5)]
    return tf.stack([tf.reduce_sum(part) for part in (*right, tf.where(mask > 0, loss, 0.0), mask)])


def step(network: Any, mean: Any, data: Data) -> Any:
    """The compiled function (images, labels, mask) -> (counts [1, 4], said int32 [B], probability float32 [B]).

    `said` is the likeliest class of each image. With the network `mean` counts are [2, 4], and it is `mean` that says so.
    """
    networks = [network, mean] if mean else [network]

    @tf.function(reduce_retracing=True)
    def evaluation_step(images: Any, labels: Any, mask: Any) -> Any:
        inputs = prepare_images(images, None, data.mean, data.std)
        logits = [judged(inputs, training=False) for judged in networks]
        counted = tf.stack([counts(found, labels, mask) for found in logits])
        sure = tf.reduce_max(tf.nn.softmax(logits[-1]), axis=1)
        return counted, tf.argmax(logits[-1], axis=1, output_type=tf.int32), sure

    return evaluation_step


@dataclass(frozen=True)
class Predictions:
    """What one rank's network said of its evaluation images, in their order: arrays [n]. `seen` is False where there was none."""

    labels: NDArray[np.int32]
    said: NDArray[np.int32]
    probability: NDArray[np.float32]
    seen: NDArray[np.bool_]

    def gathered(
        self, images: int, rank: int, ranks: int, summed: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> Predictions:
        """Those of all ranks, [images], by the number of the image: image i is the (i // ranks)th of rank i % ranks."""
        mine = len(range(rank, images, ranks))
        parts = np.zeros([4, images])
        for part, own in zip(parts, (self.labels, self.said, self.probability, self.seen), strict=True):
            part[rank::ranks] = own[:mine]
        labels, said, probability, seen = summed(parts)
        return Predictions(labels.astype(np.int32), said.astype(np.int32), probability.astype(np.float32), seen > 0)

    def confusion(self, classes: int) -> NDArray[np.int64]:
        """Images by class and by what was said of them, [classes, classes]: rows are the truth."""
        found = np.zeros([classes, classes], np.int64)
        np.add.at(found, (self.labels[self.seen], self.said[self.seen]), 1)
        return found

    def mistakes(self, most: int) -> NDArray[np.int64]:
        """Numbers of at most so many images that were taken for another class: the surest mistake first."""
        wrong = np.flatnonzero(self.seen & (self.labels != self.said))
        return wrong[np.argsort(-self.probability[wrong], kind="stable")][:most]


def evaluate(
    batches: Iterable[tuple[Any, Any, Any]],
    evaluation_step: Any,
    expected: Callable[[], int],
    networks: int = 1,
    summed: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda counts: counts,
    told: Callable[[Predictions], object] | None = None,
) -> tuple[EvalResult, EvalResult | None]:
    """Evaluate this rank's `batches` on so many `networks`: (network, mean or None), over the images of all ranks.

    `summed` adds an array up over the ranks. All must hold `expected()` images, asked once they have been read. Nothing is read
    from the device before the last batch. `told` is given what was said of this rank's images.
    """
    parts = [(*evaluation_step(images, labels, mask), labels, mask) for images, labels, mask in batches]
    nothing = np.zeros([networks, 4])  # what a rank without images has
    totals = summed(np.sum([nothing, *(np.asarray(part[0]) for part in parts)], axis=0, dtype=np.float64))
    assert totals[0, 3] == expected(), f"evaluated {totals[0, 3]:.0f} images of {expected()}"
    if told:
        told(answers(parts))
    found = [EvalResult(right1 / seen, right5 / seen, loss / seen, int(seen)) for right1, right5, loss, seen in totals]
    return found[0], found[1] if len(found) > 1 else None


def answers(parts: Iterable[tuple[Any, ...]]) -> Predictions:
    """Of batches of (counts, said, probability, labels, mask), each [B] but the first."""
    empty = (np.zeros(0, kind) for kind in (np.int32, np.float32, np.int32, np.float32))
    columns = zip(empty, *(map(np.asarray, part[1:]) for part in parts), strict=True)
    said, probability, labels, mask = map(np.concatenate, columns)
    return Predictions(labels, said, probability, mask > 0)
