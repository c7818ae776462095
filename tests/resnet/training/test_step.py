"""The compiled step under XLA, in float16, and as a Gaudi wants it."""

import numpy as np
import pytest
import tensorflow as tf

from resnet.data import pipeline, source
from resnet.distributed import ranks
from resnet.model import resnet
from resnet.optim import loss_scale, optimizers
from resnet.training.step import compiled


@pytest.fixture
def stepping(run_of):
    """`stepping("dtype=fp16", ...)`: (the step of a small ResNet, its batches, its network, its optimizer)."""

    def make(*words):
        run = run_of("model=tiny", "data=digits", "batch=16", "track=off", "optim.lr=0.05", *words)
        tf.keras.utils.set_random_seed(1)
        network = resnet.build(run.model, run.data.classes, run.dtype.policy.value)
        optimizer = optimizers.build(run.optim, network.trainable_variables)
        if run.dtype.name == "fp16":
            optimizer = loss_scale.LossScaleOptimizer(optimizer)
        batches = iter(pipeline.train(source.open_source(run.data), run.batch, run.seed, 0))
        step = compiled(network, optimizer, run, ranks.Ranks(), batches.element_spec)
        return step, batches, network, optimizer

    return make


def trained(stepping, *words, steps=3):
    """(the losses of so many steps, the weights after the first)."""
    step, batches, network, _ = stepping(*words)
    losses, first = [], {}
    for _ in range(steps):
        losses.append(float(step(batches, tf.constant([0.05]), tf.ones([1]), tf.constant(0.0))[0]))
        first = first or {weight.name: weight.numpy() for weight in network.trainable_variables}
    return np.array(losses), first


def test_xla_computes_what_the_graph_does(stepping):
    # The check of cluster= and dtype.jit is the configuration's; what is compiled here runs on the CPU.
    plain, by_xla = trained(stepping), trained(stepping, "cluster=gpu1", "dtype.jit=true")
    np.testing.assert_allclose(plain[0], by_xla[0], rtol=1e-3)
    for name, value in plain[1].items():
        if not name.startswith(
            ("conv1", "bn1")
        ):  # of equal pixels the pool passes the gradient to one, and XLA to another one
            np.testing.assert_allclose(value, by_xla[1][name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_float16_learns_as_float32_does_to_its_precision(stepping):
    (full, _), (half, _) = trained(stepping, steps=4), trained(stepping, "dtype=fp16", steps=4)
    np.testing.assert_allclose(half, full, rtol=0.02)
    assert np.ptp(full) > 0.01  # they differ from step to step, so that agreement means something


def test_gradients_that_overflow_move_nothing_and_lower_the_scale(stepping):
    step, batches, network, optimizer = stepping("dtype=fp16")
    optimizer.scale.assign(2.0**40)
    before = [weight.numpy() for weight in network.trainable_variables]
    loss, _ = step(batches, tf.constant([0.05]), tf.ones([1]), tf.constant(0.0))
    assert np.isfinite(loss.numpy()).all()
    assert optimizer.scale.numpy() == 2.0**39 and optimizer.skipped.numpy() == 1
    for old, weight in zip(before, network.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, weight.numpy())


def test_nothing_but_bookkeeping_of_shapes_is_int64_in_a_step(stepping):
    """A Gaudi computes no int64; constants of shapes are folded."""
    step, *_ = stepping()
    graph = step.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    kinds = {node.op for node in nodes for value in node.attr.values() if value.type == tf.int64.as_datatype_enum}
    assert len(nodes) > 300
    assert kinds <= {"Const", "Shape", "Cast", "Squeeze", "ReverseV2"}, kinds
