"""Counts of an evaluation, and what they come to. Summed over batches and ranks first, divided once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet.augment import prepare_images
from resnet.config import Data


@dataclass(frozen=True)
class Scores:
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
    """The compiled function (images, labels, mask) -> counts [1, 4], or [2, 4] with those of the network `mean`."""
    networks = [network, mean] if mean else [network]

    @tf.function(reduce_retracing=True)
    def evaluation_step(images: Any, labels: Any, mask: Any) -> Any:
        inputs = prepare_images(images, None, data.mean, data.std)
        return tf.stack([counts(judged(inputs, training=False), labels, mask) for judged in networks])

    return evaluation_step


def predicting(network: Any, data: Data) -> Any:
    """The compiled function (images, labels, mask) -> (counts [1, 4], the class said of each image, int32 [B])."""

    @tf.function(reduce_retracing=True)
    def prediction_step(images: Any, labels: Any, mask: Any) -> Any:
        logits = network(prepare_images(images, None, data.mean, data.std), training=False)
        return counts(logits, labels, mask)[None], tf.argmax(logits, axis=1, output_type=tf.int32)

    return prediction_step


def over(
    batches: Iterable[tuple[Any, Any, Any]],
    evaluation_step: Any,
    expected: Callable[[], int],
    networks: int = 1,
    summed: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda counts: counts,
) -> tuple[Scores, Scores | None]:
    """Evaluate this rank's `batches` on so many `networks`: (network, mean or None), over the images of all ranks.

    `summed` adds an array up over the ranks. All must hold `expected()` images, asked once they have been read. Nothing is read
    from the device before the last batch.
    """
    parts = [evaluation_step(*batch) for batch in batches]
    nothing = np.zeros([networks, 4])  # what a rank without images has
    totals = summed(np.sum([nothing, *(part.numpy() for part in parts)], axis=0, dtype=np.float64))
    assert totals[0, 3] == expected(), f"evaluated {totals[0, 3]:.0f} images of {expected()}"
    found = [Scores(right1 / seen, right5 / seen, loss / seen, int(seen)) for right1, right5, loss, seen in totals]
    return found[0], found[1] if len(found) > 1 else None
