"""Crops that grow: what the network sees at every step of a run, and what stays as it was."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fake_step import FakeStep
from run_files import assert_same, logged, tensors

from resnet.data import pipeline, source
from resnet.data.augment import on_device
from resnet.model import resnet
from resnet.training import evaluation
from resnet.training.loop import train

# 3 steps to the epoch, at 16, 24 and 32 px.
COMMON = ("model=tiny", "batch=479", "track=off", "schedule=cosine", "schedule.warmup_epochs=1", "optim.lr=0.1")
RUN = (*COMMON, "epochs=3.5", "log_every_steps=1", "eval_steps=1", "eval_every_epochs=99")
GROWING = ("progressive.start_size=16", "progressive.end_epochs=2", "progressive.multiple=8")
SIDES = [16] * 3 + [24] * 3 + [32] * 4


@dataclass
class Sizes:
    """Sides of the images in every step, and in every graph that was traced."""

    steps: list[int] = field(default_factory=list)
    graphs: list[int] = field(default_factory=list)
    evaluated: set[tuple[int, ...]] = field(default_factory=set)
    pipelines: list[tuple[int, int]] = field(default_factory=list)  # (first step, side) of each


def watched(run):
    """Train `run`; its result, and the sizes of its images."""
    sizes, prepare_images, pipeline_of = Sizes(), on_device.prepare_images, pipeline.train

    def trained(images, *settings):
        sizes.graphs.append(images.shape[1])
        tf.numpy_function(lambda batch: sizes.steps.append(batch.shape[1]), [images], [])
        return prepare_images(images, *settings)

    def evaluated(images, *settings):
        tf.numpy_function(lambda batch: sizes.evaluated.add(batch.shape[1:]), [images], [])
        return prepare_images(images, *settings)

    def read(*words, **knobs):
        arguments = inspect.signature(pipeline_of).bind(*words, **knobs).arguments
        sizes.pipelines.append((arguments["step"], arguments["size"]))
        return pipeline_of(*words, **knobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "train", read)
        patch.setattr(on_device, "prepare_images", trained)
        patch.setattr(evaluation, "prepare_images", evaluated)
        return train(run, Path(run.out)), sizes


@pytest.fixture(scope="module", autouse=True)
def small(small_build):
    """A network of hardly any layers: a graph is made for every size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "build", small_build)
        yield


@pytest.fixture(scope="module")
def whole(run_at, tmp_path_factory):
    """An unbroken run: (run, its result, the sizes of its images)."""
    run = run_at(tmp_path_factory.mktemp("whole"), *RUN, *GROWING)
    return run, *watched(run)


def test_the_network_sees_crops_that_grow_and_a_graph_is_made_for_each_size(whole):
    _, made, sizes = whole
    assert made["steps"] == len(SIDES)
    assert sizes.steps == SIDES
    assert sizes.graphs == [16, 24, 32]
    assert sizes.evaluated == {(32, 32, 3)}


def test_the_learning_rates_are_those_of_crops_that_do_not_grow(whole):
    rates = dict(logged(whole[0].out, "train/lr"))
    steps = np.arange(10)  # 3 of warm-up, then half a cosine to the end of 3.5 epochs
    wanted = np.where(steps < 3, 0.1 * steps / 3, 0.05 * (1 + np.cos(np.pi * np.maximum(steps - 3, 0) / 7.5)))
    assert list(rates) == list(range(1, 11))
    np.testing.assert_allclose(list(rates.values()), wanted, rtol=1e-6)


def test_the_loop_asks_for_the_images_of_the_very_step(whole):
    """Each batch is the one that a run of one size would have had; see the next test."""
    assert whole[2].pipelines == [(0, 16), (3, 24), (6, 32)]


def test_order_labels_and_crops_are_the_same_at_every_size(run_of):
    images = source.open_source(run_of("data.min_area=0.3", "data.flip=true", "data.eval_resize=64").data)
    first = {size: next(iter(pipeline.train(images, 96, 7, 20, size=size))) for size in (16, 32, 64)}
    for size, (pixels, labels, flips) in first.items():
        assert pixels.shape == (96, size, size, 3)
        np.testing.assert_array_equal(labels, first[32][1])
        np.testing.assert_array_equal(flips, first[32][2])
    # The same crop of the same image: shrunk to 16 px by averaging, each is nearest to itself among all.
    small = [
        pixels.numpy().reshape(96, 16, size // 16, 16, size // 16, 3).mean((2, 4)).reshape(96, -1)
        for size, (pixels, _, _) in first.items()
    ]
    for left in small:
        for right in small:
            distance = np.square(left[:, None] - right[None]).sum(-1)
            np.testing.assert_array_equal(distance.argmin(1), np.arange(96))


def test_going_on_in_the_middle_gives_the_weights_of_a_run_never_stopped(whole, run_of):
    for steps, sides in ((4, SIDES[:4]), (10, SIDES[4:])):  # from within a size, through its end
        run = run_of(*RUN, *GROWING, f"steps={steps}")
        made, sizes = watched(run)
        assert sizes.steps == sides
        assert sizes.graphs == sorted(set(sides))
        assert sizes.evaluated == {(32, 32, 3)}  # at the full size whatever the crops
    assert_same(tensors(run.out, 10), tensors(whole[0].out, 10))
    assert made["eval/loss"] == whole[1]["eval/loss"]


def test_every_start_asks_for_the_images_of_its_own_step_and_size(run_of):
    pipelines = []

    class Step(FakeStep):
        def __init__(self, *parts):
            super().__init__(*parts)
            pipelines.append(self.prepared)

    for steps in (4, 6, 10):  # within a size, at its end, in the next
        run = run_of(*RUN, *GROWING, "eval=false", f"steps={steps}")
        train(run, Path(run.out), make_step=Step)
    assert pipelines == [[(0, 16), (3, 24)], [(4, 24)], [(6, 32)]]


def test_a_size_of_training_alone_leaves_evaluation_as_it_is(run_of):
    _, sizes = watched(run_of(*COMMON, "data.train_size=24", "data.eval_resize=40", "steps=2", "eval_steps=1"))
    assert (sizes.steps, sizes.graphs, sizes.evaluated) == ([24, 24], [24], {(32, 32, 3)})
