"""The random numbers of a batch's augmentation: against torchvision's boxes, and the same for any number of ranks."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from resnet.data.augment import draws

GOLDEN = np.load(Path(__file__).parents[3] / "golden" / "oracle_mixing.npz")
SIZE = 48  # of the images of those boxes


@pytest.fixture(scope="module")
def composed_run(run_at, tmp_path_factory):
    """`composed_run("mixup=0.2", ...)`: the run of a batch of 24."""
    return lambda *words: run_at(tmp_path_factory.mktemp("draws"), "model=tiny", "track=off", "batch=24", *words)


def same_distribution(left, right):
    return stats.ks_2samp(left, right).pvalue > 0.001


def sides(boxes):
    """Where boxes (top, bottom, left, right) begin, their sides and their areas: five columns."""
    top, bottom, left, right = boxes.T.astype(float)
    return top, left, bottom - top, right - left, (bottom - top) * (right - left)


# ----------------------------------------------------------------------------------------------------------------- mixing
def test_the_ratios_of_mixup_alone_follow_the_beta_distribution_and_are_those_of_earlier_versions(composed_run):
    run = composed_run("mixup=0.2", "seed=7")
    mix = draws.of_steps(run, range(3000), 32).mix[:, 0, 0]
    assert stats.kstest(mix[:, 0], stats.beta(0.2, 0.2).cdf).pvalue > 0.001
    earlier = [np.random.Generator(np.random.Philox(key=[7, (1 << 32) + step])).beta(0.2, 0.2) for step in range(20)]
    np.testing.assert_array_equal(mix[:20, 0], np.float32(earlier))
    np.testing.assert_array_equal(mix[:, 0], mix[:, 1])
    assert (mix[:, 2:] == [0, 32, 0, 32]).all()


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_boxes_of_cutmix_are_those_of_torchvision(composed_run, alpha):
    mix = draws.of_steps(composed_run(f"cutmix={alpha}"), range(3000), SIZE).mix[:, 0, 0]
    for ours, theirs in zip(sides(mix[:, 2:]), sides(GOLDEN[f"cutmix_{alpha}"]), strict=True):
        assert same_distribution(ours, theirs)
    assert (mix[:, 1] == 0).all()
    np.testing.assert_allclose(mix[:, 0], 1 - sides(mix[:, 2:])[4] / SIZE**2, rtol=1e-6)


def test_mix_switch_is_the_share_of_cutmix_and_each_has_its_own_alpha(composed_run):
    both = composed_run("mixup=0.4", "cutmix=1", "mix_switch=0.3", "mix_by=image")
    mix = draws.of_steps(both, range(100), SIZE).mix.reshape(-1, 6)
    cut = mix[:, 1] != mix[:, 0]
    assert stats.binomtest(int(cut.sum()), len(mix), 0.3).pvalue > 0.001
    assert same_distribution(sides(mix[cut, 2:])[4], sides(GOLDEN["cutmix_1.0"])[4][: cut.sum()])
    assert stats.kstest(mix[~cut, 0], stats.beta(0.4, 0.4).cdf).pvalue > 0.001
    by_batch = draws.of_steps(composed_run("mixup=0.4", "cutmix=1"), range(100), SIZE).mix
    assert by_batch.shape == (100, 1, 1, 6)


# ---------------------------------------------------------------------------------------------------------------- erasing
def test_erased_rectangles_are_those_of_torchvision_and_their_share_is_the_probability():
    erase = np.concatenate([draws.erasing(0.4, 1, step, 100, SIZE) for step in range(75)])
    some = erase[:, 1] > erase[:, 0]
    assert stats.binomtest(int(some.sum()), len(erase), 0.4).pvalue > 0.001
    for ours, theirs in zip(sides(erase[some, :4]), sides(GOLDEN["erasing"]), strict=True):
        assert same_distribution(ours, theirs)
    assert (erase[:, [1, 3]] <= SIZE).all() and set(erase[:, 4]) <= set(range(draws.WINDOWS))


def test_where_no_rectangle_fits_nothing_is_erased(monkeypatch):
    monkeypatch.setattr(draws, "AREA", (1.0, 1.0))
    monkeypatch.setattr(draws, "ASPECT", (1.0, 1.0))
    top, bottom, left, right, _ = draws.erasing(1.0, 1, 0, 50, 32).T
    assert (top == bottom).all() and (left == right).all()


# ----------------------------------------------------------------------------------------------------- (seed, step), ranks
ALL = ("mixup=0.2", "cutmix=1", "mix_by=image", "augment.erasing=0.5")


def test_draws_depend_on_seed_and_step_alone(composed_run):
    whole, late = (draws.of_steps(composed_run(*ALL), steps, SIZE) for steps in (range(6), range(4, 6)))
    other = draws.of_steps(composed_run(*ALL, "seed=2"), range(6), SIZE)
    for values, resumed in zip(whole, late, strict=True):
        np.testing.assert_array_equal(values[4:], resumed)
    for values, different in zip(whole[:3], other, strict=False):
        assert not np.array_equal(values, different) and not np.array_equal(values[0], values[1])


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_rank_has_those_of_its_positions_in_the_order_of_its_accumulated_parts(composed_run, ranks, parts):
    whole = draws.of_steps(composed_run(*ALL), [5], SIZE)
    run = composed_run(*ALL, f"cluster.gradient_accumulation={parts}", f"cluster.ranks={ranks}")
    for rank in range(ranks):
        own = draws.of_steps(run, [5], SIZE, rank, ranks)
        for values, every, spec in zip(own[:2], whole[:2], draws.specs(run), strict=False):
            np.testing.assert_array_equal(np.concatenate(values[0]), every[0, 0, rank::ranks])
            assert spec.is_compatible_with(tf.constant(values))


def test_what_is_off_has_no_draws(composed_run):
    run = composed_run()
    off = draws.of_steps(run, range(3), SIZE)
    assert off.mix.shape == (3, 1, 0, 6) and off.erase.shape == (3, 1, 0, 5)
    assert all(spec.is_compatible_with(tf.constant(values)) for spec, values in zip(draws.specs(run), off, strict=True))
