"""Compiled ReLUs and additions against the same in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from resnet.model import relu

SHAPE = 2, 3, 5, 4
SAME = "Placeholder", "Identity", "IdentityN"  # and they go when TensorFlow tidies the graph


def values(seed, dtype):
    """Numbers of which some are 0."""
    found = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    return tf.cast(np.where(np.abs(found) < 0.1, 0, found), dtype)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_a_sum_behind_a_relu_goes_two_ways_whose_slopes_come_back_as_one(dtype, known):
    def work(x, shortcut, left, right):
        with tf.GradientTape() as tape:
            tape.watch([x, shortcut])
            found = relu.AddRelu(dtype=dtype)([x, shortcut], training=True)
        return *found, *tape.gradient(found, [x, shortcut], [left, right])

    given = [values(seed, dtype) for seed in range(4)]
    spec = tf.TensorSpec(SHAPE if known else [None] * 4, dtype)
    found = tf.function(work, [spec] * 4)(*given)
    x, shortcut, left, right = (np.asarray(value, np.float32) for value in given)
    relued = np.maximum(x + shortcut, 0)
    slope = np.where(relued > 0, left + right, 0)
    for value, goal in zip(found, (relued, relued, slope, slope), strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(tf.cast(value, tf.float32), goal, rtol=0 if dtype == tf.float32 else 2**-8)


def test_what_is_used_once_has_one_slope():
    x, slope = values(0, tf.float32), values(1, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        once, _ = relu.add_relu(x, tf.zeros_like(x))
    np.testing.assert_array_equal(tape.gradient(once, x, slope), np.where(x.numpy() > 0, slope, 0))


def test_in_evaluation_nothing_is_compiled():
    layer, pair = relu.AddRelu(), [values(0, tf.float32), values(1, tf.float32)]
    graph = tf.function(lambda *pair: layer(list(pair), training=False)).get_concrete_function(*pair).graph
    assert not [op for op in graph.get_operations() if "Call" in op.type]
    for found in layer(pair, training=False):
        np.testing.assert_array_equal(found, np.maximum(pair[0] + pair[1], 0))


def test_a_relu_is_tensorflows_and_its_slope_is_compiled():
    x, slope = values(0, tf.bfloat16), values(1, tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = relu.relu(x)
    np.testing.assert_array_equal(found, np.maximum(x, 0))
    goal = np.where(tf.cast(x, tf.float32) > 0, tf.cast(slope, tf.float32), 0)
    np.testing.assert_array_equal(tf.cast(tape.gradient(found, x, slope), tf.float32), goal)
    graph = tf.function(relu.relu).get_concrete_function(x).graph
    assert [op.type for op in graph.get_operations() if op.type not in SAME] == ["Relu"]


@pytest.mark.parametrize("compute", [lambda x: relu.add_relu(x, x)[0], relu.relu])
def test_not_a_number_stays_one(compute):
    bits = np.array([0x7FC00000, 0xFFC00000], np.uint32).view(np.float32)  # of either sign
    assert np.isnan(compute(tf.constant(bits))).all()
    assert np.isnan(compute(tf.cast(bits, tf.bfloat16)).numpy().astype(np.float32)).all()


def test_a_function_is_compiled_once_for_a_shape():
    one, same, other = (tf.TensorSpec([size], tf.float32) for size in (3, 3, 4))
    assert relu.compiled(relu.relu_gradient, one, one) is relu.compiled(relu.relu_gradient, same, same)
    assert relu.compiled(relu.relu_gradient, one, one) is not relu.compiled(relu.relu_gradient, other, other)


def test_what_xla_says_of_itself_is_not_heard_and_what_comes_after_is(spawn):
    code = """
import sys
from resnet.model import relu
import tensorflow as tf
tf.zeros([1])
print("from here", file=sys.stderr)  # TensorFlow 2.18 has its say before
layer = relu.AddRelu()
layer([tf.zeros([2, 2])] * 2, training=True)
tf.function(lambda pair: layer(pair, training=True))([tf.zeros([3, 3])] * 2)
print("heard", file=sys.stderr)
"""
    done = spawn(None, before=code).finish()
    assert (done.returncode, done.stdout, done.stderr.partition("from here\n")[2]) == (0, "", "heard\n")
