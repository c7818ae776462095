"""Averaged weights: against their formula in NumPy, in runs whose every step is kept."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fake_step import FakeStep
from run_files import assert_same, lines, logged, tensors
from safetensors.numpy import save_file

from resnet import UserError
from resnet.model import resnet, weights
from resnet.optim import schedule
from resnet.optim.ema import Ema
from resnet.training import checkpoint, state
from resnet.training.evaluation import EvalResult
from resnet.training.loop import train
from resnet.training.trained import read as read_weights

DECAY, EVERY, STEPS = 0.3, 2, 9  # (1 + 2) / (10 + 2) is below 0.3, (1 + 4) / (10 + 4) above it
COMMON = ("model=tiny", "batch=32", "track=off", "schedule=constant", "optim.lr=0.1", "eval=false")
EPOCHS = ("model=tiny", "batch=96", "track=off", "schedule=constant", "optim.lr=0.2", "epochs=2", "ema.decay=0.9")
AVERAGED = (*COMMON, f"ema.decay={DECAY}", f"ema.every_steps={EVERY}")


def decay(step, per_step=DECAY, every=EVERY):
    """That of the update after `step` steps."""
    return min(per_step, (1 + step) / (10 + step)) ** every


def started(run):
    """Train `run` as `python -m resnet.train` would."""
    return train(run, Path(run.out))


@pytest.fixture(scope="module", autouse=True)
def built(small_build):
    """The network of every run here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "build", small_build)
        yield small_build


@pytest.fixture(scope="module")
def first_weights(tmp_path_factory, built):
    """A file of weights to start from, batch norm's statistics as odd as the rest: (path, tensors)."""
    random = np.random.default_rng(5)
    drawn = weights.export_from(built(None, 10, "float32"))
    for name, tensor in drawn.items():
        low, high = (0.5, 1.5) if name.endswith("running_var") else (-0.5, 0.5)
        drawn[name] = random.uniform(low, high, tensor.shape).astype(np.float32)
    path = tmp_path_factory.mktemp("first") / "first.safetensors"
    save_file(drawn, path)
    return path, drawn


@pytest.fixture(scope="module")
def whole(run_at, tmp_path_factory, first_weights):
    """An unbroken run with a checkpoint after every step: its folder."""
    words = ("save_every_steps=1", "keep_checkpoints=99", "log_every_steps=1", f"init={first_weights[0]}")
    run = run_at(tmp_path_factory.mktemp("whole"), *AVERAGED, *words, f"steps={STEPS}")
    started(run)
    return Path(run.out)


# ------------------------------------------------------------------------------------------------------------- the formula
def test_the_average_is_the_loop_over_its_formula():
    network, mean = (resnet.build(None, 3, "float32") for _ in range(2))
    random = np.random.default_rng(1)
    average = Ema(network, mean)

    def drawn():
        for variable in network.weights:
            variable.assign(random.normal(0, 1, variable.shape))
        return [variable.numpy().astype(np.float64) for variable in network.weights]

    wanted = drawn()
    average.start()
    for done in (3, 6, 9, 30, 3000):
        now = drawn()
        share = decay(done, 0.9, 3)
        average.update(tf.constant(schedule.ema_decay(0.9, 3, done), tf.float32))
        wanted = [share * old + (1 - share) * new for old, new in zip(wanted, now, strict=True)]
        for variable, value in zip(mean.weights, wanted, strict=True):
            np.testing.assert_allclose(variable.numpy(), value, atol=1e-6, err_msg=variable.name)
        for variable, new in zip(network.weights, now, strict=True):
            assert np.array_equal(variable.numpy(), new.astype(np.float32))  # only followed, never touched
    assert any("moving_variance" in variable.name for variable in mean.weights)


def test_the_average_of_a_run_is_the_loop_over_its_checkpoints(whole, first_weights):
    same = read_weights(str(whole / "checkpoints" / "step-00000001"))  # the averaged ones, before their first update
    assert same.keys() == first_weights[1].keys()
    for name, tensor in first_weights[1].items():
        assert np.array_equal(same[name], tensor), name
    wanted = tensors(whole, 1, "average")
    updates = 0
    for done in range(2, STEPS + 1):
        now, found = tensors(whole, done, "network"), tensors(whole, done, "average")
        assert now.keys() == found.keys() and any("moving_mean" in name for name in found)
        if done % EVERY == 0:
            share, updates = decay(done), updates + 1
            wanted = {name: share * old.astype(np.float64) + (1 - share) * now[name] for name, old in wanted.items()}
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{done} {name}")
    assert updates == 4
    assert any(not np.allclose(found[name], now[name], atol=1e-3) for name in found)  # an average, not a copy


