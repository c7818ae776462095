"""The benchmark of tracking: its table on known figures, and one small run."""

import pytest

from resnet import UserError
from resnet.benchmarks import tracking


def test_the_share_is_of_what_is_more_than_nothing():
    used = {"nothing": [1e-4, 3e-4, 2e-4], "a line every step": [1.3e-3, 1.2e-3, 1.1e-3]}
    own = {"nothing": [0.0], "a line every step": [5e-5]}
    assert tracking.table(used, own, 0.1).splitlines()[2:] == [
        "| nothing | 0 | 0 | 0.00 % |",
        "| a line every step | 50 | 1000 | 1.00 % |",
    ]


def test_a_small_one_runs(capsys):
    tracking.measure(tracking.Tracking(steps=3, step_ms=10, rounds=1))
    printed = capsys.readouterr().out
    assert "3 steps of 10 ms, median of 1 rounds" in printed and printed.count(" % |") == 3


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="steps=0: must be above 0"):
        tracking.Tracking(steps=0)
