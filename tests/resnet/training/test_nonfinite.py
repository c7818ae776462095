"""on_nan: a NaN put into a step's images, its gradients or its learning rate, and what each policy makes of it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from resnet import UserError, rundir
from resnet.config.optim import Sgd
from resnet.data import augment
from resnet.model import resnet
from resnet.optim import optimizers
from resnet.optim import schedule as schedules
from resnet.optim.loss_scale import LossScaleOptimizer, Skipping
from resnet.training import checkpoint, nonfinite, state
from resnet.training.loop import train

pytestmark = pytest.mark.timeout(900)  # two ranks wait for each other, on a machine that may be busy

WORDS = (
    "model=tiny",
    "data=digits",
    "batch=32",
    "track=off",
    "eval=false",
    "log_every_steps=1",
    "mixup=0.2",
    "optim.lr=0.01",
    "schedule=constant",
    "save_every_steps=4",
    "steps=12",
)


def lines(out, name):
    """(step, value) of every line of metrics.jsonl that has it."""
    told = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in told if name in line]


def weights(out, step=None):
    """Every number of a checkpoint, the newest unless `step` is named."""
    path = checkpoint.path_of(Path(out), step) if step is not None else checkpoint.list_checkpoints(Path(out))[-1].path
    reader = tf.train.load_checkpoint(str(path / "weights"))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in n}


def standing(out):
    return state.Progress(**checkpoint.list_checkpoints(Path(out))[-1].state)


def poison(steps, times=10**6):
    """`augment.mix_ratios` with a NaN at these steps, so many times: it multiplies every pixel of the batch."""
    plain, left = augment.mix_ratios, dict.fromkeys(steps, times)

    def mixed(alpha, seed, asked):
        ratios = np.array(plain(alpha, seed, asked))
        for place, step in enumerate(asked):
            if left.get(step, 0) > 0:
                left[step] -= 1
                ratios[place] = math.nan
        return ratios

    return mixed


def small(_model, classes, policy, norm, _amx):
    """In place of `model.build`: as little as has batch norm; building the graph is most of what a test here takes."""
    layers = tf.keras.layers
    images = layers.Input([None, None, 3])
    x = layers.Conv2D(4, 3, 4, use_bias=False, dtype=policy, name="conv1")(images)
    x = layers.ReLU(dtype=policy)(norm(dtype=policy, name="bn1")(x))
    pooled = layers.GlobalAveragePooling2D(dtype="float32")(x)
    return tf.keras.Model(images, layers.Dense(classes, dtype="float32", name="fc")(pooled))


@pytest.fixture
def trained(run_at, tmp_path, monkeypatch):
    """`trained("on_nan.policy=skip", nan=[5])`: the folder of a run whose step 5, counted from 0, has a NaN in every image."""

    def make(*words, nan=(), times=10**6, out="run"):
        run = run_at(tmp_path, *WORDS, *words, f"out={tmp_path / out}")
        with monkeypatch.context() as patch:
            patch.setattr(augment, "mix_ratios", poison(nan, times))
            patch.setattr(resnet, "build", small)
            train(run, Path(run.out))
        return Path(run.out)

    return make


# ------------------------------------------------------------------------------------------------------------------- stop
def test_stop_names_step_checkpoint_and_ways_out(trained, tmp_path):
    with pytest.raises(UserError) as caught:
        trained(nan=[6])
    said = str(caught.value)
    assert said.startswith("step 7: the loss is nan at lr 0.01; the last good checkpoint is ")
    assert f"{tmp_path}/run/checkpoints/step-00000004; lower optim.lr=0.01" in said
    assert said.endswith("or go on in this one with on_nan.policy=rollback")


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
    assert standing(out).skipped == 1 and rundir.load(out).on_nan.policy.value == "skip"
    assert all(np.isfinite(value).all() for value in weights(out).values() if value.dtype.kind == "f")


# ------------------------------------------------------------------------------------------------------------------- skip
@pytest.mark.parametrize("more", [(), ("steps_per_loop=3",), ("cluster.gradient_accumulation=2",), ("dtype=fp16",)])
def test_skip_leaves_no_trace_of_a_step_but_its_number(trained, more):
    """The last step is the one to skip: the weights, velocities and moving statistics are those from before it."""
    out = trained("on_nan.policy=skip", "keep_checkpoints=9", "save_every_steps=1", *more, nan=[5], out="nan")
    before, after = weights(out, 5), weights(out, 6)
    assert before.keys() == after.keys() and sum("moving" in name for name in before) == 2
    same = [name for name in before if np.array_equal(before[name], after[name])]
    assert {name for name in before if name not in same} <= {
        n for n in before if "scale" in n or "good" in n or "skipped" in n
    }
    assert any(not np.array_equal(after[name], value) for name, value in weights(out, 7).items())
    assert standing(out).skipped == 1
    assert [value for _, value in lines(out, "train/skipped")][-1] == 1
    assert all(step != 6 for step, _ in lines(out, "train/loss"))


def test_skip_without_a_nan_is_the_same_training(trained):
    plain, skipping = trained(out="plain"), trained("on_nan.policy=skip", out="skipping")
    for name, value in weights(plain).items():
        assert np.array_equal(value, weights(skipping)[name]), name
    assert lines(skipping, "train/skipped")[-1] == (12, 0) and lines(plain, "train/skipped") == []


def test_skip_counts_over_starts_and_ends_above_the_limit(trained):
    words = ("on_nan.policy=skip", "on_nan.max_skips=2")
    out = trained(*words, "steps=8", nan=[2, 5])
    assert standing(out).skipped == 2
    with pytest.raises(UserError) as caught:
        trained(*words, nan=[2, 5, 9])
    assert str(caught.value).startswith("step 10: loss or gradients not finite, update left out; 3 in all")
    assert "on_nan.max_skips=2" in str(caught.value) and "on_nan.policy=rollback" in str(caught.value)
    assert standing(trained(*words, "on_nan.max_skips=3", nan=[9])).skipped == 3


def test_skip_refuses_gradients_that_are_not_finite_though_the_loss_is():
    layer = tf.keras.layers.BatchNormalization()
    network = tf.keras.Sequential([tf.keras.layers.Input([2]), layer])
    optimizer = optimizers.build(Sgd(lr=0.1), layer.trainable_weights)
    skipping = Skipping(optimizer, network)

    @tf.function
    def step(gradient, loss):
        before = skipping.before()
        layer.moving_mean.assign([7.0, 7.0])
        return skipping.apply([gradient, gradient], loss, 0.1, before)

    assert not step(tf.constant([1.0, math.inf]), 1.0) and not step(tf.constant([1.0, 1.0]), math.nan)
    assert layer.gamma.numpy().tolist() == [1, 1] and layer.moving_mean.numpy().tolist() == [0, 0]
    assert not np.any(optimizer.velocity[0].numpy())
    assert step(tf.constant([1.0, 1.0]), 1.0)
    assert layer.gamma.numpy()[0] < 1 and layer.moving_mean.numpy().tolist() == [7, 7]


def test_skip_leaves_gradients_that_overflow_to_the_loss_scale():
    weight = tf.Variable([1.0], name="kernel:0")
    scaled = LossScaleOptimizer(optimizers.build(Sgd(lr=0.1), [weight]))
    skipping = Skipping(scaled, tf.keras.Sequential([tf.keras.layers.Input([1])]))
    assert skipping.apply([tf.constant([math.inf])], tf.constant(1.0), 0.1, [])
    assert scaled.skipped.numpy() == 1 and weight.numpy() == 1
    assert not skipping.apply([tf.constant([1.0])], tf.constant(math.inf), 0.1, []) and scaled.skipped.numpy() == 1


# --------------------------------------------------------------------------------------------------------------- rollback
def test_rollback_goes_on_from_the_checkpoint_at_a_lower_rate_as_if_that_had_been_the_schedule(
    trained, monkeypatch, capsys
):
    """Against a run without a NaN whose schedule is lower from the checkpoint on."""
    out = trained("on_nan.policy=rollback", "on_nan.lr_factor=0.25", nan=[6], times=1, out="nan")
    said = capsys.readouterr().out
    assert "step 7: the loss is nan; back to step 4, from there on at 0.25 times the learning rate" in said
    assert "(on_nan.policy=rollback, 1 of at most 3)" in said
    plain = schedules.constant
    monkeypatch.setattr(
        schedules, "constant", lambda step, *more: plain(step, *more) * np.where(np.asarray(step) >= 4, 0.25, 1.0)
    )
    lower = trained(out="lower")
    for name, value in weights(lower).items():
        assert np.array_equal(value, weights(out)[name]), name
    assert [rate for step, rate in lines(out, "train/lr") if step > 4][-8:] == [pytest.approx(0.0025)] * 8
    assert lines(out, "train/rollbacks") == [(4, 1)] and lines(out, "train/lr_scale") == [(4, 0.25)]
    assert (standing(out).rollbacks, standing(out).lr_scale) == (1, 0.25)


def test_rollback_before_the_first_checkpoint_goes_back_to_the_very_beginning(trained):
    """A learning rate under which the loss is lost at once, as it happens in life; no NaN is put in."""
    out = trained("on_nan.policy=rollback", "on_nan.lr_factor=1e-32", "optim.lr=1e30")
    assert lines(out, "train/rollbacks") == [(0, 1)]
    assert standing(out).lr_scale == 1e-32 and lines(out, "train/loss")[-1][0] == 12


def test_a_run_that_rolled_back_and_was_killed_goes_on_at_the_lower_rate(trained, monkeypatch):
    words = ("on_nan.policy=rollback",)
    whole = trained(*words, nan=[6], times=1, out="whole")

    class Killed(Exception):
        pass

    plain = nonfinite.Recovery.back

    def killed(self, error, standing):
        plain(self, error, standing)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(nonfinite.Recovery, "back", killed)
        with pytest.raises(Killed):
            trained(*words, nan=[6], out="killed")
    assert standing(trained(*words, out="killed")).lr_scale == 0.5
    for name, value in weights(whole).items():
        assert np.array_equal(value, weights(whole.with_name("killed"))[name]), name


def test_rollbacks_are_used_up_and_that_is_said(trained):
    with pytest.raises(UserError) as caught:
        trained("on_nan.policy=rollback", "on_nan.max_rollbacks=2", nan=[6])
    said = str(caught.value)
    assert said.startswith("step 7: the loss is nan at lr 0.0025; ")
    assert said.endswith("or go on in this one with on_nan.max_rollbacks=4, for there were 2")
    saved = trained("on_nan.policy=rollback", "on_nan.max_rollbacks=4", nan=[6], times=1)
    assert standing(saved).rollbacks == 3 and standing(saved).lr_scale == 0.125


# --------------------------------------------------------------------------------------------------------------- two ranks
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_recovery import poison, small
from resnet import UserError, augment, model, roster, run_folder, train
model.build = small
plain = augment.mix_ratios
for out in map(Path, sys.argv[1:]):
    augment.mix_ratios = poison([6] if roster.number() == 1 else [], 1)
    try:
        train.train(run_folder.load(out), out)
    except UserError as error:
        (out / f"said-{{roster.number()}}").write_text(str(error))
    augment.mix_ratios = plain
"""


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory, run_at):
    """The folder of a run on two ranks by its policy; the NaN is in the images of rank 1 alone."""
    top, outs = tmp_path_factory.mktemp("ranks"), {}
    for policy in ("stop", "skip", "rollback"):
        out = outs[policy] = top / policy
        run = run_at(
            top,
            *WORDS,
            f"on_nan.policy={policy}",
            "cluster.ranks=2",
            "save_every_steps=1",
            "keep_checkpoints=20",
            f"out={out}",
        )
        rundir.save(run, out)
    (top / "program.py").write_text(PROGRAM.format(tests=str(Path(__file__).parent)))
    horovodrun = Path(sys.executable).parent / "horovodrun"
    environment = {**os.environ, "PATH": f"{horovodrun.parent}:{os.environ['PATH']}"}
    words = [sys.executable, horovodrun, "-np", "2", "--gloo", sys.executable, top / "program.py", *outs.values()]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return outs


def test_two_ranks_stop_alike(on_two_ranks):
    said = {(on_two_ranks["stop"] / f"said-{rank}").read_text() for rank in (0, 1)}
    assert len(said) == 1 and said.pop().startswith("step 7: the loss is nan at lr 0.01; the last good checkpoint is ")
    assert checkpoint.list_checkpoints(on_two_ranks["stop"])[-1].step == 6


def test_two_ranks_skip_alike_though_only_one_has_the_nan(on_two_ranks):
    out = on_two_ranks["skip"]
    assert not list(out.glob("said-*")) and standing(out).skipped == 1
    before, after = weights(out, 6), weights(out, 7)
    for name, value in before.items():
        assert np.array_equal(value, after[name]), name
    assert all(np.isfinite(value).all() for value in weights(out, 12).values() if value.dtype.kind == "f")


def test_two_ranks_go_back_together(on_two_ranks):
    out = on_two_ranks["rollback"]
    assert not list(out.glob("said-*"))
    assert lines(out, "train/rollbacks") == [(6, 1)] and standing(out).lr_scale == 0.5
    assert checkpoint.list_checkpoints(out)[-1].step == 12