def test_a_half_life_is_the_decay_that_halves_a_share_in_so_many_steps(run_of):
    per_step = run_of("ema.half_life_steps=50").ema.per_step
    assert per_step == pytest.approx(0.5 ** (1 / 50), rel=1e-12)
    assert per_step**50 == pytest.approx(0.5)
    assert run_of("ema.decay=0.998").ema.per_step == 0.998
    assert not run_of().ema.on


def test_a_half_life_and_a_decay_at_once_are_refused(run_of):
    with pytest.raises(
        UserError, match=r"^ema.decay=0.9: ema.half_life_steps=50.0 says it already; give one of the two$"
    ):
        run_of("ema.decay=0.9", "ema.half_life_steps=50")


# ----------------------------------------------------------------------------------------------- what does not change it
def test_the_weights_that_are_averaged_are_those_of_a_run_without_an_average(run_of, whole, first_weights):
    run = run_of(*COMMON, f"init={first_weights[0]}", f"steps={STEPS}")
    started(run)
    assert_same(tensors(run.out, STEPS, "network"), tensors(whole, STEPS, "network"))
    assert_same(tensors(run.out, STEPS, "optimizer"), tensors(whole, STEPS, "optimizer"))
    assert tensors(run.out, STEPS, "average") == {}


def test_going_on_gives_the_average_of_a_run_never_stopped(run_of, whole, first_weights):
    for steps in (5, STEPS):  # between two updates, and at the end
        run = run_of(*AVERAGED, f"init={first_weights[0]}", f"steps={steps}")
        started(run)
    for part in ("network", "average", "optimizer"):
        assert_same(tensors(run.out, STEPS, part), tensors(whole, STEPS, part))


def test_several_steps_in_one_graph_call_do_not_change_the_average(run_of, whole, first_weights):
    run = run_of(*AVERAGED, f"init={first_weights[0]}", f"steps={STEPS}", "steps_per_loop=5")
    started(run)
    found, wanted = (tensors(out, STEPS, "average") for out in (run.out, whole))
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


# ------------------------------------------------------------------------------------------------------------------ scores
@pytest.fixture(scope="module")
def evaluated(run_at, tmp_path_factory):
    """An epoch, evaluated at three places: (run, its result, the lines of metrics.jsonl that evaluations wrote)."""
    run = run_at(
        tmp_path_factory.mktemp("evaluated"), *EPOCHS, "eval_every_epochs=0.35", "steps=14", "keep_checkpoints=9"
    )
    made = started(run)
    return run, made, [line for line in lines(run.out) if "eval/top1" in line]


def test_every_evaluation_is_of_both_and_the_averaged_weights_count(evaluated):
    run, made, logs = evaluated
    assert [line["step"] for line in logs] == [5, 10, 14]
    kinds = [{line[f"{kind}/{name}"] for line in logs} for kind in ("eval", "ema") for name in ("top1", "top5", "loss")]
    assert all(len(values) > 1 for values in kinds)
    assert any(line["eval/top1"] != line["ema/top1"] for line in logs)
    bests = np.maximum.accumulate([line["ema/top1"] for line in logs])
    assert [line["best/top1"] for line in logs] == list(bests)
    assert made["best/top1"] == bests[-1]
    assert made["final/top1"] == made["ema/top1"] == logs[-1]["ema/top1"]
    assert made["eval/top1"] == logs[-1]["eval/top1"]
    for name in ("top5", "loss"):
        assert made[f"ema/{name}"] == logs[-1][f"ema/{name}"]
    saved = {one.step: one.top1 for one in checkpoint.list_checkpoints(Path(run.out))}
    assert {line["step"]: line["ema/top1"] for line in logs}.items() <= saved.items()
    assert [top1 for _, top1 in logged(run.out, "final/top1")] == [made["final/top1"]]


@pytest.mark.parametrize(("raw", "averaged", "stops"), [(0.9, 0.5, False), (0.5, 0.9, True)])
def test_the_averaged_weights_decide_where_to_stop(evaluated, run_at, tmp_path, raw, averaged, stops):
    """The same folder, with an evaluation of these results at its end."""
    before = evaluated[0]
    shutil.copytree(before.out, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000014" / "commit.json"
    commit = json.loads(newest.read_text())
    of = {"top5": 1.0, "loss": 1.0, "seen": 360}
    commit["state"] |= {"scores": {"top1": raw, **of}, "averaged": {"top1": averaged, **of}, "scored_at": 14}
    newest.write_text(checkpoint.commit_text(commit))
    progress = state.Progress().record_evaluation(14, EvalResult(raw, 1, 1, 360), EvalResult(averaged, 1, 1, 360))
    assert progress.reached(0.7, 14) is stops and progress.best_top1 == averaged
    run = run_at(tmp_path, *EPOCHS, "steps=15", "eval_steps=1", "stop_at_top1=0.7")
    made = train(run, tmp_path / "run", make_step=FakeStep)
    assert made["steps"] == (14 if stops else 15)
    assert made["status"] == ("stopped at top-1" if stops else "finished")
