"""What happens to a batch on the device, against loops in NumPy: mirroring, normalization, mixing, erasing."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from resnet.config.data import Records
from resnet.data.augment import on_device


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


# ----------------------------------------------------------------------------------------------------------------- mixing
# The share of the target, that within the box, and the box: MixUp, CutMix, the whole other image.
DRAWS = np.float32([(0.3, 0.3, 0, 9, 0, 9), (0.75, 0, 2, 5, 1, 9), (0, 0, 0, 9, 0, 9), (0.9, 0.9, 0, 9, 0, 9)])


def batch_of(images, classes=7):
    random = np.random.default_rng(2)
    targets = np.eye(classes, dtype=np.float32)[labels := random.integers(0, classes, images)]
    return random.normal(size=(images, 9, 9, 3)).astype(np.float32), targets, labels.astype(np.int32)


def mixed(images, targets, labels, draws, boxes=True):
    """on_device.mix in a graph, as arrays."""
    return [part.numpy() for part in tf.function(on_device.mix)(images, targets, labels, draws, boxes)]


@pytest.mark.parametrize("draws", [DRAWS, DRAWS[:1], DRAWS[1:2]])
def test_an_image_and_its_target_are_mixed_with_those_half_a_batch_further_on(draws):
    images, targets, labels = batch_of(4)
    pixels, soft, heavier = mixed(images, targets, labels, draws)
    for i in range(4):
        own, inner, top, bottom, left, right = draws[i % len(draws)]
        other, weight = (i + 2) % 4, np.ones((9, 9, 1))
        weight[int(top) : int(bottom), int(left) : int(right)] = inner
        np.testing.assert_allclose(pixels[i], weight * images[i] + (1 - weight) * images[other], atol=1e-6)
        np.testing.assert_allclose(soft[i], own * targets[i] + (1 - own) * targets[other], atol=1e-6)
        assert heavier[i] == labels[i if own >= 0.5 else other]
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)


def test_what_lies_in_a_box_of_cutmix_is_the_other_image_bit_for_bit():
    images, targets, labels = batch_of(4)
    pixels, _, _ = mixed(images, targets, labels, DRAWS[1:2])
    np.testing.assert_array_equal(pixels[:, 2:5, 1:9], np.roll(images, 2, 0)[:, 2:5, 1:9])
    np.testing.assert_array_equal(pixels[:, 5:], images[:, 5:])


@pytest.mark.parametrize("ranks", [2, 3])
def test_pairs_are_the_same_for_any_number_of_ranks(ranks):
    images, targets, labels = batch_of(12)
    draws = DRAWS[np.arange(12) % 4]
    whole = mixed(images, targets, labels, draws)
    for rank in range(ranks):
        own = slice(rank, None, ranks)
        for part, every in zip(mixed(images[own], targets[own], labels[own], draws[own]), whole, strict=True):
            np.testing.assert_array_equal(part, every[own])


# ---------------------------------------------------------------------------------------------------------------- erasing
BOXES = np.float32([(2, 5, 1, 9, 0), (0, 0, 3, 3, 7), (0, 9, 0, 9, 1023)])


def test_rectangles_are_erased_to_the_mean():
    images = batch_of(3)[0]
    wanted = images.copy()
    wanted[0, 2:5, 1:9], wanted[2] = 0, 0
    np.testing.assert_array_equal(on_device.erase(tf.constant(images), tf.constant(BOXES), None), wanted)


def test_or_to_normal_noise_of_the_step_of_which_each_image_has_its_own_window():
    images = np.full((40, 32, 32, 3), 9, np.float32)
    boxes = np.float32([(0, 32, 0, 32, 25 * i) for i in range(40)])
    noise, again, other = (
        on_device.erase(tf.constant(images), tf.constant(boxes), tf.constant([1, -step])).numpy() for step in (1, 1, 2)
    )
    np.testing.assert_array_equal(noise, again)
    assert not np.array_equal(noise, other)
    assert stats.kstest(noise[::2].ravel(), stats.norm.cdf).pvalue > 0.001
    flat = noise.reshape(40, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(40)).max() < 0.1
    part = on_device.erase(tf.constant(images[7:8]), tf.constant(boxes[7:8]), tf.constant([1, -1]))
    np.testing.assert_array_equal(part[0], noise[7])
