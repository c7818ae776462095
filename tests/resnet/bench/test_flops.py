"""Operations counted in a graph, against those worked out by hand and those that were published."""

import pytest
import tensorflow as tf

from resnet.bench import flops
from resnet.bench.keras_child import application
from resnet.bench.workers import Wrong
from resnet.config import compose
from resnet.model import conv, resnet


def test_a_trained_image_is_three_passes_less_the_input_gradient_of_the_first_convolution():
    layers = tf.keras.layers
    network = tf.keras.Sequential(
        [
            layers.Input([None, None, 3]),
            layers.Conv2D(4, 3, 2, "same"),
            conv.Conv(8, 3, groups=2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )
    first, second, head = 2 * 8 * 8 * 4 * 27, 2 * 8 * 8 * 8 * 9 * 2, 2 * 8 * 10
    assert flops.gflop(network, 16) == pytest.approx((2 * first + 3 * second + 3 * head) / 1e9)


def test_the_published_figures_of_resnet50_come_out():
    """docs/performance.md: v1.5 24.3 GFLOP, Keras's v1 22.9, at 224 px."""
    ours = resnet.build(compose.for_inference(["model=resnet50"]).model, 1000, "float32")
    assert flops.gflop(ours, 224) == pytest.approx(24.3, abs=0.1)
    assert flops.gflop(application("fp32", 224), 224) == pytest.approx(22.9, abs=0.1)


def test_the_peak_is_the_best_of_the_sizes(monkeypatch):
    seconds = {32: 0.4, 64: 0.1, 128: 0.2}
    monkeypatch.setattr(flops, "seconds_per_gflop", lambda left, _right: seconds[int(left.shape[0])])
    assert flops.products("bf16", (32, 64, 128))(1) == 0.1


def test_a_product_that_is_not_one_is_no_peak(monkeypatch):
    square = tf.random.normal([256, 256])
    product = tf.matmul(square, square)
    monkeypatch.setattr(flops, "TURN_S", 0.0)
    monkeypatch.setattr(tf, "matmul", lambda *_squares: product + 9)
    with pytest.raises(Wrong, match="a product is"):
        flops.seconds_per_gflop(square, square)


def test_a_product_is_timed():
    square = tf.random.normal([256, 256])
    assert 1e-5 < flops.seconds_per_gflop(square, square) < 10
