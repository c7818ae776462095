"""The random resized crop: its boxes against torchvision's."""

import math

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import ks_2samp

from resnet.data import pipeline


def torch_crop(height, width, tries, min_area=0.08, max_aspect=4 / 3):
    """torchvision's RandomResizedCrop.get_params on uniforms [10, 4]: (top, left, height, width), and if it fell back."""
    for area, aspect, top, left in tries.tolist():
        area = height * width * (min_area + (1 - min_area) * area)
        aspect = math.exp(-math.log(max_aspect) + 2 * math.log(max_aspect) * aspect)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return (int(top * (height - h + 1)), int(left * (width - w + 1)), h, w), False
    return torch_fallback(height, width, max_aspect), True


def torch_fallback(height, width, max_aspect):
    w, h = width, height
    if width / height < 1 / max_aspect:
        h = round(w * max_aspect)
    elif width / height > max_aspect:
        w = round(h * max_aspect)
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.fixture(scope="module")
def boxes():
    """The code's boxes for uniforms [n, 10, 4]."""

    @tf.function
    def compiled(height, width, draws, min_area, max_aspect):
        return tf.map_fn(
            lambda part: pipeline.crop_box(height, width, part, min_area, max_aspect),
            draws,
            fn_output_signature=tf.int32,
        )

    def boxes(height, width, tries, min_area=0.08, max_aspect=4 / 3):
        draws = tf.constant(np.swapaxes(tries, 1, 2), tf.float32)
        return compiled(tf.constant(height), tf.constant(width), draws, min_area, max_aspect).numpy()

    return boxes


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 334), (90, 300), (37, 37)])
def test_crops_are_distributed_as_those_of_torchvision(boxes, height, width):
    ours, theirs = (np.random.default_rng(seed).random((20_000, 10, 4), np.float32) for seed in (1, 2))
    found = boxes(height, width, ours).astype(float)
    drawn = [torch_crop(height, width, tries) for tries in theirs]
    wanted = np.array([box for box, _ in drawn], float)
    if (height, width) == (90, 300):  # the fallback is among what is compared
        assert 0.001 < np.mean([fell_back for _, fell_back in drawn]) < 0.2
    for name, of in {
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "bottom": lambda box: height - box[:, 0] - box[:, 2],
        "right": lambda box: width - box[:, 1] - box[:, 3],
        "height": lambda box: box[:, 2],
        "width": lambda box: box[:, 3],
        "area": lambda box: box[:, 2] * box[:, 3],
        "aspect": lambda box: box[:, 3] / box[:, 2],
    }.items():
        assert ks_2samp(of(found), of(wanted)).pvalue > 1e-3, name
    top, left, h, w = found.T
    assert min(top.min(), left.min()) == 0
    assert ((top + h <= height) & (left + w <= width) & (h > 0) & (w > 0)).all()
    in_torch = [torch_crop(height, width, tries)[0] for tries in ours[:2000]]
    assert (found[:2000] == in_torch).all(1).mean() > 0.995  # the same try; float32 rounds a pixel otherwise at times


def test_area_and_aspect_are_uniform_where_every_crop_fits(boxes):
    """In the middle of a square a try always fits, so nothing is drawn again."""
    tries = np.random.default_rng(4).random((20_000, 10, 4), np.float32)
    _, _, h, w = boxes(1000, 1000, tries, min_area=0.3, max_aspect=1.0).T.astype(float)
    np.testing.assert_array_equal(h, w)
    quantiles = np.quantile(h * w / 1e6, [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(quantiles, 0.3 + 0.7 * np.array([0.1, 0.25, 0.5, 0.75, 0.9]), atol=0.01)
    _, _, h, w = boxes(1000, 1000, tries, min_area=0.08, max_aspect=4 / 3).T.astype(float)
    small = h * w < 0.5e6
    log_aspect = np.log(w / h)[small] / np.log(4 / 3)
    np.testing.assert_allclose(
        np.quantile(log_aspect, [0.1, 0.25, 0.5, 0.75, 0.9]), [-0.8, -0.5, 0, 0.5, 0.8], atol=0.04
    )


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (30, 300, (0, 130, 30, 40)),
        (300, 30, (130, 0, 40, 30)),
        (32, 300, (0, 128, 32, 43)),  # 42.67 to the nearest
        (300, 32, (128, 0, 43, 32)),
        (90, 100, (0, 0, 90, 100)),  # within 3/4 .. 4/3: all of it
        (1, 1, (0, 0, 1, 1)),
    ],
)
def test_where_no_try_fits_the_centre_is_taken(boxes, height, width, box):
    whole_and_wide = np.tile(np.float32([1 - 2**-24, 1 - 2**-24, 0.5, 0.5]), (1, 10, 1))
    if (height, width) != (1, 1):
        assert tuple(boxes(height, width, whole_and_wide)[0]) == box
    assert torch_fallback(height, width, 4 / 3) == box


def test_the_ends_of_the_uniforms_stay_within_the_image(boxes):
    for height, width in [(375, 500), (512, 512), (16, 11), (1, 1), (2, 9000)]:
        for ends in np.ndindex(2, 2, 2, 2):
            tries = np.tile(np.where(ends, 1 - 2**-24, 0).astype(np.float32), (1, 10, 1))
            top, left, h, w = boxes(height, width, tries)[0]
            assert top >= 0 and left >= 0 and h > 0 and w > 0
            assert top + h <= height and left + w <= width
