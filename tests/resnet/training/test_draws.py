"""Stochastic depth and dropout in the step: their masks by seed, step and image, whatever the calls, parts and ranks."""

import numpy as np
import pytest
import tensorflow as tf
from fake_step import train_step_of

from resnet.data import blocks
from resnet.data.augment import draws
from resnet.model import resnet
from resnet.model.drop import Draws, Drop


def build(*_settings, **_more):
    """A network that drops, without batch norm, whose statistics would be of the parts."""
    layers = tf.keras.layers
    drops = [Drop(0.4, 1), layers.Flatten(), Drop(0.4, 2, each=True)]
    return tf.keras.Sequential([layers.Input([32, 32, 3]), *drops, layers.Dense(10, name="fc")])


@pytest.fixture
def new(run_of, monkeypatch):
    """`new("steps_per_loop=3")`: a TrainStep of that network."""
    monkeypatch.setattr(resnet, "build", build)
    words = "model=tiny", "data=digits", "batch=24", "track=off", "optim.lr=0.01"
    return lambda *more: train_step_of(run_of(*words, *more))


def trained(step, calls):
    """The weights after these calls."""
    for first, last in calls:
        step.train(*step.inputs(first, last), tf.constant(0.0))
    return step.variables[0].numpy()


SINGLE = [(number, number + 1) for number in range(4)]


def test_masks_are_the_same_for_calls_of_any_length_and_for_parts_of_the_batch(new):
    wanted = trained(new(), SINGLE)
    np.testing.assert_array_equal(trained(new("steps_per_loop=3"), [(0, 3), (3, 4)]), wanted)
    parts = trained(new("cluster.gradient_accumulation=3"), SINGLE)
    np.testing.assert_allclose(parts, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(trained(new("seed=2"), SINGLE) - wanted).max() > 1e-3


def test_a_resumed_step_has_the_masks_of_its_number(new):
    whole, start, rest = (new() for _ in range(3))
    trained(start, SINGLE[:2])
    for mine, old in zip(rest.state.variables, start.state.variables, strict=True):
        mine.assign(old)
    assert rest.prepare(2)
    np.testing.assert_array_equal(trained(rest, SINGLE[2:]), trained(whole, SINGLE))


@pytest.mark.parametrize("order", ["images", "blocks"])
def test_each_rank_draws_for_the_images_that_it_reads(run_of, order):
    def uniform(rank, ranks, parts):
        run = run_of(
            "model=tiny", "data=digits", "batch=24", f"data.order={order}", f"cluster.gradient_accumulation={parts}"
        )
        drawn = draws.of_steps(run, [5], 32, rank, ranks)
        masks = [Draws(run.seed, tf.constant(5), 24, places).uniform(1, 3).numpy() for places in drawn.positions[0]]
        assert (drawn.step == 5).all() and len(masks) == parts
        return np.concatenate(masks), run

    whole, run = uniform(0, 1, 1)
    for rank in range(2):
        np.testing.assert_array_equal(uniform(rank, 2, 3)[0], whole[blocks.positions(run.data, 24, 24, rank, 2)])


def test_draws_need_no_int64(new):
    """A Gaudi computes none."""
    graph = new().train.get_concrete_function().graph
    nodes = [node for function in graph.as_graph_def().library.function for node in function.node_def]
    drawn = [node for node in [*graph.as_graph_def().node, *nodes] if "Random" in node.op]
    kinds = {value.type for node in drawn for value in node.attr.values()}
    assert len(drawn) == 2 and not kinds & {tf.int64.as_datatype_enum, tf.uint64.as_datatype_enum}
