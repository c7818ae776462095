"""SGD and LARS against loops of NumPy, on the variables of a real network."""

import numpy as np
import pytest
import tensorflow as tf

from resnet.config.model import Block, Model
from resnet.config.optim import Lars, Sgd
from resnet.model import resnet
from resnet.optim import optimizers

STEPS = 12
SMALL = Model("small", Block.bottleneck, [1] * 4, groups=2, width=2, filters=4, zero_init_residual=False)
SMALL.depths = [1]  # one stage is enough here; only the configuration insists on four


@pytest.fixture(scope="module")
def network():
    """All kinds of variables: plain and grouped kernels, batch norm's, the head's; float32, which Keras casts to bfloat16."""
    return resnet.build(SMALL, 10, "mixed_bfloat16")


def start(network):
    """Where every training below starts from."""
    random = np.random.default_rng(1)
    return [random.normal(0, 0.5, v.shape).astype(np.float32) for v in network.trainable_variables]


def kinds(network):
    """`norm`, `bias` or `kernel` for each variable, by its layer and not by its name."""
    layers = {id(v): layer for layer in network.layers for v in layer.trainable_variables}
    norm = tf.keras.layers.BatchNormalization
    return [
        "norm" if isinstance(layers[id(v)], norm) else "bias" if len(v.shape) == 1 else "kernel"
        for v in network.trainable_variables
    ]


def gradients(network, step):
    random = np.random.default_rng([2, step])
    return [random.normal(0, 0.5, v.shape).astype(np.float32) for v in network.trainable_variables]


def lr_at(step):
    """Warm-up, then a drop: the velocity must not have forgotten the old rate, or taken on the new one."""
    return np.float32([0.0, 0.05, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.2, 0.2, 0.3, 0.001][step])


def trained(network, settings, steps=range(STEPS), restored=None, saved=None):
    """Weights after `steps` from the start, or from a checkpoint; what is reached can be saved."""
    optimizer = optimizers.build(settings, network.trainable_variables)
    checkpoint = tf.train.Checkpoint(network=network, optimizer=optimizer)
    for variable, value in zip(network.trainable_variables, start(network), strict=True):
        variable.assign(tf.ones_like(variable) if restored else value)
    if restored:
        checkpoint.read(restored).assert_consumed()
    apply = tf.function(optimizer.apply)
    for step in steps:
        apply([tf.constant(g) for g in gradients(network, step)], tf.constant(lr_at(step)))
    if saved:
        checkpoint.write(saved)
    return [variable.numpy() for variable in network.trainable_variables]


def np_sgd(w, grads, wd, momentum, nesterov):
    """arXiv:1706.02677 eq. 9 and, with nesterov, what PyTorch documents."""
    w, v, m = w.copy(), np.zeros_like(w), np.float32(momentum)
    for step, g in enumerate(grads):
        g = g + np.float32(wd) * w
        v = m * v + g
        w -= lr_at(step) * (g + m * v if nesterov else v)
    return w


def np_lars(w, grads, wd, momentum, scaled, eta, eps):
    """arXiv:1708.03888 alg. 1."""
    w, v = w.copy(), np.zeros_like(w)
    for step, g in enumerate(grads):
        trust = np.float32(1)
        if scaled:
            w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
            if w_norm > 0 and g_norm > 0:
                trust = np.float32(eta * w_norm / (g_norm + wd * w_norm + eps))
            g = g + np.float32(wd) * w
        v = np.float32(momentum) * v + lr_at(step) * trust * g
        w -= v
    return w


def compare(network, found, loop):
    """`found` is, for every variable, `loop(value at the start, its kind, its gradients)`."""
    grads = zip(*(gradients(network, step) for step in range(STEPS)), strict=True)
    parts = zip(network.trainable_variables, start(network), kinds(network), grads, found, strict=True)
    for variable, before, kind, of_variable, after in parts:
        wanted = loop(before, kind, of_variable)
        np.testing.assert_allclose(after, wanted, rtol=1e-6, atol=1e-6, err_msg=variable.name)
        assert np.abs(after - before).max() > 1e-4, variable.name


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_sgd_is_the_loop_over_its_formula(network, nesterov, decay):
    found = trained(network, Sgd(lr=1, momentum=0.9, weight_decay=decay, nesterov=nesterov))
    compare(network, found, lambda w, kind, g: np_sgd(w, g, 0 if kind == "norm" else decay, 0.9, nesterov))


