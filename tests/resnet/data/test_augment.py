"""MixUp: the ratios' law, the mixture, and that it is in the step."""

import numpy as np
import tensorflow as tf
from scipy import stats

from resnet.data import augment


def test_ratios_follow_the_beta_distribution():
    ratios = augment.mix_ratios(0.2, 1, range(4000))
    assert stats.kstest(ratios, stats.beta(0.2, 0.2).cdf).pvalue > 0.001


def test_a_ratio_depends_on_seed_and_step_alone():
    whole = augment.mix_ratios(0.2, 7, range(10))
    np.testing.assert_array_equal(whole[4:], augment.mix_ratios(0.2, 7, range(4, 10)))
    assert not np.array_equal(whole, augment.mix_ratios(0.2, 8, range(10)))


def test_without_alpha_every_image_stays_itself():
    np.testing.assert_array_equal(augment.mix_ratios(0.0, 1, range(3)), np.ones(3, np.float32))


def test_an_image_and_its_target_are_mixed_with_those_of_the_opposite_place():
    random = np.random.default_rng(0)
    images, targets = random.random((5, 4, 4, 3), np.float32), np.eye(5, dtype=np.float32)
    mixed, soft = augment.mix_up(tf.constant(images), tf.constant(targets), tf.constant(0.3))
    for place in range(5):
        np.testing.assert_allclose(mixed[place], 0.3 * images[place] + 0.7 * images[4 - place], rtol=1e-6)
        np.testing.assert_allclose(soft[place], 0.3 * targets[place] + 0.7 * targets[4 - place], rtol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(soft, 1), np.ones(5), rtol=1e-6)
