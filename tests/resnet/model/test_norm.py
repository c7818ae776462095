"""Batch norm in rows against the formula in NumPy, and against Keras's own layer."""

import numpy as np
import pytest
import tensorflow as tf

from resnet.config.model import Block, Model
from resnet.model import resnet
from resnet.model.norm import RowNorm

EPSILON, MOMENTUM = 1e-3, 0.9
SHAPE = 3, 4, 5, 6
SMALL = {block: Model(block.name, block, [1] * 4, width=8, filters=8, zero_init_residual=False) for block in Block}
for settings in SMALL.values():
    settings.depths = [
        1,
        2,
    ]  # a network of two stages is built in half the time; only the configuration insists on four


def values(*shape, seed):
    return np.random.default_rng(seed).normal(0.5, 2.0, shape)


def layer_of(relu=False, dtype="float32"):
    """A layer whose gamma, beta and statistics are not those it starts with."""
    layer = RowNorm(relu, momentum=MOMENTUM, epsilon=EPSILON, dtype=dtype)
    layer.build(SHAPE)
    layer.set_weights([values(6, seed=1), values(6, seed=2), values(6, seed=3), values(6, seed=4) ** 2])
    return layer


def np_norm(images, gamma, beta, slope, relu):
    """(output, gradients of sum(output * slope) by images, gamma and beta), arXiv:1502.03167."""
    axes = 0, 1, 2
    spread = np.sqrt(images.var(axes) + EPSILON)
    hat = (images - images.mean(axes)) / spread
    output = gamma * hat + beta
    if relu:
        slope = slope * (output > 0)
        output = np.maximum(output, 0)
    by_gamma, by_beta = (slope * hat).sum(axes), slope.sum(axes)
    count = images.size // images.shape[-1]
    return output, gamma / spread * (slope - by_beta / count - hat * by_gamma / count), by_gamma, by_beta


def with_gradients(layer, images, slope):
    with tf.GradientTape() as tape:
        tape.watch(images)
        output = layer(images, training=True)
        loss = tf.reduce_sum(tf.cast(output, tf.float32) * slope)
    return output, *tape.gradient(loss, [images, layer.gamma, layer.beta])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("relu", [False, True])
