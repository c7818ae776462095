"""The networks against the published sizes, and against a forward pass written with NumPy alone."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from torch_layout import PUBLISHED, row

from resnet.config.model import Block, Model, Stem
from resnet.model import resnet, weights

SMALL = [1, 2, 1, 1]


def plain(depths=SMALL, **knobs):
    settings = Model(**{"name": "plain", "block": Block.bottleneck, "depths": SMALL, "width": 4, "filters": 8, **knobs})
    settings.depths = depths  # fewer than four are built in less time; only the configuration insists on four
    return settings


NETWORKS = {
    "bottleneck": plain(),
    "grouped": plain(groups=4, width=2),
    "basic": plain(block=Block.basic, width=8),
    "small": plain([1, 1], block=Block.basic, width=8, stem=Stem.small),
}


@pytest.fixture(scope="module")
def built():
    """`built(name)`: a network of NETWORKS, built once; its values are whatever the test before left."""
    return functools.cache(lambda name: resnet.build(NETWORKS[name], 10, "float32"))


def parameters(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


# ---------------------------------------------------------------------------------------------------------------- sizes
GIGA_MACS = {"resnet18": 1.8, "resnet50": 4.1, "resnext50": 4.3}  # 3.8 would be v1: the stride on the 1x1 convolution


@pytest.mark.parametrize(
    "name", [name if name in GIGA_MACS else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)
def test_each_row_has_the_published_parameters_and_multiply_adds(name, monkeypatch):
    """test_weights.py counts those of every row by the shapes of its weights."""
    # Only shapes matter here: no random numbers, no batch norm in the graph. Halves the time.
    monkeypatch.setattr(
        tf.keras.initializers.VarianceScaling, "__call__", lambda _self, shape, dtype=None, **_: tf.zeros(shape, dtype)
    )
    monkeypatch.setattr(tf.keras.layers.BatchNormalization, "call", lambda _self, inputs, **_: inputs)
    network = resnet.build(row(name), 1000, "float32")
    assert parameters(network.trainable_variables) == PUBLISHED[name]
    assert network.name == name
    if name in GIGA_MACS:
        forward = tf.function(lambda images: network(images, training=False))
        graph = forward.get_concrete_function(tf.TensorSpec([1, 224, 224, 3])).graph
        ops = [op for op in graph.get_operations() if op.type in ("Conv2D", "MatMul")]
        macs = sum(op.outputs[0].shape.num_elements() * int(np.prod(op.inputs[1].shape[:-1])) for op in ops)
        assert macs / 1e9 == pytest.approx(GIGA_MACS[name], abs=0.1)


def test_the_small_stem_makes_the_resnet18_that_is_published_for_cifar10():
    """11,173,962 parameters: github.com/kuangliu/pytorch-cifar."""
    network = resnet.build(
        small := Model.of_row({**vars(row("resnet18")), "block": "basic", "stem": "small"}), 10, "float32"
    )
    assert parameters(network.trainable_variables) == 11_173_962
    assert weights.shapes(small, 10) == {name: tensor.shape for name, tensor in weights.export_from(network).items()}


# -------------------------------------------------------------------------------------------------------- forward pass
def np_pool(x):
    """3x3 at stride 2, padded with -inf."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    height, width = ((n - 3) // 2 + 1 for n in x.shape[1:3])
    views = [
        x[:, i : i + 2 * height : 2, j : j + 2 * width : 2][:, :height, :width] for i in range(3) for j in range(3)
    ]
    return np.max(views, axis=0)


def np_forward(settings, weights, images, np_conv):
    """Logits in float64, from weights by timm's names, in evaluation mode (arXiv:1512.03385, arXiv:1611.05431)."""

    def norm(x, name):
        w = weights[name]
        return w["gamma"] * (x - w["moving_mean"]) / np.sqrt(w["moving_variance"] + 1e-5) + w["beta"]

    def conv(x, name, stride=1, groups=1):
        return np_conv(x, weights[name]["kernel"], stride, groups)

    def relu(x):
        return np.maximum(x, 0)

    small = settings.stem is Stem.small
    x = relu(norm(conv(images.astype(np.float64), "conv1", 1 if small else 2), "bn1"))
    x = x if small else np_pool(x)
    for stage, depth in enumerate(settings.depths):
        for number in range(depth):
            name = f"layer{stage + 1}.{number}"
            stride = 2 if stage and not number else 1
            shortcut = x
            if f"{name}.downsample.0" in weights:
                shortcut = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            if settings.block is Block.bottleneck:
                x = relu(norm(conv(x, f"{name}.conv1"), f"{name}.bn1"))
                x = relu(norm(conv(x, f"{name}.conv2", stride, settings.groups), f"{name}.bn2"))  # v1.5: the 3x3
                x = norm(conv(x, f"{name}.conv3"), f"{name}.bn3")
            else:
                x = relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
                x = norm(conv(x, f"{name}.conv2"), f"{name}.bn2")
            x = relu(x + shortcut)
    return x.mean((1, 2)) @ weights["fc"]["kernel"] + weights["fc"]["bias"]


