"""The optimizer step as a graph: images to loss to gradients, over the ranks, to the update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from resnet.config.run import Run
from resnet.config.training import NanPolicy
from resnet.data.augment import mix_up, prepare_images
from resnet.optim.loss_scale import Skipping


def compiled(network: Any, optimizer: Any, run: Run, ranks: Any, batch: Any) -> Callable[[Any, Any, Any, Any], Any]:
    """The function (iterator of batches, learning rates [k], MixUp ratios [k], flag) -> (losses [k], flag): k steps at once.

    Losses are of this rank's images, NaN where on_nan.policy=skip left the step out; the flag is summed over the ranks.
    """
    variables = network.trainable_variables
    classes, smoothing, data = run.data.classes, run.label_smoothing, run.data
    parts = run.cluster.gradient_accumulation
    skipping = Skipping(optimizer, network) if run.on_nan.policy is NanPolicy.skip else None

    def slopes(batch: Any, ratio: Any) -> Any:
        """(loss, its gradients) of a batch."""
        images, labels, flip = batch
        inputs = prepare_images(images, flip, data.mean, data.std)
        targets = tf.one_hot(labels, classes, 1 - smoothing + smoothing / classes, smoothing / classes)
        if run.mixup:
            inputs, targets = mix_up(inputs, targets, ratio)
        with tf.GradientTape() as tape:
            logits = network(inputs, training=True)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
            target = optimizer.scaled(loss)
        return loss, tape.gradient(target, variables)

    if run.dtype.jit:
        slopes = tf.function(slopes, jit_compile=True)

    def step(batches: Any, lr: Any, ratio: Any) -> Any:
        before = skipping.before() if skipping else []
        loss, gradients = slopes(next(batches), ratio)
        if parts > 1:
            for _ in tf.range(parts - 1):
                more_loss, more = slopes(next(batches), ratio)
                loss, gradients = loss + more_loss, [a + b for a, b in zip(gradients, more, strict=True)]
            loss, gradients = loss / parts, [gradient / parts for gradient in gradients]
        if skipping is None:
            optimizer.apply(ranks.allreduce_mean(gradients, "gradient"), lr)
            return loss
        *gradients, mean = ranks.allreduce_mean([*gradients, loss], "gradient")
        return tf.where(skipping.apply(gradients, mean, lr, before), loss, float("nan"))

    rates = tf.TensorSpec([None], tf.float32)  # calls of every length have one graph
    signature = [tf.data.IteratorSpec(batch), rates, rates, tf.TensorSpec([], tf.float32)]

    @tf.function(input_signature=signature)
    def one_step(batches: Any, lrs: Any, ratios: Any, flag: Any) -> Any:
        return step(batches, lrs[0], ratios[0])[None], ranks.allreduce_flag(flag)

    @tf.function(input_signature=signature)
    def many_steps(batches: Any, lrs: Any, ratios: Any, flag: Any) -> Any:
        losses = tf.TensorArray(tf.float32, tf.size(lrs))
        for number in tf.range(tf.size(lrs)):
            losses = losses.write(number, step(batches, lrs[number], ratios[number]))
        return losses.stack(), ranks.allreduce_flag(flag)

    return one_step if run.steps_per_loop == 1 else many_steps
