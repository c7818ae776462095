"""Evaluation: counts summed over batches and ranks first, divided once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet.config.data import Data, Records
from resnet.config.run import Run
from resnet.data import pipeline
from resnet.data.augment.on_device import prepare_images
from resnet.data.source import Source
from resnet.distributed.ranks import Ranks
from resnet.training.watchdog import Watchdog

EvalStep = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]
Results = tuple["EvalResult", "EvalResult | None"]  # of the network, and of the averaged weights if there are any


@dataclass(frozen=True)
class EvalResult:
    """Accuracies in 0..1, mean cross-entropy in nats without label smoothing, and the number of images."""

    top1: float
    top5: float
    loss: float
    images: int

    def as_dict(self) -> dict[str, float]:
        """As checkpoints and scores.json have it."""
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss, "seen": self.images}


@dataclass(frozen=True)
class Predictions:
    """The network's predictions for evaluation images, in their order: arrays [n]. `valid` is False where there was no image."""

    labels: NDArray[np.int32]
    predicted: NDArray[np.int32]
    probability: NDArray[np.float32]
    valid: NDArray[np.bool_]

    def gather(self, images: int, share: NDArray[np.int64], ranks: Ranks) -> Predictions:
        """Those of all ranks, [images]; `share` has the numbers of this rank's."""
        parts = np.zeros([4, images])
        for part, own in zip(parts, (self.labels, self.predicted, self.probability, self.valid), strict=True):
            part[share] = own[: len(share)]
        labels, predicted, probability, valid = ranks.allreduce_sum(parts)
        integers = labels.astype(np.int32), predicted.astype(np.int32)
        return Predictions(*integers, probability.astype(np.float32), valid > 0)

    def confusion(self, classes: int) -> NDArray[np.int64]:
        """Image counts [classes, classes]: rows are labels, columns are predictions."""
        counts = np.zeros([classes, classes], np.int64)
        np.add.at(counts, (self.labels[self.valid], self.predicted[self.valid]), 1)
        return counts

    def mistakes(self, most: int) -> NDArray[np.int64]:
        """Numbers of at most so many misclassified images, the most confident mistake first."""
        wrong = np.flatnonzero(self.valid & (self.labels != self.predicted))
        return wrong[np.argsort(-self.probability[wrong], kind="stable")][:most]


