"""Losses that are read late, and steps that were left out."""

import math

import numpy as np
import pytest

from resnet.training.meter import Meter, NotFinite

NAN, INF = math.nan, math.inf


def metered(*losses, **words):
    meter = Meter(10, 4, clock=iter(range(100)).__next__, **words)
    for loss in losses:
        meter.add(np.array(loss))
    return meter


def test_the_first_loss_that_is_no_number_is_named_by_its_step():
    with pytest.raises(NotFinite, match=r"^step 13: the loss is inf$") as caught:
        metered([1.0, 2.0], [INF, NAN]).read()
    assert caught.value.step == 12


def test_where_such_steps_are_skipped_the_mean_is_of_the_others_and_they_are_told():
    meter = metered([1.0, NAN], [INF, 2.0], skips=True)
    assert meter.read()[0] == 1.5 and meter.skipped == [11, 12]
    meter.add(np.array([3.0]))
    assert meter.read()[0] == 3.0 and meter.skipped == []


def test_a_reading_of_such_steps_alone_has_no_mean():
    meter = metered([NAN], [NAN], skips=True)
    assert math.isnan(meter.read()[0]) and meter.skipped == [10, 11]


def test_one_rank_s_nan_is_every_rank_s():
    meter = metered([1.0, 2.0], skips=True, over_ranks=lambda losses: (losses + np.array([NAN, 4.0])) / 2)
    assert meter.read()[0] == 3.0 and meter.skipped == [10]
