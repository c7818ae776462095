"""Rows with other stems, shortcuts, gates and blurs, against timm's and ffcv-imagenet's (tests/golden/oracle_model.py)."""

import functools
from pathlib import Path

import named_tensors
import numpy as np
import pytest
import tensorflow as tf
from torch_layout import row

from resnet.config.data import Synthetic
from resnet.config.model import Antialias, Block, Model, Stem
from resnet.model import drop, resnet, weights
from resnet.model.blocks import Blur
from resnet.model.norm import RowNorm
from resnet.serving import saved_model
from resnet.training.trained import read

GOLDEN = dict(np.load(Path(__file__).parents[2] / "golden" / "model.npz"))
ROWS = [name.partition("/")[0] for name in GOLDEN if name.endswith("/parameters")]
SIZES = (64, 64), (75, 107)
DEEP = {"stem": Stem.deep, "avg_down": True}
RS = {"stem": Stem.deep_conv, "avg_down": True, "se_ratio": 0.25}
SMALL = {
    "deep": DEEP,
    "se": {"se_ratio": 1 / 16},
    "rs": RS,
    "blurpool": {"antialias": Antialias.blurpool},
    "rs_blurpool": {**RS, "antialias": Antialias.blurpool},
    "ffcv": {"antialias": Antialias.ffcv},
    "rs_ffcv": {**RS, "antialias": Antialias.ffcv},
    "basic_deep_se": {**DEEP, "se_ratio": 1 / 16},
    "basic_ffcv": {"antialias": Antialias.ffcv},
}


def small(name, **more):
    block = {"block": Block.bottleneck, "width": 16 if name.endswith("ffcv") else 4}
    if name.startswith("basic"):
        block = {"block": Block.basic}
    return Model(name=name, depths=[1, 2, 1, 1], **block, **SMALL[name], **more)


def tensors_of(settings):
    return {name: named_tensors.tensor(name, shape) for name, shape in weights.shapes(settings, 10).items()}


def filled(settings, *more):
    network = resnet.build(settings, 10, *(more or ("float32", RowNorm)))
    weights.load_into(network, tensors_of(settings), settings.name)
    return network


def inputs(count, height, width):
    return named_tensors.images(count, height, width).transpose(0, 2, 3, 1)


def check(network, name):
    for height, width in SIZES:
        wanted = GOLDEN[f"{name}/{height}x{width}"]
        logits = network(inputs(2, height, width), training=False).numpy()
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def built():
    """`built(name)`: the network of SMALL with named tensors, built once."""
    return functools.cache(lambda name: filled(small(name)))


# ----------------------------------------------------------------------------------------------------- against timm
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("rs_ffcv", "basic_ffcv") else name for name in SMALL],
)
def test_a_narrow_network_has_the_logits_of_timms(built, name):
    check(built(name), name)
    assert weights.shapes(small(name), 10) == {
        name: tensor.shape for name, tensor in weights.export_from(built(name)).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ROWS, "resnet50_ffcv"])
def test_a_row_has_the_logits_of_timms(name):
    settings = row(name.removesuffix("_ffcv"))
    if name == "resnet50_ffcv":
        settings.antialias = Antialias.ffcv
    check(filled(settings), name)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_as_many_parameters_as_timms_and_is_known_by_its_weights(name):
    shapes = weights.shapes(row(name), 1000)
    trained = [shape for entry, shape in shapes.items() if "running" not in entry]
    assert sum(int(np.prod(shape)) for shape in trained) == GOLDEN[f"{name}/parameters"]
    tensors = {entry: np.broadcast_to(np.float32(0), shape) for entry, shape in shapes.items()}
    # A blur has no weights: nothing tells those of the two networks apart.
    assert weights.detect_model(tensors) == ("resnet50" if name == "resnetblur50" else name)


def test_the_names_are_timms():
    names = set(weights.shapes(row("resnetrs50"), 1000))
    assert {"conv1.0.weight", "conv1.4.running_var", "conv1.6.weight", "bn1.bias", "maxpool.0.weight"} <= names
    assert {"maxpool.1.weight", "layer1.0.downsample.1.weight", "layer2.0.downsample.2.bias"} <= names
    assert {"layer1.0.se.fc1.weight", "layer1.0.se.fc2.bias"} <= names and "layer1.0.downsample.0.weight" not in names


@pytest.mark.parametrize("name", ["deep", "se"])
def test_masks_of_stochastic_depth_and_dropout_act_as_in_timm(monkeypatch, name):
    monkeypatch.setattr(
        drop.Draws,
        "uniform",
        lambda _self, stream, width: named_tensors.uniform(f"stream {stream}", (8, width)).astype(np.float32),
    )
    network = filled(small(name, stochastic_depth=0.6, dropout=0.3))
    with drop.drawing(drop.Draws(0, tf.constant(0), 8, tf.range(8))):
        logits = network(inputs(8, 64, 64), training=True).numpy()
    wanted = GOLDEN[f"{name}/train"]
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


