"""The scaling benchmark: its table against figures worked out by hand, and what it refuses."""

import pytest

from resnet import UserError
from resnet.bench import scaling


def test_efficiency_is_to_so_many_times_one_rank_in_the_same_round():
    rates = {"1 rank": [10.0, 20.0, 5.0], "2 processes": [20.0, 20.0, 9.0], "2 ranks": [18.0, 18.0, 9.0]}
    assert scaling.table(rates, 2).splitlines()[2:] == [
        "| 1 rank | 10.00 | 1.000 |  |",
        "| 2 processes | 20.00 | 0.900 | 1.000 |",
        "| 2 ranks | 18.00 | 0.900 | 0.900 |",
    ]


@pytest.mark.parametrize(
    ("knobs", "error"), [({"ranks": 1}, "^ranks=1: must be above 1"), ({"steps": 2}, "^steps=2: ")]
)
def test_what_cannot_be_measured_is_refused(knobs, error):
    with pytest.raises(UserError, match=error):
        scaling.Scaling(**knobs)
