"""MixUp: the distribution of its ratios, and the mixture; mirroring and normalisation."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from resnet.config.data import Records
from resnet.data.augment import on_device


def test_ratios_follow_the_beta_distribution():
    ratios = on_device.mix_ratios(0.2, 1, range(4000))
    assert stats.kstest(ratios, stats.beta(0.2, 0.2).cdf).pvalue > 0.001


def test_a_ratio_depends_on_seed_and_step_alone():
    whole = on_device.mix_ratios(0.2, 7, range(10))
    np.testing.assert_array_equal(whole[4:], on_device.mix_ratios(0.2, 7, range(4, 10)))
    assert not np.array_equal(whole, on_device.mix_ratios(0.2, 8, range(10)))


def test_without_alpha_every_image_stays_itself():
    np.testing.assert_array_equal(on_device.mix_ratios(0.0, 1, range(3)), np.ones(3, np.float32))


def test_an_image_and_its_target_are_mixed_with_those_of_the_opposite_place():
    random = np.random.default_rng(0)
    images, targets = random.random((5, 4, 4, 3), np.float32), np.eye(5, dtype=np.float32)
    mixed, soft = on_device.mix_up(tf.constant(images), tf.constant(targets), tf.constant(0.3))
    for place in range(5):
        np.testing.assert_allclose(mixed[place], 0.3 * images[place] + 0.7 * images[4 - place], rtol=1e-6)
        np.testing.assert_allclose(soft[place], 0.3 * targets[place] + 0.7 * targets[4 - place], rtol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(soft, 1), np.ones(5), rtol=1e-6)


@pytest.mark.parametrize("flip", [None, [True, False, True]])
def test_images_are_mirrored_then_normalized(flip):
    images = np.random.default_rng(1).integers(0, 256, (3, 9, 9, 3), np.uint8)
    mean, std = [123.68, 116.78, 103.94], [58.393, 57.12, 57.375]
    found = on_device.prepare_images(tf.constant(images), None if flip is None else tf.constant(flip), mean, std)
    mirrored = [image[:, ::-1] if flip and flip[i] else image for i, image in enumerate(images)]
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, (np.array(mirrored, np.float64) - mean) / std, rtol=0, atol=1e-6)


def test_images_are_normalized_alike_inside_a_graph_whose_batch_is_unknown():
    images = np.random.default_rng(1).integers(0, 256, (3, 9, 9, 3), np.uint8)
    compiled = tf.function(
        lambda images: on_device.prepare_images(images, None, [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]),
        input_signature=[tf.TensorSpec([None, 9, 9, 3], tf.uint8)],
    )
    np.testing.assert_allclose(compiled(images), (images - np.float64([1, 2, 3])) / [4, 5, 6], rtol=0, atol=1e-5)


def test_the_constants_are_the_published_ones():
    settings = Records(dir="x", classes=1000)
    assert settings.mean == [123.68, 116.78, 103.94]
    assert settings.std == [58.393, 57.12, 57.375]
    assert (settings.image_size, settings.eval_resize) == (224, 256)
    assert (settings.min_area, settings.max_aspect, settings.flip) == (0.08, 4 / 3, True)


def test_a_deviation_of_one_only_subtracts_the_mean():
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)
    found = on_device.prepare_images(tf.constant(images), None, [123.68, 116.78, 103.94], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(found, images - np.float64([123.68, 116.78, 103.94]), rtol=0, atol=1e-4)
