"""on_nan: a loss, gradient or learning rate that is not finite, and what each policy makes of it."""

import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fake_step import nan_draws, train_step_of, with_losses
from run_files import assert_same, logged, progress, tensors

from resnet import UserError, rundir
from resnet.config.optim import Sgd
from resnet.data.augment import draws
from resnet.optim import optimizers
from resnet.optim import schedule as schedules
from resnet.optim.loss_scale import LossScaleOptimizer
from resnet.training.loop import train
from resnet.training.nonfinite import NanHandler, SkipNonFinite

pytestmark = pytest.mark.usefixtures("small_network")

WORDS = ("model=tiny", "data=digits", "batch=32", "track=off", "eval=false", "log_every_steps=1", "mixup=0.2")
WORDS += ("optim.lr=0.01", "schedule=constant", "save_every_steps=4", "steps=12")


@pytest.fixture
def trained(run_of, tmp_path):
    """`trained("on_nan.policy=skip", nan=[5])`: the folder of a run with NaN for the loss of step 5, counted from 0."""

    def make(*words, nan=(), times=10**6, out="run"):
        left = dict.fromkeys(nan, times)

        def loss(step):
            left[step] = left.get(step, 0) - 1
            return math.nan if left[step] >= 0 else 1 / (1 + step)

        run = run_of(*WORDS, *words, f"out={tmp_path / out}")
        train(run, Path(run.out), make_step=with_losses(loss))
        return Path(run.out)

    return make


# ------------------------------------------------------------------------------------------------------------------- stop
def test_stop_names_step_checkpoint_and_ways_out(trained, tmp_path):
    with pytest.raises(UserError) as caught:
        trained(nan=[6])
    text = str(caught.value)
    assert text.startswith("step 7: the loss is nan at lr 0.01; the last good checkpoint is ")
    assert f"{tmp_path}/run/checkpoints/step-00000004; lower optim.lr=0.01" in text
    assert text.endswith("or resume this run with on_nan.policy=rollback")


def test_weights_that_are_not_finite_never_become_a_checkpoint_though_the_loss_was(trained, monkeypatch):
    """A learning rate that is no number spoils the update, and the loss of the next step only."""
    plain = schedules.constant
    monkeypatch.setattr(
        schedules, "constant", lambda step, *more: np.where(np.asarray(step) == 7, math.nan, plain(step, *more))
    )
    with pytest.raises(
        UserError, match=r"^step 8: the loss is finite, and the weights after it are not at lr nan; .*04;"
    ):
        trained()


def test_a_run_that_stopped_goes_on_in_its_folder_under_another_policy(trained):
    with pytest.raises(UserError):
        trained(nan=[6])
    out = trained("on_nan.policy=skip", nan=[6])
    assert progress(out).skipped == 1 and rundir.load(out).on_nan.policy.value == "skip"
    assert all(np.isfinite(value).all() for value in tensors(out).values() if value.dtype.kind == "f")


# ------------------------------------------------------------------------------------------------------------------- skip
@pytest.mark.parametrize("more", [(), ("steps_per_loop=3",), ("cluster.gradient_accumulation=2",), ("dtype=fp16",)])
def test_skip_leaves_no_trace_of_a_step_but_its_number(run_of, monkeypatch, more):
    """Weights, velocities and moving statistics after a real step whose images are NaN are those from before it."""
    monkeypatch.setattr(draws, "of_steps", nan_draws([2]))
    step = train_step_of(run_of(*WORDS, "on_nan.policy=skip", *more))

    def values_after(*numbers):
        figures = [step.train(*step.inputs(number, number + 1), tf.constant(0.0))[0].numpy()[0] for number in numbers]
        return figures, {variable.name: variable.numpy() for variable in step.state.variables}

    _, before = values_after(0, 1)
    (figures,), after = values_after(2)
    assert np.isnan(figures).all() and sum("moving" in name for name in before) == 2
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed <= {name for name in before if "scale" in name or "good" in name or "skipped" in name}
    (figures,), later = values_after(3)
    assert np.isfinite(figures).all()
    assert all(not np.array_equal(after[name], later[name]) for name in before if "kernel" in name or "moving" in name)


def test_a_skipped_step_is_counted_and_logged_without_a_loss(trained):
    out = trained("on_nan.policy=skip", nan=[5])
    assert progress(out).skipped == 1
    assert logged(out, "train/skipped") == [(step, int(step >= 6)) for step in range(1, 13)]
    assert [step for step, _ in logged(out, "train/loss")] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert logged(trained(out="plain"), "train/skipped") == []


def test_skip_without_a_nan_is_the_same_training(run_of):
    after = []
    for policy in ("stop", "skip"):
        step = train_step_of(run_of(*WORDS, f"on_nan.policy={policy}"))
        losses = [step.train(*step.inputs(number, number + 1), tf.constant(0.0))[0].numpy() for number in range(4)]
        after.append(
            {"losses": np.array(losses)} | {variable.name: variable.numpy() for variable in step.state.variables}
        )
    assert_same(*after)


