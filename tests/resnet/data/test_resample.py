"""Antialiased evaluation images against torchvision's and timm's own, and against Pillow on photographs of many shapes."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from resnet.config.data import Interpolation, Records, Resample
from resnet.data import pipeline, resample

GOLDEN = np.load(Path(__file__).parents[2] / "golden/evaluation.npz")


def image(height, width):
    """As in tests/golden/oracle_evaluation.py."""
    random = np.random.default_rng(height * 1000 + width)
    rough = random.integers(0, 256, [height, width, 3])
    smooth = 60 * np.sin(np.arange(height)[:, None] / 9) + 60 * np.cos(np.arange(width)[None] / 7) + 128
    return ((rough + 2 * smooth[..., None]) // 3).astype(np.uint8)


def pillow(pixels, short, side, how):
    """torchvision's Resize(short) and CenterCrop(side), written with Pillow."""
    picture = Image.fromarray(pixels)
    width, height = (int(short * one / min(picture.size)) for one in picture.size)
    left, top = (round((one - side) / 2.0) for one in (width, height))
    resized = picture.resize((width, height), Image.Resampling[how.upper()])
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def levels(pixels, wanted):
    """The largest difference."""
    return np.abs(np.asarray(pixels, int) - wanted.astype(int)).max()


@pytest.fixture(scope="module")
def centre():
    """resample.centre, traced once for each of its settings."""
    traced = {}

    def of(pixels, short, side, how):
        if (short, side, how) not in traced:
            spec = tf.TensorSpec([None, None, 3], tf.uint8)
            make = tf.function(
                lambda one: resample.centre(one, short, side, Interpolation[how]),
                input_signature=[spec],
                autograph=False,
            )
            traced[short, side, how] = make
        return traced[short, side, how](pixels).numpy()

    return of


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_the_centre_is_what_torchvision_makes(centre, how):
    keys = [key for key in GOLDEN.files if key.startswith(f"torchvision/{how}/")]
    for key in keys:
        shape, short, side = key.split("/")[2:]
        found = centre(image(*map(int, shape.split("x"))), int(short), int(side), how)
        assert (found.dtype, levels(found, GOLDEN[key]) <= 1) == (np.uint8, True), key
    assert len(keys) == 44


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_eval_crop_is_timms_crop_pct(centre, how):
    keys = [key for key in GOLDEN.files if key.startswith(f"timm/{how}/")]
    for key in keys:
        shape, share, side = key.split("/")[2:]
        knobs = {"image_size": int(side), "eval_crop": float(share), "eval_interpolation": Interpolation[how]}
        settings = Records(dir="x", classes=2, eval_resample=Resample.antialias, **knobs)
        found = centre(image(*map(int, shape.split("x"))), settings.eval_short, settings.image_size, how)
        assert levels(found, GOLDEN[key]) <= 1, key
    assert len(keys) == 33


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_photographs_are_resized_as_pillow_resizes_them(centre, how):
    shapes = [(375, 500), (500, 333), (90, 900), (901, 64), (256, 341), (256, 256), (1, 100), (13, 17), (1201, 1601)]
    for shape in shapes:
        assert levels(centre(image(*shape), 256, 224, how), pillow(image(*shape), 256, 224, how)) <= 1, shape


def test_an_image_of_the_right_size_already_is_only_cropped(centre):
    for how in ("bilinear", "bicubic"):
        np.testing.assert_array_equal(centre(image(24, 31), 24, 16, how), image(24, 31)[4:20, 8:24])


def test_sharp_edges_are_clipped_between_the_passes_as_pillow_does(centre):
    """Bicubic weights are negative beside an edge: without it some pixels are 30 levels off."""
    board = np.kron(np.indices((9, 12)).sum(0) % 2, np.ones((7, 5)))[..., None] * np.full(3, 255)
    board = board.astype(np.uint8)
    assert levels(centre(board, 40, 32, "bicubic"), pillow(board, 40, 32, "bicubic")) <= 1


def test_the_pipeline_decodes_then_resizes(encoded):
    picture = Image.fromarray(image(60, 80))
    file = encoded(picture, quality=95)
    pixels = tf.io.decode_jpeg(file, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    settings = Records(dir="x", classes=2, image_size=32, eval_resize=36, eval_resample=Resample.antialias)
    for given in (tf.constant(file), tf.constant(pixels)):  # encoded, and of data.cache=decoded
        assert levels(pipeline.centre_crop(given, settings), pillow(pixels, 36, 32, "bilinear")) <= 1
