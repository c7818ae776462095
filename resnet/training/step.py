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
from resnet.config.training import NanPolicy
from resnet.data import blocks, pipeline
from resnet.data.augment import on_device
from resnet.data.source import Source
from resnet.distributed import device
from resnet.distributed.ranks import Ranks
from resnet.model import drop
from resnet.model.drop import Draws
from resnet.optim.schedule import Plan
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
        dataset = pipeline.train(self.source, run.batch, run.seed, step, *place, size, parts, run.augment)
        self.batches = iter(device.prefetch_to_device(dataset, run.cluster))
        rates = tf.TensorSpec([None], tf.float32)  # calls of every length have one graph
        numbers, flag = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.float32)
        signature = [tf.data.IteratorSpec(self.batches.element_spec), rates, rates, numbers, flag]
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

    def inputs(
        self, first: int, last: int, lrs: ArrayLike | None = None
    ) -> tuple[Iterator[Batch], tf.Tensor, tf.Tensor, tf.Tensor]:
        """Arguments of train() for the steps from `first` up to `last`; `lrs` replace the schedule's learning rates."""
        if lrs is None:
            lrs = self.plan.lr(np.arange(first, last)) * self.state.progress.lr_scale
        self.position = last
        ratios = on_device.mix_ratios(self.run.mixup, self.run.seed, range(first, last))
        return self.batches, tf.constant(lrs, tf.float32), tf.constant(ratios), tf.range(first, last)

    def train_steps(
        self, batches: Iterator[Batch], lrs: tf.Tensor, ratios: tf.Tensor, steps: tf.Tensor, flag: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """In a graph: an update for each learning rate [k], MixUp ratio [k] and number of a step, int32 [k].

        Returns (losses [k], `flag` summed over the ranks). Losses are of this rank's images, NaN where on_nan.policy=skip
        skipped the update.
        """
        losses = tf.TensorArray(tf.float32, tf.size(lrs))
        # A while loop in a graph costs time: none for one step.
        for number in range(1) if self.run.steps_per_loop == 1 else tf.range(tf.size(lrs)):
            before = self.skip.snapshot() if self.skip else []
            loss, gradients = self.gradients(
                self.data_wait.next(batches), ratios[number], steps[number], tf.constant(0)
            )
            self.data_wait.computed(loss, gradients)
            parts = self.run.cluster.gradient_accumulation
            if parts > 1:
                for part in tf.range(1, parts):
                    more_loss, more = self.gradients(self.data_wait.next(batches), ratios[number], steps[number], part)
                    self.data_wait.computed(more_loss, more)
                    loss, gradients = loss + more_loss, [a + b for a, b in zip(gradients, more, strict=True)]
                loss, gradients = loss / parts, [gradient / parts for gradient in gradients]
            losses = losses.write(number, self.update(loss, gradients, lrs[number], before))
        return losses.stack(), self.ranks.allreduce_flag(flag)

    @pipeline.do_not_convert
    def update(
        self, loss: tf.Tensor, gradients: list[tf.Tensor], lr: tf.Tensor, before: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        """In a graph: update the variables with the gradients' mean over the ranks; `loss`, NaN if the update was skipped."""
        if self.skip is None:
            self.state.optimizer.apply(self.ranks.allreduce_mean(gradients, "gradient"), lr)
            return loss
        *gradients, mean = self.ranks.allreduce_mean([*gradients, loss], "gradient")
        return tf.where(self.skip.apply(gradients, mean, lr, before), loss, float("nan"))

    @pipeline.do_not_convert
    def draws(self, step: tf.Tensor, part: tf.Tensor) -> Draws:
        """In a graph: the random numbers of this rank's images, which are the accumulated step `part` of the step."""
        run, count = self.run, self.run.local_batch // self.run.cluster.gradient_accumulation
        positions = blocks.positions(run.data, run.batch, run.batch, self.ranks.rank, self.ranks.size)
        here = tf.slice(tf.constant(positions, tf.int32), [part * count], [count])
        return Draws(run.seed, step, run.batch, here)

    @pipeline.do_not_convert
    def loss_and_gradients(
        self, batch: Batch, ratio: tf.Tensor, step: tf.Tensor, part: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """In a graph: (softmax cross-entropy, its gradients) of images uint8 [B, S, S, 3], labels int32 [B], flip bool [B]."""
        run, (images, labels, flip) = self.run, batch
        smoothing, classes = run.label_smoothing, run.data.classes
        inputs = on_device.prepare_images(images, flip, run.data.mean, run.data.std)
        targets = tf.one_hot(labels, classes, 1 - smoothing + smoothing / classes, smoothing / classes)
        if run.mixup:
            inputs, targets = on_device.mix_up(inputs, targets, ratio)
        with drop.drawing(self.draws(step, part)), tf.GradientTape() as tape:
            logits = self.state.network(inputs, training=True)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
            target = self.state.optimizer.scaled(loss)
        return loss, tape.gradient(target, self.variables)