@pytest.mark.parametrize(
    "settings",
    [
        Lars(lr=1, weight_decay=1e-4, trust_coefficient=1.0),
        Lars(lr=1, weight_decay=0.5, trust_coefficient=0.5, momentum=0.5, epsilon=0.1),
        Lars(lr=1, weight_decay=0.0, trust_coefficient=0.02),
    ],
)
def test_lars_is_the_loop_over_its_formula(network, settings):
    decay, momentum = settings.weight_decay, settings.momentum
    eta, eps = settings.trust_coefficient, settings.epsilon
    found = trained(network, settings)
    compare(network, found, lambda w, kind, g: np_lars(w, g, decay, momentum, kind == "kernel", eta, eps))


@pytest.mark.parametrize("settings", [Sgd(lr=1, nesterov=True), Lars(lr=1, trust_coefficient=0.1)])
def test_a_run_restored_half_way_ends_as_one_never_stopped(network, settings, tmp_path):
    whole = trained(network, settings)
    half = str(tmp_path / "half")
    trained(network, settings, range(5), saved=half)
    for one, other in zip(trained(network, settings, range(5, STEPS), restored=half), whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_state_is_one_velocity_a_variable(network):
    for settings in (Sgd(lr=1), Lars(lr=1)):
        optimizer = optimizers.build(settings, network.trainable_variables)
        shapes = [tuple(v.shape) for v in optimizer.velocity]
        assert shapes == [tuple(v.shape) for v in network.trainable_variables]
        assert all(v.dtype == tf.float32 and not v.trainable and not v.numpy().any() for v in optimizer.velocity)


# --------------------------------------------------------------------------------------------- numbers worked out by hand
def one_step(settings, name, weights, gradient, lr):
    variable = tf.Variable(tf.constant(weights, tf.float32), name=name)
    optimizers.build(settings, [variable]).apply([tf.constant(gradient, tf.float32)], tf.constant(lr, tf.float32))
    return variable.numpy()


def test_sgd_decays_all_but_gamma_and_beta():
    settings = Sgd(lr=1, weight_decay=2.5)
    wanted = {"conv1/kernel": 0.8, "fc/kernel": 0.8, "fc/bias": 0.8, "bn1/gamma": 1.8, "bn1/beta": 1.8}
    for name, after in wanted.items():  # 2 - 0.2 * (1 + 2.5 * 2), or without the decay 2 - 0.2 * 1
        assert one_step(settings, name, [2.0], [1.0], 0.2) == pytest.approx([after]), name


def test_lars_scales_and_decays_kernels_alone():
    settings = Lars(lr=1, weight_decay=0.1, trust_coefficient=0.3)
    # |w| = 5, |g| = 1: trust 0.3 * 5 / (1 + 0.1 * 5) = 1; the step is 0.5 * (g + 0.1 * w)
    weights, gradient = [3.0, 4.0], [0.6, 0.8]
    for name in ("conv1/kernel", "fc/kernel"):
        assert one_step(settings, name, weights, gradient, 0.5) == pytest.approx([2.55, 3.4]), name
    for name in ("fc/bias", "bn1/gamma", "bn1/beta"):
        assert one_step(settings, name, weights, gradient, 0.5) == pytest.approx([2.7, 3.6]), name
    smaller = Lars(lr=1, weight_decay=0.1, trust_coefficient=0.3, epsilon=1.5)  # trust 1.5 / 3
    assert one_step(smaller, "conv1/kernel", weights, gradient, 0.5) == pytest.approx([2.775, 3.7])


def test_lars_leaves_the_rate_alone_where_a_norm_is_zero():
    for epsilon in (0.0, 0.1):
        settings = Lars(lr=1, weight_decay=0.1, trust_coefficient=0.001, epsilon=epsilon)
        np.testing.assert_allclose(one_step(settings, "conv/kernel", [0.0, 0.0], [1.0, 2.0], 0.5), [-0.5, -1.0])
        np.testing.assert_allclose(one_step(settings, "conv/kernel", [1.0, 2.0], [0.0, 0.0], 0.5), [0.95, 1.9])
        np.testing.assert_array_equal(one_step(settings, "conv/kernel", [0.0, 0.0], [0.0, 0.0], 0.5), [0.0, 0.0])


def test_the_velocity_of_lars_keeps_the_rate_it_was_made_with():
    """With the rate outside the velocity, a step at rate 0 would not move."""
    variable = tf.Variable([2.0], name="bn1/gamma")
    for settings, wanted in ((Lars(lr=1, momentum=0.5), 2 - 0.2 - 0.1), (Sgd(lr=1, momentum=0.5), 2 - 0.2)):
        variable.assign([2.0])
        optimizer = optimizers.build(settings, [variable])
        for lr, gradient in ((0.2, 1.0), (0.0, 0.0)):
            optimizer.apply([tf.constant([gradient])], tf.constant(lr))
        assert variable.numpy() == pytest.approx([wanted])
