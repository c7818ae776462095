"""The order of an epoch and its share of every rank: pure functions of (seed, epoch)."""

import numpy as np
import pytest

from resnet.data import shards


def philox(seed, epoch, count):
    """Philox4x64-10 (Salmon et al., SC 2011), counter from 1 as in NumPy: `count` numbers of 64 bits."""
    mask, numbers = 2**64 - 1, []
    for block in range(1, -(-count // 4) + 1):
        x, key = [block, 0, 0, 0], [seed, epoch]
        for _ in range(10):
            left, right = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
            x = [(right >> 64) ^ x[1] ^ key[0], right & mask, (left >> 64) ^ x[3] ^ key[1], left & mask]
            key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
        numbers += x
    return numbers[:count]


@pytest.mark.parametrize(("seed", "epoch", "count"), [(1, 0, 10), (1, 1, 10), (0, 0, 37), (2**31 - 1, 249, 100)])
def test_the_order_is_that_of_philox_whatever_the_machine(seed, epoch, count):
    numbers = philox(seed, epoch, count)
    assert list(shards.permutation(seed, epoch, count)) == sorted(range(count), key=numbers.__getitem__)


def test_the_order_never_changes_between_releases():
    """Or a run begun before would go on with images it has seen."""
    assert list(shards.permutation(1, 0, 10)) == [3, 5, 2, 9, 7, 0, 8, 6, 1, 4]
    assert list(shards.permutation(1, 1, 10)) == [0, 6, 5, 3, 4, 9, 7, 8, 2, 1]


def test_every_epoch_and_seed_has_its_own_permutation():
    orders = {(seed, epoch): shards.permutation(seed, epoch, 500) for seed in range(3) for epoch in range(3)}
    for order in orders.values():
        np.testing.assert_array_equal(np.sort(order), np.arange(500))
    assert len({order.tobytes() for order in orders.values()}) == 9
    np.random.seed(7)
    np.random.random(3)
    np.testing.assert_array_equal(shards.permutation(2, 1, 500), orders[2, 1])


def test_an_order_is_not_the_epoch_before_shifted_or_sorted():
    """Over 200 epochs an image's mean place is the middle, and neighbours are strangers."""
    orders = np.array([shards.permutation(3, epoch, 50) for epoch in range(200)])
    deviation = np.sqrt((50**2 - 1) / 12 / 200)
    assert np.abs(np.argsort(orders, axis=1).mean(0) - 24.5).max() < 5 * deviation
    assert abs(np.mean(np.abs(np.diff(orders, axis=1)) == 1) - 2 / 50) < 0.01


# ----------------------------------------------------------------------------------------------------------------- share
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_share_an_epoch_and_each_step_is_the_same_images(ranks):
    count, batch = 1003, 48
    shares = [shards.positions_of_rank(count, batch, rank, ranks).reshape(-1, batch // ranks) for rank in range(ranks)]
    together = np.concatenate(shares, axis=1)
    np.testing.assert_array_equal(together, np.arange(20 * 48).reshape(20, 48))  # 43 of 1003 make no batch


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("skip", [0, 1, 19, 20])
def test_skipping_steps_leaves_the_rest_of_the_share(ranks, skip):
    for rank in range(ranks):
        whole = shards.positions_of_rank(1003, 48, rank, ranks)
        np.testing.assert_array_equal(
            shards.positions_of_rank(1003, 48, rank, ranks, skip), whole[skip * 48 // ranks :]
        )


def test_an_epoch_of_one_batch_and_a_batch_of_one_image():
    np.testing.assert_array_equal(shards.positions_of_rank(10, 10, 0, 1), np.arange(10))
    np.testing.assert_array_equal(shards.positions_of_rank(5, 1, 0, 1, 3), [3, 4])
    assert len(shards.positions_of_rank(9, 10, 0, 1)) == 0