def correct(logits: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
    """[float32 [B], float32 [B]]: 1 where the label is at rank 1, and within the first 5, else 0.

    logits float32 [B, classes], labels int32 [B]. Ties count as argsort would order them, and a label whose logit is not finite
    is wrong.
    """
    target = tf.gather(logits, labels, axis=1, batch_dims=1)[:, None]
    before = tf.range(tf.shape(logits)[1])[None, :] < labels[:, None]
    ahead = tf.reduce_sum(tf.cast((logits > target) | ((logits == target) & before), tf.int32), axis=1)
    finite = tf.math.is_finite(target[:, 0])
    return [tf.cast(finite & (ahead < k), tf.float32) for k in (1, 5)]


def counts(logits: tf.Tensor, labels: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """float32 [4]: images correct at rank 1, within the first 5, sum of cross-entropy, number of images; all where mask is 1.

    logits float32 [B, classes], labels int32 [B], mask float32 [B].
    """
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    right = [part * mask for part in correct(logits, labels)]
    return tf.stack([tf.reduce_sum(part) for part in (*right, tf.where(mask > 0, loss, 0.0), mask)])


def step(network: tf.keras.Model, mean: tf.keras.Model | None, data: Data) -> EvalStep:
    """The compiled function (images, labels, mask) -> (counts [1, 4], predicted int32 [B], probability float32 [B]).

    With the network `mean` of averaged weights counts are [2, 4], and the predictions are those of `mean`. With data.eval_flip
    the logits are the mean of those of an image and of its mirror image (FFCV's lr_tta, which takes the sum).
    """
    networks = [network, mean] if mean else [network]
    flips = isinstance(data, Records) and data.eval_flip

    def logits_of(evaluated: tf.keras.Model, inputs: tf.Tensor) -> tf.Tensor:
        logits = evaluated(inputs, training=False)
        return (logits + evaluated(tf.reverse(inputs, [2]), training=False)) / 2 if flips else logits

    @tf.function(reduce_retracing=True, autograph=False)
    def evaluation_step(
        images: tf.Tensor, labels: tf.Tensor, mask: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        inputs = prepare_images(images, None, data.mean, data.std)
        logits = [logits_of(evaluated, inputs) for evaluated in networks]
        totals = tf.stack([counts(each, labels, mask) for each in logits])
        probability = tf.reduce_max(tf.nn.softmax(logits[-1]), axis=1)
        return totals, tf.argmax(logits[-1], axis=1, output_type=tf.int32), probability

    return evaluation_step


def evaluate(
    batches: Iterable[tuple[tf.Tensor, tf.Tensor, tf.Tensor]],
    evaluation_step: EvalStep,
    expected: Callable[[], int],
    networks: int = 1,
    ranks: Ranks | None = None,
) -> tuple[Results, Predictions]:
    """Evaluate `networks` networks on this rank's `batches`: results over the images of all ranks, predictions of this rank's.

    `expected()` is the number of images of all ranks, checked after the last batch. Nothing is read from the device before.
    """
    parts = [(*evaluation_step(images, labels, mask), labels, mask) for images, labels, mask in batches]
    nothing = np.zeros([networks, 4])  # of a rank without images
    totals = np.sum([nothing, *(np.asarray(part[0]) for part in parts)], axis=0, dtype=np.float64)
    totals = (ranks or Ranks()).allreduce_sum(totals)
    assert totals[0, 3] == expected(), f"evaluated {totals[0, 3]:.0f} images of {expected()}"
    results = [
        EvalResult(top1 / images, top5 / images, loss / images, int(images)) for top1, top5, loss, images in totals
    ]
    return (results[0], results[1] if len(results) > 1 else None), concatenate(parts)


def concatenate(parts: Iterable[tuple[tf.Tensor, ...]]) -> Predictions:
    """Predictions of batches of (counts, predicted, probability, labels, mask), each [B] but the first."""
    empty = (np.zeros(0, kind) for kind in (np.int32, np.float32, np.int32, np.float32))
    columns = zip(empty, *(map(np.asarray, part[1:]) for part in parts), strict=True)
    predicted, probability, labels, mask = map(np.concatenate, columns)
    return Predictions(labels, predicted, probability, mask > 0)


class Evaluator:
    """Evaluates a run's network, and its averaged weights, on all evaluation images or the first eval_steps batches."""

    def __init__(
        self, run: Run, source: Source, networks: list[tf.keras.Model], ranks: Ranks, watchdog: Watchdog | None = None
    ) -> None:
        self.source, self.networks, self.ranks, self.watchdog = source, networks, ranks, watchdog
        self.images = min(source.eval_images, (run.eval_steps or source.eval_images) * run.batch)
        self.share = source.evaluation_share(self.images, ranks.rank, ranks.size)
        self.batches = pipeline.evaluation(source, run.local_batch, run.eval_steps, ranks.rank, ranks.size)
        self.step = step(networks[0], networks[1] if len(networks) > 1 else None, run.data)
        self.newest: Predictions | None = None  # of this rank's images

    def expected(self) -> int:
        """Images that an evaluation counts, over all ranks: all but those that data.on_corrupt=skip skips."""
        return self.images - int(self.ranks.allreduce_sum(np.array([self.source.skipped(self.share)], np.float64))[0])

    def __call__(self) -> Results:
        """Evaluate the weights as they are. Every rank calls it."""
        batches = self.watchdog.watching(self.batches) if self.watchdog else self.batches
        results, self.newest = evaluate(batches, self.step, self.expected, len(self.networks), self.ranks)
        return results

    def predictions(self) -> Predictions:
        """The newest predictions for the images of all ranks; evaluates if this start has not. Every rank calls it."""
        if self.newest is None:
            self()
        assert self.newest
        return self.newest.gather(self.images, self.share, self.ranks)
