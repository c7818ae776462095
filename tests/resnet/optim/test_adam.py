"""AdamW, LAMB, decoupled decay and clipping against loops of NumPy over 50 steps, and their state."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fake_step import train_step_of
from run_files import assert_same, tensors

from resnet.config.optim import AdamW, Lamb, Lars, Sgd
from resnet.model import resnet
from resnet.optim import optimizers
from resnet.optim.loss_scale import LossScaleOptimizer
from resnet.training.loop import train as train_run

ORACLE = runpy.run_path(str(Path(__file__).parents[2] / "golden" / "oracle_optim.py"))
STEPS, LRS, draw = ORACLE["STEPS"], ORACLE["LRS"], ORACLE["draw"]
FACTORS = [1.0, 0.5, 1.0, 0.0]  # of the four variables


def variables():
    return [tf.Variable(value, name=name) for name, value in draw().items()]


def train(optimizer, steps=range(STEPS)):
    """The weights after `steps` with the drawn gradients."""
    apply = tf.function(optimizer.apply)
    for step in steps:
        apply([tf.constant(g) for g in draw(step).values()], tf.constant(LRS[step], tf.float32))
    inner = getattr(optimizer, "inner", optimizer)
    return [variable.numpy() for variable in inner.variables_to_train]


def in_numpy(rule, limit=None):
    """The same by `rule(w, g, state, lr, t, is_kernel) -> w` in float64, the gradients scaled down to the norm `limit`."""
    weights = [value.astype(np.float64) for value in draw().values()]
    states = [{} for _ in weights]
    for step in range(STEPS):
        gradients = [value.astype(np.float64) for value in draw(step).values()]
        total = np.sqrt(sum((g**2).sum() for g in gradients))
        scale = min(1.0, limit / (total + 1e-6)) if limit else 1.0
        for i, g in enumerate(gradients):
            weights[i] = rule(weights[i], scale * g, states[i], LRS[step] * FACTORS[i], step + 1, i == 0)
    return weights


def adam(g, state, t, beta1=0.9, beta2=0.999, eps=1e-8):
    """arXiv:1412.6980 alg. 1: the direction of step t, counted from 1."""
    state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    return state["m"] / (1 - beta1**t) / (np.sqrt(state["v"] / (1 - beta2**t)) + eps)


def adamw(w, g, state, lr, t, is_kernel):
    """arXiv:1711.05101 alg. 2."""
    return w * (1 - lr * 0.3 * is_kernel) - lr * adam(g, state, t)


def lamb(w, g, state, lr, t, is_kernel):
    """arXiv:1904.00962 alg. 2; only kernels are decayed and scaled."""
    step = adam(g, state, t, beta1=0.8, eps=1e-6)
    if is_kernel:
        step = step + 0.3 * w
        step = step * np.linalg.norm(w) / np.linalg.norm(step)
    return w - lr * step


def sgdw(w, g, state, lr, _t, is_kernel):
    """arXiv:1711.05101 alg. 1, with the rate outside the velocity."""
    state["v"] = 0.9 * state.get("v", 0) + g
    return w * (1 - lr * 0.3 * is_kernel) - lr * state["v"]


@pytest.mark.parametrize("limit", [None, 0.7])
@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (AdamW(lr=1, weight_decay=0.3), adamw),
        (Lamb(lr=1, weight_decay=0.3, beta1=0.8), lamb),
        (Sgd(lr=1, weight_decay=0.3, decoupled=True, decay_bias=False), sgdw),
    ],
)
def test_fifty_steps_are_the_loop_over_the_formula(settings, rule, limit):
    settings.clip_norm = limit
    weights = train(optimizers.build(settings, variables(), FACTORS))
    for after, wanted, before, factor in zip(weights, in_numpy(rule, limit), draw().values(), FACTORS, strict=True):
        np.testing.assert_allclose(after, wanted, rtol=3e-6, atol=3e-6)
        assert np.array_equal(after, before) is (factor == 0)


def test_lamb_leaves_the_rate_alone_where_a_norm_is_zero():
    weight = tf.Variable([0.0, 0.0], name="conv/kernel")
    optimizer = optimizers.build(Lamb(lr=1, weight_decay=0.5), [weight])
    optimizer.apply([tf.constant([0.0, 0.0])], tf.constant(0.1))
    np.testing.assert_array_equal(weight, [0.0, 0.0])
    optimizer.apply(
        [tf.constant([2.0, -1.0])], tf.constant(0.1)
    )  # |w| = 0: the step of Adam, which is its sign at first
    second = 0.1 * 0.1 / (1 - 0.9**2) / np.sqrt(0.001 / (1 - 0.999**2))  # of two steps, the first without a gradient
    np.testing.assert_allclose(weight, [-second, second], rtol=1e-5)


def test_gradients_below_the_limit_stay_as_they_are_and_others_get_its_norm():
    gradients = [np.float32([3.0]), np.float32([[0.0, 4.0]])]
    same = optimizers.clip_by_global_norm([tf.constant(g) for g in gradients], 5.1)
    assert all(np.array_equal(one, other) for one, other in zip(same, gradients, strict=True))
    scaled = optimizers.clip_by_global_norm([tf.constant(g) for g in gradients], 1.0)
    np.testing.assert_allclose(np.concatenate([one.numpy().ravel() for one in scaled]), [0.6, 0, 0.8], rtol=1e-6)


def test_the_norm_is_that_of_the_unscaled_gradients_under_loss_scaling():
    settings = Sgd(lr=1, momentum=0.0, weight_decay=0.0, clip_norm=1.0)
    weight = tf.Variable([0.0, 0.0], name="kernel")
    optimizer = LossScaleOptimizer(optimizers.build(settings, [weight]))
    for gradient, after in (([0.3, 0.4], [-0.3, -0.4]), ([3.0, 4.0], [-0.9, -1.2])):
        optimizer.apply([tf.constant(gradient) * optimizer.scale], tf.constant(1.0))
        np.testing.assert_allclose(weight, after, rtol=1e-5)


@pytest.mark.parametrize("settings", [AdamW(lr=1), Lamb(lr=1), Sgd(lr=1, decoupled=True, clip_norm=0.5)])
def test_a_run_restored_half_way_ends_as_one_never_stopped(settings, tmp_path):
    whole = train(optimizers.build(settings, variables()))
    half = LossScaleOptimizer(optimizers.build(settings, variables()))
    half.scale.assign(1.0)
    train(half, range(20))
    path = tf.train.Checkpoint(optimizer=half).write(str(tmp_path / "half"))
    other = LossScaleOptimizer(optimizers.build(settings, variables()))
    tf.train.Checkpoint(optimizer=other).read(path).assert_consumed()
    for one, wanted in zip(train(other, range(20, STEPS)), whole, strict=True):
        np.testing.assert_array_equal(one, wanted)


def test_the_state_is_two_means_a_variable_and_the_number_of_steps(tmp_path):
    for settings in (AdamW(lr=1), Lamb(lr=1)):
        optimizer = optimizers.build(settings, variables())
        train(optimizer, range(3))
        assert optimizer.steps.numpy() == 3 and optimizer.state[-1] is optimizer.steps
        assert [v.shape for v in optimizer.state[:-1]] == 2 * [v.shape for v in optimizer.variables_to_train]
        path = tf.train.Checkpoint(optimizer=optimizer).write(str(tmp_path / settings.name))
        names = {name.split("/")[1] for name, _ in tf.train.list_variables(path) if name.startswith("optimizer/")}
        assert names == {"variables_to_train", "mean", "square", "steps"}


@pytest.mark.parametrize("settings", [Sgd(lr=1), Lars(lr=1), AdamW(lr=1), Lamb(lr=1)])
def test_what_is_decayed_can_be_chosen(settings):
    names = ["a/kernel", "a/bias", "bn/gamma", "bn/beta"]
    ours = [tf.Variable([1.0], name=name) for name in names]
    default = {"sgd": [True, True, False, False]}.get(settings.name, [True, False, False, False])
    assert list(optimizers.build(settings, ours).decayed) == default
    chosen = type(settings)(lr=1, decay_norm=True, decay_bias=False)
    assert list(optimizers.build(chosen, ours).decayed) == [True, False, True, True]
    assert not any(optimizers.build(type(settings)(lr=1, weight_decay=0.0), ours).decayed)


def test_a_run_with_lamb_is_the_same_when_resumed(run_at, tmp_path, small_build, monkeypatch):
    """With skipped updates, layer-wise rates and an average; each is part of the state or of the step."""
    monkeypatch.setattr(resnet, "build", small_build)
    words = ["model=tiny", "batch=96", "track=off", "optim=lamb", "optim.lr=0.1", "on_nan.policy=skip"]
    words += ["schedule=linear", "schedule.warmup_epochs=0.1", "schedule.warmup_start=0.1", "epochs=1", "eval=false"]
    words += ["finetune.layer_decay=0.5", "ema.torchvision_decay=0.999", "ema.every_steps=1", "ema.start=copy"]
    whole, resumed = (run_at(tmp_path / name, *words, "steps=5", "save_every_steps=3") for name in ("whole", "resumed"))
    train_run(whole, Path(whole.out))
    shutil.copytree(whole.out, resumed.out)
    shutil.rmtree(Path(resumed.out) / "checkpoints" / "step-00000005")
    train_run(resumed, Path(resumed.out))
    for part in ("network", "average", "optimizer"):
        one, other = (tensors(run.out, 5, part) for run in (whole, resumed))
        assert_same(one, other)
        assert len(one) > 3, part
    assert [value for name, value in one.items() if "steps" in name] == [5]


def test_lamb_moves_the_kernels_of_a_network_each_by_the_rate_times_its_norm(run_of):
    """In the compiled step: a buffer of changing shape for all variables once broke the gradients of its convolutions."""
    step = train_step_of(
        run_of(
            "model=tiny",
            "model.block=basic",
            "data=digits",
            "batch=8",
            "track=off",
            "optim=lamb",
            "optim.clip_norm=null",
        )
    )
    before = [variable.numpy() for variable in step.variables]
    step.train(*step.inputs(0, 1, [0.01]), tf.constant(0.0))
    moves = [np.linalg.norm(v.numpy() - old) for v, old in zip(step.variables, before, strict=True)]
    kernels = [(move, np.linalg.norm(old)) for move, old in zip(moves, before, strict=True) if old.ndim == 4 and move]
    assert len(kernels) > 5
    for move, norm in kernels:
        assert move == pytest.approx(0.01 * norm, rel=1e-4)