# ------------------------------------------------------------------------------------------------------ by themselves
def test_layers_that_drop_have_rates_from_nothing_to_the_last():
    assert drop.depth_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop.depth_rates(0.0, 16) == [0.0] * 16 and drop.depth_rates(0.5, 1) == [0.0]


def test_in_evaluation_nothing_drops_and_training_without_draws_fails(built):
    network = filled(small("deep", stochastic_depth=0.6, dropout=0.3))
    images = tf.constant(inputs(2, 32, 32))
    np.testing.assert_array_equal(network(images, training=False), built("deep")(images, training=False))
    with pytest.raises(LookupError):
        network(images, training=True)


def test_draws_are_functions_of_seed_step_layer_and_position():
    def draws(positions, seed=3, step=7, stream=1):
        return drop.Draws(seed, tf.constant(step), 12, tf.constant(positions)).uniform(stream, 5).numpy()

    whole = draws(range(12))
    assert whole.shape == (12, 5) and whole.min() >= 0 and whole.max() < 1 and len(np.unique(whole)) == 60
    for rank in range(3):
        np.testing.assert_array_equal(draws(range(rank, 12, 3)), whole[rank::3])
    for other in ({"seed": 4}, {"step": 8}, {"stream": 2}):
        assert not np.intersect1d(draws(range(12), **other), whole).size


def test_as_many_images_are_dropped_as_the_rate_says_and_the_mean_stays():
    layer = drop.Drop(0.25, 1)
    with drop.drawing(drop.Draws(1, tf.constant(0), 4000, tf.range(4000))):
        output = layer(tf.ones([4000, 2, 1, 3]), training=True).numpy()
    assert set(np.unique(output)) == {0, np.float32(4 / 3)}
    assert (output == output[:, :1, :, :1]).all()  # whole images
    assert output.mean() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("edge", ["REFLECT", "CONSTANT"])
def test_a_blur_is_a_binomial_filter(stride, edge):
    images = np.random.default_rng(1).normal(0, 1, (2, 7, 10, 3)).astype(np.float32)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), edge.lower())
    wanted = sum(padded[:, i : i + 7, j : j + 10] * (1 + i % 2) * (1 + j % 2) / 16 for i in range(3) for j in range(3))[
        :, ::stride, ::stride
    ]
    np.testing.assert_allclose(Blur(stride, edge)(images), wanted, atol=1e-6)


def test_bfloat16_networks_agree_with_float32_and_train():
    settings = small("rs_blurpool", stochastic_depth=0.5, dropout=0.2)
    settings.depths = [1, 1]
    exact, fast = (resnet.build(settings, 10, policy, RowNorm) for policy in ("float32", "mixed_bfloat16"))
    named = {name: named_tensors.tensor(name, value.shape) for name, value in weights.export_from(exact).items()}
    for network in (exact, fast):
        weights.load_into(network, named, "named")
    images = tf.constant(inputs(4, 96, 96))
    wanted, logits = (network(images, training=False).numpy() for network in (exact, fast))
    assert 0 < np.abs(logits - wanted).max() < 0.05 * np.abs(wanted).max()
    with drop.drawing(drop.Draws(1, tf.constant(0), 4, tf.range(4))), tf.GradientTape() as tape:
        loss = tf.reduce_sum(fast(images, training=True) ** 2)
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(loss, fast.trainable_variables))


def test_the_last_gammas_start_at_zero_with_gates_too():
    settings = small("rs")
    settings.depths = [2]
    network = resnet.build(settings, 10, "float32")
    zeros = {v.name for v in network.variables if v.name.endswith("gamma:0") and not v.numpy().any()}
    assert zeros == {"layer1.0.bn3/gamma:0", "layer1.1.bn3/gamma:0"}
    assert {v.name for v in network.variables if v.name.endswith("bias:0")} == {
        "fc/bias:0",
        *(f"layer1.{block}.se.fc{number}/bias:0" for block in (0, 1) for number in (1, 2)),
    }


def test_a_saved_model_answers_as_the_network(tmp_path):
    settings = small("rs_blurpool", stochastic_depth=0.6, dropout=0.3)
    settings.depths = [1, 1]
    data = Synthetic(name="synthetic", classes=10, image_size=32, mean=[0, 0, 0], std=[1, 1, 1])
    network = filled(settings)
    saved_model.write(network, data, None, tmp_path / "saved")
    images = tf.constant(inputs(3, 32, 32))
    answer = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"](images)["logits"]
    np.testing.assert_allclose(answer, network(images, training=False), rtol=0, atol=1e-5)
    tensors = read(str(tmp_path / "saved"))
    assert tensors.keys() == weights.shapes(settings, 10).keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, named_tensors.tensor(name, tensor.shape))
