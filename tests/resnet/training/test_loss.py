"""The losses, against PyTorch's and timm's values; training accuracies, against counts in NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fake_step import train_step_of
from run_files import logged

from resnet.config.training import Loss
from resnet.data.augment import draws
from resnet.model import resnet
from resnet.training.loop import train
from resnet.training.step import loss_of

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "oracle_loss.json").read_text())


@pytest.mark.parametrize("kind", ["bce", "softmax"])
def test_losses_of_soft_targets_are_those_of_pytorch_and_timm(kind):
    logits, labels = np.float32(GOLDEN["logits"]), np.array(GOLDEN["labels"])
    for case in GOLDEN["cases"]:
        classes, smooth, share = logits.shape[1], case["smoothing"], case["share"] or 1.0
        targets = np.eye(classes)[labels] * (1 - smooth) + smooth / classes
        targets = share * targets + (1 - share) * targets[::-1]  # as timm pairs them
        threshold = case["threshold"] if kind == "bce" else None
        ours = loss_of(Loss(kind), tf.constant(targets, tf.float32), tf.constant(logits), threshold)
        assert float(ours) == pytest.approx(case[kind], abs=1e-6, rel=1e-6)


# --------------------------------------------------------------------------------------------------------------- accuracy
WORDS = ("model=tiny", "data=digits", "batch=48", "track=off", "optim.lr=0", "eval=false", "schedule=constant")
MIXED = ("mixup=0.4", "cutmix=1", "mix_by=image", "augment.erasing=0.5")


@pytest.fixture
def logits(monkeypatch):
    """In place of a network: logits that are a matrix times the pixels, and a list of those of every batch."""
    matrix = np.random.default_rng(0).normal(size=(32 * 32 * 3, 10)).astype(np.float32)
    seen = []

    class Recorded(tf.keras.layers.Layer):
        def call(self, x):
            x.set_shape([None, 10])
            tf.numpy_function(lambda values: seen.append(values.copy()), [x], [])
            return x

    def build(*_settings, **_more):
        head = tf.keras.layers.Dense(10, use_bias=False, kernel_initializer=tf.constant_initializer(matrix), name="fc")
        return tf.keras.Sequential([tf.keras.layers.Input([32, 32, 3]), tf.keras.layers.Flatten(), head, Recorded()])

    monkeypatch.setattr(resnet, "build", build)
    return seen


@pytest.mark.parametrize("more", [(), MIXED, (*MIXED, "steps_per_loop=4"), (*MIXED, "cluster.gradient_accumulation=3")])
def test_training_accuracies_are_counts_of_the_heavier_label(run_of, logits, more):
    run = run_of(*WORDS, *more)
    step, count, parts = train_step_of(run), 4, run.cluster.gradient_accumulation
    labels = [batch[1].numpy() for batch, _ in zip(step.batches, range(count * parts), strict=False)]
    step.prepare(0)
    calls = range(0, count, run.steps_per_loop)
    figures = [step.train(*step.inputs(first, first + run.steps_per_loop), tf.constant(0.0))[0] for first in calls]
    mix = draws.of_steps(run, range(count), 32).mix
    shares = mix[..., 0].reshape(count * parts, -1) if run.mixes else np.ones((count * parts, 1))
    right = []
    for scores, own, share in zip(logits, labels, shares, strict=True):
        heavier = np.where(share >= 0.5, own, np.roll(own, len(own) // 2))
        places = (scores > scores[np.arange(len(own)), heavier][:, None]).sum(1)
        right.append([(places < 1).mean(), (places < 5).mean()])
    wanted = np.reshape(right, (count, parts, 2)).mean(1)
    np.testing.assert_allclose(np.concatenate(figures)[:, 1:], wanted, atol=1e-6)
    assert 0 < wanted[:, 0].mean() < wanted[:, 1].mean() < 1


@pytest.mark.usefixtures("small_network")
def test_they_are_logged_beside_the_loss_and_with_five_classes_without_top5(run_of, tmp_path):
    words = ("model=tiny", "data=synthetic", "data.image_size=16", "batch=8", "track=off", "eval=false", "steps=6")
    for classes, steps in ((6, [3, 6]), (5, [])):
        run = run_of(*words, "log_every_steps=3", f"data.classes={classes}", f"out={tmp_path}/{classes}")
        train(run, Path(run.out))
        assert [step for step, _ in logged(run.out, "train/top1")][-2:] == [3, 6]
        assert [step for step, _ in logged(run.out, "train/top5")][-2:] == steps
