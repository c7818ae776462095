"""Loss scaling against the rule in a few lines of Python, and against no scaling at all."""

import numpy as np
import pytest
import tensorflow as tf

from resnet.config.optim import Sgd
from resnet.optim import loss_scale, optimizers
from resnet.optim.loss_scale import LossScaleOptimizer


def made(growth=None, monkeypatch=None):
    if growth:
        monkeypatch.setattr(loss_scale, "GROWTH_STEPS", growth)
    weight = tf.Variable([1.0, -2.0], name="kernel:0")
    return weight, LossScaleOptimizer(optimizers.build(Sgd(lr=0.1, momentum=0.9, weight_decay=0.0), [weight]))


def test_the_scale_follows_the_published_rule(monkeypatch):
    weight, optimizer = made(3, monkeypatch)
    apply = tf.function(lambda gradient: optimizer.apply([gradient], 0.1))
    scale, good, skipped, velocity = 2.0**15, 0, 0, np.zeros(2)
    expected = weight.numpy().astype(np.float64)
    for bad in (0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0):
        gradient = np.array([0.5, -0.25]) * scale
        apply(tf.constant(np.array([np.inf, np.nan]) if bad else gradient, tf.float32))
        if bad:
            scale, good, skipped = max(scale / 2, 1), 0, skipped + 1
        else:
            velocity = 0.9 * velocity + gradient / scale
            expected = expected - 0.1 * velocity
            good += 1
            if good == 3:
                scale, good = scale * 2, 0
        assert (optimizer.scale.numpy(), optimizer.good.numpy(), optimizer.skipped.numpy()) == (scale, good, skipped)
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6)


def test_the_scale_never_falls_below_one():
    weight, optimizer = made()
    for _ in range(20):
        optimizer.apply([tf.constant([np.inf, 0.0])], 0.1)
    assert optimizer.scale.numpy() == 1 and optimizer.skipped.numpy() == 20
    np.testing.assert_array_equal(weight.numpy(), [1.0, -2.0])


def test_a_gradient_that_float16_would_lose_arrives():
    weight = tf.Variable([1.0], name="kernel:0")
    optimizer = LossScaleOptimizer(optimizers.build(Sgd(lr=1.0, momentum=0.0, weight_decay=0.0), [weight]))
    small = 2.0**-26  # float16's smallest number above zero is 2^-24
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.reduce_sum(tf.cast(tf.cast(weight, tf.float16), tf.float32)) * small
        scaled = optimizer.scaled(loss)
    assert tape.gradient(loss, weight).numpy() == 0
    optimizer.apply([tape.gradient(scaled, weight)], 1.0)
    assert weight.numpy() == pytest.approx(1 - small, abs=0) or optimizer.inner.velocity[0].numpy() == small


def test_its_variables_go_with_the_weights(tmp_path):
    _, optimizer = made()
    optimizer.scale.assign(8.0)
    optimizer.skipped.assign(5)
    path = tf.train.Checkpoint(optimizer=optimizer).write(str(tmp_path / "weights"))
    _, other = made()
    tf.train.Checkpoint(optimizer=other).read(path).assert_consumed()
    assert (other.scale.numpy(), other.skipped.numpy()) == (8.0, 5)
    assert len(other.state) == len(other.inner.velocity) + 3