def test_skip_counts_over_starts_and_ends_above_the_limit(trained):
    words = ("on_nan.policy=skip", "on_nan.max_skips=2")
    out = trained(*words, "steps=8", nan=[2, 5])
    assert progress(out).skipped == 2
    with pytest.raises(UserError) as caught:
        trained(*words, nan=[2, 5, 9])
    assert str(caught.value).startswith("step 10: loss or gradients not finite, update skipped; 3 in all")
    assert "on_nan.max_skips=2" in str(caught.value) and "on_nan.policy=rollback" in str(caught.value)
    assert progress(trained(*words, "on_nan.max_skips=3", nan=[9])).skipped == 3


def test_skip_refuses_gradients_that_are_not_finite_though_the_loss_is():
    layer = tf.keras.layers.BatchNormalization()
    network = tf.keras.Sequential([tf.keras.layers.Input([2]), layer])
    optimizer = optimizers.build(Sgd(lr=0.1), layer.trainable_weights)
    skip = SkipNonFinite(optimizer, network)

    @tf.function
    def step(gradient, loss):
        before = skip.snapshot()
        layer.moving_mean.assign([7.0, 7.0])
        return skip.apply([gradient, gradient], loss, 0.1, before)

    assert not step(tf.constant([1.0, math.inf]), 1.0) and not step(tf.constant([1.0, 1.0]), math.nan)
    assert layer.gamma.numpy().tolist() == [1, 1] and layer.moving_mean.numpy().tolist() == [0, 0]
    assert not np.any(optimizer.velocity[0].numpy())
    assert step(tf.constant([1.0, 1.0]), 1.0)
    assert layer.gamma.numpy()[0] < 1 and layer.moving_mean.numpy().tolist() == [7, 7]


def test_skip_leaves_gradients_that_overflow_to_the_loss_scale():
    weight = tf.Variable([1.0], name="kernel:0")
    scaled = LossScaleOptimizer(optimizers.build(Sgd(lr=0.1), [weight]))
    skip = SkipNonFinite(scaled, tf.keras.Sequential([tf.keras.layers.Input([1])]))
    assert skip.apply([tf.constant([math.inf])], tf.constant(1.0), 0.1, [])
    assert scaled.skipped.numpy() == 1 and weight.numpy() == 1
    assert not skip.apply([tf.constant([1.0])], tf.constant(math.inf), 0.1, []) and scaled.skipped.numpy() == 1


# --------------------------------------------------------------------------------------------------------------- rollback
def test_rollback_goes_on_from_the_checkpoint_at_a_lower_rate_as_if_that_had_been_the_schedule(
    trained, monkeypatch, capsys
):
    """Against a run without a NaN whose schedule is lower from the checkpoint on."""
    out = trained("on_nan.policy=rollback", "on_nan.lr_factor=0.25", nan=[6], times=1, out="nan")
    text = capsys.readouterr().out
    assert "step 7: the loss is nan; back at step 4, with 0.25 times the learning rate" in text
    assert "(on_nan.policy=rollback, 1 of at most 3)" in text
    plain = schedules.constant
    monkeypatch.setattr(
        schedules, "constant", lambda step, *more: plain(step, *more) * np.where(np.asarray(step) >= 4, 0.25, 1.0)
    )
    assert_same(tensors(trained(out="lower")), tensors(out))
    assert [rate for step, rate in logged(out, "train/lr") if step > 4][-8:] == [pytest.approx(0.0025)] * 8
    assert logged(out, "train/rollbacks") == [(4, 1)] and logged(out, "train/lr_scale") == [(4, 0.25)]
    assert (progress(out).rollbacks, progress(out).lr_scale) == (1, 0.25)


def test_rollback_before_the_first_checkpoint_goes_back_to_the_very_beginning(run_of):
    """Real steps at a learning rate that makes the loss infinite at once."""
    run = run_of(*WORDS, "on_nan.policy=rollback", "on_nan.lr_factor=1e-32", "optim.lr=1e30")
    train(run, Path(run.out))
    assert logged(run.out, "train/rollbacks") == [(0, 1)]
    assert progress(run.out).lr_scale == 1e-32 and logged(run.out, "train/loss")[-1][0] == 12


def test_a_run_that_rolled_back_and_was_killed_goes_on_at_the_lower_rate(trained, monkeypatch):
    words = ("on_nan.policy=rollback",)
    whole = trained(*words, nan=[6], times=1, out="whole")

    class Killed(Exception):
        pass

    plain = NanHandler.roll_back

    def killed(self, error, checkpoints):
        plain(self, error, checkpoints)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(NanHandler, "roll_back", killed)
        with pytest.raises(Killed):
            trained(*words, nan=[6], out="killed")
    assert progress(trained(*words, out="killed")).lr_scale == 0.5
    assert_same(tensors(whole), tensors(whole.with_name("killed")))


def test_rollbacks_are_used_up_and_that_is_said(trained):
    with pytest.raises(UserError) as caught:
        trained("on_nan.policy=rollback", "on_nan.max_rollbacks=2", nan=[6])
    text = str(caught.value)
    assert text.startswith("step 7: the loss is nan at lr 0.0025; ")
    assert text.endswith("or resume this run with on_nan.max_rollbacks=4, after 2 rollbacks")
    saved = trained("on_nan.policy=rollback", "on_nan.max_rollbacks=4", nan=[6], times=1)
    assert progress(saved).rollbacks == 3 and progress(saved).lr_scale == 0.125