def shuffled(network, seed):
    """Give every variable random values, gammas and variances above 0; weights by layer name and kind."""
    random = np.random.default_rng(seed)
    weights = {}
    for layer in network.layers:
        for variable in layer.variables:
            kind = variable.name.rsplit("/", 1)[-1].split(":")[0]
            if kind in ("gamma", "moving_variance"):
                variable.assign(random.uniform(0.5, 1.5, variable.shape))
            elif kind != "kernel":
                variable.assign(random.normal(0, 0.3, variable.shape))
            weights.setdefault(layer.name, {})[kind] = variable.numpy().astype(np.float64)
    return weights


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(37, 45), (64, 32)])
def test_the_forward_pass_is_the_one_written_with_numpy(built, name, size, np_conv):
    network = built(name)
    weights = shuffled(network, 1)
    images = np.random.default_rng(2).normal(0, 1, (2, *size, 3)).astype(np.float32)
    wanted = np_forward(NETWORKS[name], weights, images, np_conv)
    logits = network(images, training=False).numpy()
    assert logits.shape == (2, 10) and (logits < 0).any()  # no probabilities
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_public_names_and_shapes_of_weights_are_those_of_timm():
    """Torch's [out, in / groups, h, w] is [h, w, in / groups, out] here, under the same name."""
    settings = row("resnext50")
    settings.depths = [1, 1, 1, 1]
    network = resnet.build(settings, 1000, "float32")
    wanted = {
        "conv1": (7, 7, 3, 64),
        "layer1.0.conv1": (1, 1, 64, 128),
        "layer1.0.conv2": (3, 3, 4, 128),
        "layer1.0.conv3": (1, 1, 128, 256),
        "layer1.0.downsample.0": (1, 1, 64, 256),
        "layer4.0.conv2": (3, 3, 32, 1024),
        "fc": (2048, 1000),
    }
    assert {name: tuple(network.get_layer(name).kernel.shape) for name in wanted} == wanted


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(8, 8), (9, 31)])
def test_small_and_odd_images_go_through_and_train(built, name, size):
    network = built(name)
    images = tf.random.stateless_normal([2, *size, 3], [1, 2])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(images, training=True))
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(loss, network.trainable_variables))


# --------------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize("name", ["grouped", "basic"])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_variables_and_logits(built, name):
    network = resnet.build(NETWORKS[name], 10, "mixed_bfloat16")
    assert {variable.dtype for variable in network.variables} == {tf.float32}
    inner = [layer for layer in network.layers if layer.name not in ("images", "pool", "fc")]
    assert {layer.compute_dtype for layer in inner} == {"bfloat16"}
    assert {network.get_layer(head).compute_dtype for head in ("pool", "fc")} == {"float32"}
    images = tf.random.stateless_normal([2, 32, 32, 3], [1, 2])
    with tf.GradientTape() as tape:
        logits = network(images, training=True)
        loss = tf.reduce_sum(logits**2)
    assert logits.dtype == tf.float32
    assert {gradient.dtype for gradient in tape.gradient(loss, network.trainable_variables)} == {tf.float32}
    exact = built(name)
    assert {layer.compute_dtype for layer in exact.layers} == {"float32"}
    assert tf.keras.mixed_precision.global_policy().name == "float32"  # nothing leaks into the next network
    shuffled(network, 3)
    exact.set_weights(network.get_weights())
    wanted = exact(images, training=False).numpy()
    found = network(images, training=False).numpy()
    assert 0 < np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("name", "last", "zero"), [("grouped", "bn3", True), ("basic", "bn2", True), ("bottleneck", "bn3", False)]
)
def test_the_last_gamma_of_every_block_starts_at_zero_if_asked(name, last, zero):
    settings = plain(**{**vars(NETWORKS[name]), "zero_init_residual": zero, "depths": [2, 1]})
    network = resnet.build(settings, 10, "float32")
    gammas = {v.name.split("/")[0]: v.numpy() for v in network.variables if v.name.endswith("gamma:0")}
    zeros = {layer for layer, gamma in gammas.items() if (gamma == 0).all()}
    blocks = ["layer1.0", "layer1.1", "layer2.0"]
    assert zeros == ({f"{block}.{last}" for block in blocks} if zero else set())
    assert all((gamma == 1).all() for layer, gamma in gammas.items() if layer not in zeros)


