"""The benchmark of tracking: its table on known figures, and one small run."""

import pytest

from resnet import UserError
from resnet.bench import tracking


def test_the_share_is_of_what_is_more_than_nothing():
    used = {"nothing": [1e-4, 3e-4, 2e-4], "a line every step": [1.3e-3, 1.2e-3, 1.1e-3]}
    own = {"nothing": [0.0], "a line every step": [5e-5]}
    assert tracking.table(used, own, 0.1).splitlines()[2:] == [
        "| nothing | 0 | 0 | 0.00 % |",
        "| a line every step | 50 | 1000 | 1.00 % |",
    ]


def test_a_small_one_runs():
    found = tracking.measure(tracking.Tracking(steps=3, step_ms=10, rounds=1))
    assert found.about.startswith("3 steps of 10 ms") and "median of 1 rounds" in found.about
    assert found.tables[0].count(" % |") == 3
    assert [row.what for row in found.rows] == ["step with a line every 50 steps, s", "step with a line every step, s"]
    assert all(row.goal.value == 1.01 and row.ratio > 0.5 for row in found.rows)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="steps=0: must be above 0"):
        tracking.Tracking(steps=0)