def test_a_training_step_normalizes_as_the_formula_does(relu, dtype, known):
    layer = layer_of(relu, dtype)
    spec = [tf.TensorSpec(SHAPE if known else [None, None, None, 6]), tf.TensorSpec(SHAPE)]
    images, slope = values(*SHAPE, seed=5), values(*SHAPE, seed=6)
    gamma, beta, mean, variance = (np.array(value, np.float64) for value in layer.get_weights())
    found = tf.function(lambda *given: with_gradients(layer, *given), spec)(
        *map(tf.constant, map(np.float32, (images, slope)))
    )
    for value, goal in zip(found, np_norm(images, gamma, beta, slope, relu), strict=True):
        tolerance = (1e-5 if dtype == "float32" else 2e-2) * np.abs(goal).max()
        np.testing.assert_allclose(tf.cast(value, tf.float32), goal, rtol=0, atol=tolerance)
    assert found[0].dtype == (tf.bfloat16 if dtype == "mixed_bfloat16" else tf.float32)
    count = images.size // 6  # of a fused kernel's variance (device.norm)
    moved = [
        mean * MOMENTUM + images.mean((0, 1, 2)) * (1 - MOMENTUM),
        variance * MOMENTUM + images.var((0, 1, 2)) * count / (count - 1) * (1 - MOMENTUM),
    ]
    for value, goal in zip(layer.get_weights()[2:], moved, strict=True):
        np.testing.assert_allclose(value, goal, rtol=1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("still", ["evaluation", "frozen"])
@pytest.mark.parametrize("relu", [False, True])
def test_evaluation_and_frozen_layers_use_the_statistics_and_leave_them(relu, still, dtype):
    layer = layer_of(relu, dtype)
    layer.trainable = still != "frozen"
    before = layer.get_weights()
    gamma, beta, mean, variance = before
    images = values(*SHAPE, seed=7)
    output = gamma * (images - mean) / np.sqrt(variance + EPSILON) + beta
    found = layer(tf.constant(images, tf.float32), training=still == "frozen")
    tolerance = (1e-5 if dtype == "float32" else 2e-2) * np.abs(output).max()
    np.testing.assert_allclose(
        tf.cast(found, tf.float32), np.maximum(output, 0) if relu else output, rtol=0, atol=tolerance
    )
    for value, old in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


def made_from(tensor):
    """What it is a copy of."""
    while tensor.op.type in ("Identity", "IdentityN"):
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor


def operations(layer, training):
    spec = tf.TensorSpec(SHAPE)
    graph = tf.function(lambda images: layer(images, training=training)).get_concrete_function(spec).graph
    kinds = "FusedBatchNormV3", "Relu", "Reshape"
    return [(op.type, made_from(op.inputs[0])) for op in graph.get_operations() if op.type in kinds]


@pytest.mark.parametrize(
    ("dtype", "training"), [("float32", True), ("mixed_bfloat16", True), ("mixed_bfloat16", False)]
)
def test_it_goes_by_rows_and_the_relu_is_within_them(dtype, training):
    (_, whole), (norm, rows), (relu, normalized), (_, back) = operations(layer_of(True, dtype), training)
    assert (norm, relu, normalized.op.type, back.op.type) == ("FusedBatchNormV3", "Relu", "FusedBatchNormV3", "Relu")
    assert (whole.shape, rows.shape, back.shape) == (SHAPE, [12, 1, 5, 6], [12, 1, 5, 6])


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_that_stand_still_are_applied_with_the_convolution_in_float32(frozen):
    layer = layer_of(True)
    layer.trainable = not frozen
    # Grappler puts the two into a convolution only where they follow it.
    (norm, images), (relu, normalized) = operations(layer, training=frozen)
    assert (norm, relu, images.shape, normalized.op.type) == ("FusedBatchNormV3", "Relu", SHAPE, "FusedBatchNormV3")


def test_a_layer_can_be_made_again_from_its_description():
    layer = RowNorm(True, momentum=0.7, epsilon=0.1, name="again", dtype="mixed_bfloat16")
    again = RowNorm.from_config(layer.get_config())
    assert (again.relu, again.momentum, again.epsilon, again.name) == (True, 0.7, 0.1, "again")
    assert again.dtype_policy.name == "mixed_bfloat16"


@pytest.mark.parametrize(
    ("policy", "amx", "tolerance"), [("float32", False, 1e-4), ("float32", True, 1e-4), ("mixed_bfloat16", True, 0.1)]
)
@pytest.mark.parametrize("block", Block)
def test_a_network_with_it_is_the_network_with_keras_layers(block, policy, amx, tolerance):
    ours = resnet.build(SMALL[block], 5, policy, RowNorm, amx)
    theirs = resnet.build(SMALL[block], 5, policy, tf.keras.layers.BatchNormalization)
    assert [weight.name for weight in ours.weights] == [weight.name for weight in theirs.weights]
    theirs.set_weights(ours.get_weights())
    images = tf.random.stateless_normal([4, 32, 40, 3], [1, 2])
    found = []
    for network in (ours, theirs):
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            loss = tf.reduce_sum(logits**2)
        found.append([logits, *tape.gradient(loss, network.trainable_variables), *network.get_weights()])
        found[-1].append(network(images, training=False))
    for value, goal in zip(*found, strict=True):
        np.testing.assert_allclose(value, goal, rtol=0, atol=tolerance * max(1e-3, np.abs(goal).max()))


def test_a_checkpoint_of_either_network_is_one_of_the_other(tmp_path):
    ours, theirs = (
        resnet.build(SMALL[Block.basic], 5, "float32", kind) for kind in (RowNorm, tf.keras.layers.BatchNormalization)
    )
    for saved, read in ((ours, theirs), (theirs, ours)):
        for number, weight in enumerate(saved.weights):
            weight.assign(tf.random.stateless_normal(weight.shape, [number, id(saved) % 1000]))
        path = tf.train.Checkpoint(network=saved).write(str(tmp_path / "weights"))
        tf.train.Checkpoint(network=read).read(path).assert_consumed()
        for value, goal in zip(read.get_weights(), saved.get_weights(), strict=True):
            np.testing.assert_array_equal(value, goal)
