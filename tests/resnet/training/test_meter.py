"""Losses that are read late, and steps that were skipped."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from resnet.training.meter import Meter, NotFinite, Reading

NAN, INF = math.nan, math.inf


def metered(*losses, **words):
    """A meter from step 10 on, batch 4, with these calls' losses; a reading of its clock takes a second."""
    meter = Meter(10, 4, clock=iter(range(100)).__next__, **words)
    for loss in losses:
        meter.add(figures(loss))
    return meter


def figures(losses):
    """Loss, top-1 and top-5 of steps with these losses."""
    return np.array([[loss, loss / 4, loss / 2] for loss in losses])


def test_the_first_loss_that_is_no_number_is_named_by_its_step():
    with pytest.raises(NotFinite, match=r"^step 13: the loss is inf$") as caught:
        metered([1.0, 2.0], [INF, NAN]).read()
    assert caught.value.step == 12


def test_where_such_steps_are_skipped_the_mean_is_of_the_others_and_they_are_listed():
    meter = metered([1.0, NAN], [INF, 2.0], skips=True)
    assert meter.read() == Reading(1.5, 16.0, (11, 12), 0.0, 0.375, 0.75)
    meter.add(figures([3.0]))
    assert meter.read() == Reading(3.0, 4.0, (), 0.0, 0.75, 1.5)


def test_a_reading_of_such_steps_alone_has_no_mean():
    reading = metered([NAN], [NAN], skips=True).read()
    assert math.isnan(reading.loss + reading.top1 + reading.top5) and reading.skipped == (10, 11)


def test_one_rank_s_nan_is_every_rank_s():
    ranks = SimpleNamespace(rank=0, size=2, allreduce_sum=lambda own: own + np.array([NAN, 0, 0, 4.0, 0.5, 0.5, 0, 0]))
    reading = metered([1.0, 2.0], skips=True, ranks=ranks).read()
    assert (reading.loss, reading.top1, reading.top5, reading.skipped) == (3.0, 0.5, 0.75, (10,))


def test_the_first_call_of_every_graph_counts_neither_as_time_nor_as_images():
    meter = metered([1.0, 1.0])
    assert meter.first_call and meter.read().images_per_s is None
    meter.add(figures([1.0]))
    assert meter.read().images_per_s == 4.0  # a batch of 4 in a second
    meter.skip_first_call()
    meter.add(figures([1.0]))
    assert meter.first_call and meter.read().images_per_s is None
    assert meter.take() == (1, 4, [4.0]) and meter.take() == (0.0, 0, [])


def test_the_share_of_waiting_is_of_the_rank_that_waited_most_and_never_more_than_all_the_time():
    ranks = SimpleNamespace(rank=1, size=3, allreduce_sum=lambda own: own + np.array([0, 0, 0, 0, 0, 0, 0.75, 0, 0.5]))
    meter = metered([1.0], [1.0], ranks=ranks)
    assert meter.read(lambda: 0.25).data_wait == 0.75
    assert metered([1.0], [1.0]).read(lambda: 0.25).data_wait == 0.25
    assert metered([1.0], [1.0]).read(lambda: 1.5).data_wait == 1
    assert metered([1.0]).read(lambda: 0.25).data_wait is None  # the first call traces the graph
