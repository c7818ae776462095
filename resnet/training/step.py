"""The optimizer step: images to loss to gradients, averaged over the ranks, to the update."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from resnet import cli
from resnet.config.run import Run
from resnet.config.training import ErasingMode, Loss, NanPolicy
from resnet.data import pipeline
from resnet.data.augment import draws, on_device
from resnet.data.augment.draws import Draws
from resnet.data.source import Source
from resnet.distributed import device
from resnet.distributed.ranks import Ranks
from resnet.model import drop
from resnet.optim.schedule import Plan
from resnet.training.evaluation import correct
from resnet.training.meter import Batch, DataWait
from resnet.training.nonfinite import SkipNonFinite
from resnet.training.state import TrainState

ITERATOR_END_S = 0.1  # for what takes 10 ms


class TrainStep:
    """The compiled optimizer step, and the batches and learning rates that it takes."""

    def __init__(self, run: Run, plan: Plan, source: Source, state: TrainState, ranks: Ranks) -> None:
        self.run, self.plan, self.source, self.state, self.ranks = run, plan, source, state, ranks
        self.variables = state.network.trainable_variables
        self.skip = SkipNonFinite(state.optimizer, state.network) if run.on_nan.policy is NanPolicy.skip else None
        self.batches: Any = None  # iterator
        with device.device_scope(run.cluster):
            self.data_wait = DataWait()
        self.position = -1  # the step whose batch comes next
        self.train: Any = None  # train_steps() as a graph
        jit = run.dtype.jit
        self.gradients = tf.function(self.loss_and_gradients, jit_compile=True) if jit else self.loss_and_gradients

    def prepare(self, step: int) -> bool:
        """Build pipeline and graph if `step` needs new ones: first, resumed, rolled back, or crops of a new size.

        Returns whether it has; the next call then traces the graph.
        """
        if step == self.position and not self.plan.resizes(step):
            return False
        run, size, ranks = self.run, self.plan.size(step), self.ranks
        parts = run.cluster.gradient_accumulation
        place = ranks.rank, ranks.size
        augment = run.augment, run.by_position
        dataset = pipeline.train(self.source, run.batch, run.seed, step, *place, size, parts, *augment)
        self.batches = iter(device.prefetch_to_device(dataset, run.cluster))
        rates = tf.TensorSpec([None], tf.float32)  # calls of every length have one graph
        batches, flag = tf.data.IteratorSpec(self.batches.element_spec), tf.TensorSpec([], tf.float32)
        signature = [batches, rates, draws.specs(run), flag]
        self.train = tf.function(self.train_steps, input_signature=signature)
        return True

    def close(self) -> None:
        """Destroy the iterator, which waits for its threads; one that does not end in time ends with the process.

        The thread that tunes the iterator may sleep for up to a minute: TensorFlow wakes it before it marks the iterator as
        cancelled (CancellationManager::StartCancel calls back first), and if the thread looks in between, it sleeps again.
        """
        if not self.source.reads.count:
            thread = threading.Thread(target=self.destroy, daemon=True, name="iterator")
            thread.start()
            thread.join(ITERATOR_END_S)
            if thread.is_alive():
                cli.unfinished.append((thread.is_alive, ""))

    def destroy(self) -> None:
        """Drop the iterator and the graph that takes it."""
        self.batches = self.train = None

    def inputs(self, first: int, last: int, lrs: ArrayLike | None = None) -> tuple[Iterator[Batch], tf.Tensor, Draws]:
        """Arguments of train() for the steps from `first` up to `last`; `lrs` replace the schedule's learning rates."""
        if lrs is None:
            lrs = self.plan.lr(np.arange(first, last)) * self.state.progress.lr_scale
        self.position = last
        drawn = draws.of_steps(self.run, range(first, last), self.plan.size(first), self.ranks.rank, self.ranks.size)
        return self.batches, tf.constant(lrs, tf.float32), Draws(*map(tf.constant, drawn))

    def train_steps(
        self, batches: Iterator[Batch], lrs: tf.Tensor, drawn: Draws, flag: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """In a graph: an update for each learning rate [k] and its draws; (figures [k, 3], `flag` summed over the ranks).

        Figures are loss, top-1 and top-5 of this rank's images, NaN where on_nan.policy=skip skipped the update.
        """
        figures = tf.TensorArray(tf.float32, tf.size(lrs))
        parts = self.run.cluster.gradient_accumulation
        # A while loop in a graph costs time: none for one step.
        for number in range(1) if self.run.steps_per_loop == 1 else tf.range(tf.size(lrs)):
            before = self.skip.snapshot() if self.skip else []
            mean, gradients = self.part(batches, drawn, number, 0)
            if parts > 1:
                for part in tf.range(1, parts):
                    more_figures, more = self.part(batches, drawn, number, part)
                    mean, gradients = mean + more_figures, [a + b for a, b in zip(gradients, more, strict=True)]
                mean, gradients = mean / parts, [gradient / parts for gradient in gradients]
            figures = figures.write(number, self.update(mean, gradients, lrs[number], before))
        return figures.stack(), self.ranks.allreduce_flag(flag)

    @pipeline.do_not_convert
    def part(
        self, batches: Iterator[Batch], drawn: Draws, number: tf.Tensor | int, part: tf.Tensor | int
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """In a graph: figures and gradients of the next batch, which is a part of step `number` of this call."""
        own = Draws(*(values[number, part] for values in drawn))
        figures, gradients = self.gradients(self.data_wait.next(batches), own)
        self.data_wait.computed(figures[0], gradients)
        return figures, gradients

    @pipeline.do_not_convert
    def update(
        self, figures: tf.Tensor, gradients: list[tf.Tensor], lr: tf.Tensor, before: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        """In a graph: update the variables with the gradients' mean over the ranks; `figures`, NaN if the update was skipped."""
        if self.skip is None:
            self.state.optimizer.apply(self.ranks.allreduce_mean(gradients, "gradient"), lr)
            return figures
        *gradients, loss = self.ranks.allreduce_mean([*gradients, figures[0]], "gradient")
        return tf.where(self.skip.apply(gradients, loss, lr, before), figures, float("nan"))

    @pipeline.do_not_convert
    def loss_and_gradients(self, batch: Batch, drawn: Draws) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """In a graph: ([loss, top-1, top-5], gradients) of images uint8 [B, S, S, 3], labels int32 [B], flip bool [B].

        The accuracies are shares of the images: of mixed ones by the heavier of both labels.
        """
        run, (images, labels, flip) = self.run, batch
        smoothing, classes = run.label_smoothing, run.data.classes
        inputs = on_device.prepare_images(images, flip, run.data.mean, run.data.std)
        targets = tf.one_hot(labels, classes, 1 - smoothing + smoothing / classes, smoothing / classes)
        if run.augment.erasing:
            noise = drawn.noise if run.augment.erasing_mode is ErasingMode.pixel else None
            inputs = on_device.erase(inputs, drawn.erase, noise)
        if run.mixes:
            inputs, targets, labels = on_device.mix(inputs, targets, labels, drawn.mix, run.cutmix > 0)
        masks = drop.Draws(run.seed, drawn.step, run.batch, drawn.positions)
        with drop.drawing(masks), tf.GradientTape() as tape:
            logits = self.state.network(inputs, training=True)
            loss = loss_of(run.loss, targets, logits, run.bce_threshold)
            target = self.state.optimizer.scaled(loss)
        figures = [loss, *map(tf.reduce_mean, correct(logits, labels))]
        return tf.stack(figures), tape.gradient(target, self.variables)


def loss_of(kind: Loss, targets: tf.Tensor, logits: tf.Tensor, threshold: float | None = None) -> tf.Tensor:
    """The mean loss of logits [B, classes] for soft targets of the same shape, nats.

    `bce` is the binary cross-entropy of every class by itself (arXiv:2110.00476 sec. 2.1), the mean over images and classes;
    with `threshold` targets above it count as 1 and others as 0.
    """
    match kind:
        case Loss.softmax:
            return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
        case Loss.bce:
            hard = targets if threshold is None else tf.cast(targets > threshold, targets.dtype)
            return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(hard, logits))