def test_with_zero_gammas_a_block_at_the_start_is_its_shortcut():
    deep, shallow = (resnet.build(plain(depths=depths), 10, "float32") for depths in ([2], [1]))
    for layer in shallow.layers:
        deep.get_layer(layer.name).set_weights(layer.get_weights())
    images = tf.random.stateless_normal([2, 32, 32, 3], [1, 2])
    np.testing.assert_allclose(deep(images), shallow(images), rtol=1e-5, atol=1e-7)


def test_the_head_starts_normal_with_deviation_one_hundredth_and_no_bias():
    tf.keras.utils.set_random_seed(4)
    head = resnet.build(plain(filters=256, width=4, depths=[1]), 100, "float32").get_layer("fc")
    kernel = head.kernel.numpy()
    assert kernel.std() == pytest.approx(0.01, rel=5 / np.sqrt(2 * kernel.size))
    assert np.abs(kernel).max() > 0.03  # not truncated at two deviations
    assert (head.bias.numpy() == 0).all()


def test_weights_are_a_function_of_the_seed_and_no_two_layers_start_alike():
    tf.keras.utils.set_random_seed(4)
    first = [v.numpy() for v in resnet.build(plain(depths=[2]), 10, "float32").trainable_variables]
    tf.keras.utils.set_random_seed(4)
    network = resnet.build(plain(depths=[2]), 10, "float32")
    for before, after in zip(first, network.trainable_variables, strict=True):
        np.testing.assert_array_equal(before, after.numpy())
    kernels = [v.numpy() for v in network.trainable_variables if v.name.endswith("kernel:0")]
    for number, kernel in enumerate(kernels):
        assert not any(np.array_equal(kernel, other) for other in kernels[:number])
    tf.keras.utils.set_random_seed(5)
    assert not np.array_equal(first[0], resnet.build(plain(depths=[2]), 10, "float32").trainable_variables[0].numpy())


def test_batch_norm_has_the_epsilon_and_momentum_of_pytorch():
    network = resnet.build(NETWORKS["bottleneck"], 10, "float32")
    norms = [layer for layer in network.layers if isinstance(layer, tf.keras.layers.BatchNormalization)]
    assert {(layer.epsilon, layer.momentum) for layer in norms} == {(1e-5, 0.9)}
    assert len(norms) == 1 + 3 * sum(SMALL) + 4  # the stem's, the blocks', the projections'
    stem = network.get_layer("bn1")
    before = network.get_layer("conv1")(tf.random.stateless_normal([4, 16, 16, 3], [7, 8]))
    stem(before, training=True)
    values = before.numpy().reshape(-1, 8).astype(np.float64)
    np.testing.assert_allclose(stem.moving_mean, 0.1 * values.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stem.moving_variance, 0.9 + 0.1 * values.var(0, ddof=1), rtol=1e-4)  # torch: unbiased


def test_batch_norm_settings_reach_every_layer():
    network = resnet.build(plain(depths=[1], batch_norm_momentum=0.8, batch_norm_epsilon=1e-3), 10, "float32")
    norms = [layer for layer in network.layers if isinstance(layer, tf.keras.layers.BatchNormalization)]
    assert {(layer.epsilon, layer.momentum) for layer in norms} == {(1e-3, 0.8)}


def test_no_convolution_has_a_bias_and_only_the_head_does(built):
    network = built("bottleneck")
    assert [v.name for v in network.trainable_variables if v.name.endswith("bias:0")] == ["fc/bias:0"]
