"""The range test: its rule on curves whose answer is known, and the command on real steps."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet import UserError
from resnet.rundir import result
from resnet.training import checkpoint, lr_find
from resnet.training.loop import train

TINY = ("model=tiny", "batch=32", "track=off")


class Heard:
    """Stands in for a tracker and a display."""

    def __init__(self):
        self.logged, self.files, self.said, self.moved = [], [], [], []
        self.say, self.move = self.said.append, self.moved.append
        self.artifact = self.files.append

    def log(self, step, metrics):
        self.logged.append((step, metrics))


# ----------------------------------------------------------------------------------------------------------- the rule
def quadratic(curvature, lrs):
    """Losses of gradient descent on curvature / 2 * w^2, a step at each rate."""
    w, losses = 1.0, []
    for lr in lrs:
        losses.append(0.5 * curvature * w * w)
        w -= lr * curvature * w
    return losses


def suggested(rates, losses):
    """What the rule says of a curve."""
    return lr_find.peak(rates, losses).suggested


def test_the_rates_grow_by_the_same_factor():
    rates = lr_find.rates(1e-4, 10, 101)
    np.testing.assert_allclose(rates[[0, 20, 40, 100]], [1e-4, 1e-3, 1e-2, 10])
    np.testing.assert_allclose(rates[1:] / rates[:-1], 10**0.05)


@pytest.mark.parametrize("curvature", [0.3, 1.0, 8.0])
def test_on_a_quadratic_the_loss_falls_steepest_where_calculus_says(curvature):
    """L(s) = exp(-2 h lr / ln r) along s = ln lr, r the factor of a step: steepest where 2 h lr / ln r = 1."""
    rates = lr_find.rates(1e-4, 10, 400)
    factor = rates[1] / rates[0]
    found = lr_find.peak(rates, quadratic(curvature, rates))
    assert found.steepest == pytest.approx(math.log(factor) / (2 * curvature), rel=1.05 * (factor - 1))
    assert found.suggested == found.steepest


@pytest.mark.parametrize("steps", [10, 16, 20])
def test_on_a_quadratic_a_tenth_of_where_gradient_descent_diverges_is_the_most(steps):
    """It diverges from 2 / h on; in so coarse steps the loss would fall steepest above a tenth of that."""
    rates = lr_find.rates(1e-3, 10, steps)
    factor = rates[1] / rates[0]
    found = lr_find.peak(rates, quadratic(1.0, rates))
    assert 2 <= found.least <= 2 * factor
    assert found.steepest > found.suggested == pytest.approx(0.1 * found.least)


def test_a_tenth_of_the_rate_of_the_least_loss_is_the_most():
    rates = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0])
    assert suggested(rates, [3.0, 3.0, 1.0, 0.9, 0.8, 5.0]) == pytest.approx(0.01)  # falls steepest early
    assert suggested(rates, [3.0, 2.9, 2.8, 2.7, 1.7, 0.1]) == pytest.approx(1.0)  # and late: 10 is the least


def test_the_first_steps_whose_average_is_of_few_losses_do_not_count():
    rates = lr_find.rates(1e-3, 10, 41)
    losses = 2 - 1 / (1 + np.exp(-4 * np.log(rates / 0.05)))  # falls from 2 to 1, steepest at 0.05
    losses[0] += 5
    assert suggested(rates, losses) == pytest.approx(0.05, rel=0.26)


@pytest.mark.parametrize("losses", [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [math.nan] * 3, [1.0, math.inf, math.nan], []])
def test_nothing_is_suggested_where_the_loss_never_falls(losses):
    assert lr_find.peak([0.1, 0.2, 0.3][: len(losses)], losses) is None


def test_losses_that_are_not_finite_do_not_count():
    assert suggested([0.01, 0.1, 1.0, 10.0], [2.0, 1.0, 0.9, math.nan]) == pytest.approx(0.1)


# ------------------------------------------------------------------------------------------------------------ the steps
def test_the_losses_are_averaged_with_weights_that_fall_by_a_tenth():
    losses = [2.0, 3.0, 1.0, 1.5]
    seen = []
    curve = lr_find.explore(lambda number, _lr: losses[number], [0.1, 0.2, 0.4, 0.8], lambda c: seen.append(len(c.lrs)))
    for end in range(1, 5):
        weights = [0.9 ** (end - 1 - at) for at in range(end)]
        assert curve.smoothed[end - 1] == pytest.approx(np.average(losses[:end], weights=weights))
    assert (curve.lrs, curve.losses, seen) == ([0.1, 0.2, 0.4, 0.8], losses, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        ([1.0, 1.0, 6.0, 40.0, 1.0], 4),  # averages 1, 1, 2.8, 13.6: above 4 times the least
        ([1.0, 1.0, math.nan, 1.0], 3),
        ([math.inf, 1.0], 1),
        ([1.0, 2.0, 3.0], 3),
    ],
)
def test_it_stops_when_the_loss_is_lost(losses, steps):
    curve = lr_find.explore(lambda number, _lr: losses[number], range(1, len(losses) + 1), lambda _curve: None)
    assert len(curve.losses) == steps


def test_what_it_saw_is_left_as_a_table_and_a_picture_and_logged(run_of, tmp_path):
    heard, run = Heard(), run_of(*TINY, "lr_find=true", "lr_find_start=0.01", "lr_find_end=10")
    rates = lr_find.rates(0.01, 10, 30)
    losses = [*np.linspace(2.3, 1.0, 20), *[2.0] * 5, math.nan, *[0.0] * 4]
    made = lr_find.run(run, tmp_path, lambda number, _lr: float(losses[number]), 30, heard, heard)
    assert (made["status"], made["steps"], made["out"]) == ("lr_find", 26, run.out)
    assert made["suggested_lr"] == min(made["steepest_lr"], made["least_loss_lr"] / 10)
    assert heard.moved == list(range(1, 27)) and [step for step, _ in heard.logged] == heard.moved
    assert {name for _, metrics in heard.logged for name in metrics} == {
        "lr_find/lr",
        "lr_find/loss",
        "lr_find/smoothed_loss",
    }
    assert heard.files == [tmp_path / "lr_find.csv", tmp_path / "lr_find.png"]
    with (tmp_path / "lr_find.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(26))
    np.testing.assert_allclose([float(row["lr"]) for row in rows], rates[:26])
    np.testing.assert_allclose([float(row["loss"]) for row in rows], losses[:26])
    picture = np.asarray(Image.open(tmp_path / "lr_find.png").convert("RGB")).astype(int)
    red, green, blue = np.moveaxis(picture, -1, 0)
    assert picture.shape == (600, 960, 3)
    assert ((red > green + 100) & (red > blue + 100)).sum() > 100  # the suggestion
    assert ((blue > red + 80) & (green > red + 40)).sum() > 100  # the curve
    said = lr_find.told(made)
    assert f"optim.lr={made['suggested_lr']:.3g} " in said and str(Path(run.out) / "lr_find.png") in said


def test_a_loss_that_never_falls_is_told_by_the_knob_and_leaves_the_curve(run_of, tmp_path):
    heard = Heard()
    with pytest.raises(UserError, match=r"^lr_find_start=0\.0001: the loss fell at no rate .*; give a lower one"):
        lr_find.run(run_of(*TINY, "lr_find=true"), tmp_path, lambda number, _lr: 1.0 + number, 44, heard, heard)
    assert (tmp_path / "lr_find.csv").exists() and (tmp_path / "lr_find.png").exists()


# ------------------------------------------------------------------------------------------------------------ for real
def rows(out):
    with (Path(out) / "lr_find.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_real_steps_give_a_curve_and_a_sane_peak_and_keep_nothing(run_of):
    run = run_of(*TINY, "lr_find=true")
    made = train(run, Path(run.out))
    seen = rows(run.out)
    assert made == result.read(Path(run.out))
    assert made["status"] == "lr_find" and made["steps"] == len(seen) <= 100
    assert seen[0]["lr"] == pytest.approx(1e-4) and seen[0]["loss"] == pytest.approx(math.log(10), abs=0.5)
    assert seen[-1]["smoothed_loss"] > 1.2 * seen[0]["smoothed_loss"]  # lr 10 is too much
    assert 1e-3 < made["suggested_lr"] < 0.1
    assert checkpoint.list_checkpoints(Path(run.out)) == []
    logged = [json.loads(line) for line in (Path(run.out) / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr_find/loss"] for line in logged if "lr_find/loss" in line] == [row["loss"] for row in seen]
    with pytest.raises(UserError, match=r"another run lies here .*lr_find was True and is False.*give another out="):
        train(run_of(*TINY), Path(run.out))


@pytest.mark.usefixtures("small_network")
def test_its_steps_are_those_of_a_training(run_of, tmp_path):
    """A test at one rate throughout is a training at that rate."""
    common = (*TINY, "mixup=0.2", "steps_per_loop=3", "log_every_steps=1")
    run = run_of(
        *common,
        f"out={tmp_path}/test",
        "lr_find=true",
        "lr_find_start=0.01",
        "lr_find_end=0.0100001",
        "lr_find_steps=20",
    )
    train(run, Path(run.out))
    plain = run_of(
        *common,
        f"out={tmp_path}/plain",
        "schedule=constant",
        "optim.lr=0.01",
        "steps=20",
        "eval=false",
        "steps_per_loop=1",
    )
    train(plain, Path(plain.out))
    logged = [json.loads(line) for line in (Path(plain.out) / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in logged if "train/loss" in line]
    assert len(losses) == 20
    # Later ones drift apart: float32 rounds the two graphs differently, and the network feeds it back.
    np.testing.assert_allclose([row["loss"] for row in rows(run.out)][:10], losses[:10], rtol=1e-4)


def command(folder, *words):
    argv = [sys.executable, "-m", "resnet.train", "lr_find=true", *TINY, *words]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_command_suggests_a_peak_and_again_without_another_test(tmp_path):
    done = command(tmp_path, "out=here", "lr_find_steps=20")
    assert done.returncode == 0, done.stderr
    assert "range test: 20 steps, lr 0.0001 to 10" in done.stdout and "suggested peak: optim.lr=" in done.stdout
    before = (tmp_path / "here" / "lr_find.csv").read_bytes()
    again = command(tmp_path, "out=here", "lr_find_steps=20")
    assert again.returncode == 0 and "has finished already" in again.stdout
    assert again.stdout.splitlines()[-2:] == done.stdout.splitlines()[-2:]
    assert (tmp_path / "here" / "lr_find.csv").read_bytes() == before


@pytest.mark.slow
def test_two_ranks_see_the_curve_of_one(tmp_path):
    for name, words in (("one", ()), ("two", ("cluster=cpu2", "cluster.sync_batch_norm=true"))):
        done = command(tmp_path, f"out={name}", "data.flip=false", "lr_find_end=0.1", "lr_find_steps=20", *words)
        assert done.returncode == 0, done.stderr
    one, two = (rows(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose([row["loss"] for row in two], [row["loss"] for row in one], rtol=0.02)
