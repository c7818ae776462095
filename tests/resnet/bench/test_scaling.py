"""The scaling benchmark: its model against what was published, and its table."""

import numpy as np
import pytest

from resnet.bench import scaling


@pytest.mark.parametrize("ranks", [8, 16, 32, 64])
def test_the_model_is_within_a_tenth_of_the_published_efficiencies(ranks):
    published = {8: (0.949, 0.984), 16: (0.92, 0.92), 32: (0.90, 0.90), 64: (0.87, 0.87)}[ranks]
    assert 0.9 * published[1] < scaling.efficiency(ranks) < 1.1 * published[0]


def test_the_model_is_that_of_a_ring():
    """Step by step: each rank sends a chunk of bytes / n to its neighbour, n - 1 times to reduce and n - 1 times to gather."""
    ranks, size, bandwidth, latency = 8, 102.2e6, 20e9, 1e-4
    seconds = sum(size / ranks / bandwidth + latency for _ in range(2 * (ranks - 1)))
    assert scaling.ring_s(ranks, size, bandwidth, latency) == pytest.approx(seconds)
    assert scaling.ring_s(1, size, bandwidth, latency) == 0


def test_the_constants_give_the_points_they_were_fitted_to_and_are_those_of_a_machine():
    for ranks in (64, 256):
        assert scaling.efficiency(ranks) == pytest.approx(scaling.PUBLISHED[ranks])
    bandwidth, latency = scaling.constants()
    assert 1e9 < bandwidth < 1e12 and 1e-6 < latency < 1e-3
    assert np.all(np.diff([scaling.efficiency(ranks) for ranks in (8, 16, 32, 64, 128, 256, 512, 4096)]) < 0)


def test_efficiency_is_to_so_many_times_one_rank_in_the_same_round():
    rates = {"1 rank": [10.0, 20.0, 5.0], "2 that do not talk": [20.0, 20.0, 9.0], "2 ranks": [18.0, 18.0, 9.0]}
    assert scaling.table(rates, 2).splitlines()[2:] == [
        "| 1 rank | 10.00 | 1.000 |  |",
        "| 2 that do not talk | 20.00 | 0.900 | 1.000 |",
        "| 2 ranks | 18.00 | 0.900 | 0.900 |",
    ]
