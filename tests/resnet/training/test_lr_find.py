"""The range test: its rule on curves whose answer is known, and the command on real steps."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_network
from fake_step import with_losses
from PIL import Image
from run_files import logged

from resnet import UserError
from resnet.cli import Stopped
from resnet.distributed.ranks import Ranks
from resnet.optim import schedule
from resnet.rundir import result
from resnet.training import checkpoint, lr_find, progress
from resnet.training.loop import train
from resnet.training.signals import Signals

TINY = ("model=tiny", "batch=32", "track=off")


class Log:
    """In place of a RunLog: what it was called with."""

    def __init__(self):
        self.values, self.files, self.lines, self.steps = [], [], [], []
        self.say, self.advance, self.artifact = self.lines.append, self.steps.append, self.files.append
        self.ranks = Ranks()

    def metrics(self, step, values):
        self.values.append((step, values))


def explored(run, out, losses, signals=None):
    """(result, log) of the range test of a run with these losses."""
    nothing = SimpleNamespace(weights=[], trainable_variables=[], state=[])
    state = SimpleNamespace(network=nothing, optimizer=nothing)
    plan, log = schedule.plan(run, 1437), Log()
    step = with_losses(losses)(run, plan, None, state, log.ranks)
    watchdog = SimpleNamespace(reset=lambda: None)
    return lr_find.run(run, out, step, plan, signals or Signals(), watchdog, log), log


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
    best = lr_find.peak(rates, quadratic(curvature, rates))
    assert best.steepest == pytest.approx(math.log(factor) / (2 * curvature), rel=1.05 * (factor - 1))
    assert best.suggested == best.steepest


@pytest.mark.parametrize("steps", [10, 16, 20])
def test_on_a_quadratic_a_tenth_of_where_gradient_descent_diverges_is_the_most(steps):
    """It diverges from 2 / h on; in so coarse steps the loss would fall steepest above a tenth of that."""
    rates = lr_find.rates(1e-3, 10, steps)
    factor = rates[1] / rates[0]
    best = lr_find.peak(rates, quadratic(1.0, rates))
    assert 2 <= best.least <= 2 * factor
    assert best.steepest > best.suggested == pytest.approx(0.1 * best.least)


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
    reports = []
    curve = lr_find.explore(
        lambda number, _lr: losses[number], [0.1, 0.2, 0.4, 0.8], lambda c: reports.append(len(c.lrs))
    )
    for end in range(1, 5):
        weights = [0.9 ** (end - 1 - at) for at in range(end)]
        assert curve.smoothed[end - 1] == pytest.approx(np.average(losses[:end], weights=weights))
    assert (curve.lrs, curve.losses, reports) == ([0.1, 0.2, 0.4, 0.8], losses, [1, 2, 3, 4])


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


def test_the_curve_is_written_as_a_table_and_a_plot_and_logged(run_of, tmp_path):
    words = ("lr_find=true", "lr_find_start=0.01", "lr_find_end=10", "lr_find_steps=30")
    run = run_of(*TINY, *words)
    rates = lr_find.rates(0.01, 10, 30)
    losses = np.float32([*np.linspace(2.3, 1.0, 20), *[2.0] * 5, math.nan, *[0.0] * 4]).tolist()
    made, log = explored(run, tmp_path, losses)
    assert (made["status"], made["steps"], made["out"]) == ("lr_find", 26, run.out)
    assert made["suggested_lr"] == min(made["steepest_lr"], made["least_loss_lr"] / 10)
    assert log.steps == list(range(1, 27)) and [step for step, _ in log.values] == log.steps
    names = {name for _, values in log.values for name in values}
    assert names == {"lr_find/lr", "lr_find/loss", "lr_find/smoothed_loss"}
    assert log.files == [tmp_path / "lr_find.csv", tmp_path / "lr_find.png", tmp_path / "result.json"]
    assert log.lines == ["range test: 30 steps, lr 0.01 to 10; the weights are discarded"]
    table = rows(tmp_path)
    assert [row["step"] for row in table] == list(range(26))
    np.testing.assert_allclose([row["lr"] for row in table], rates[:26])
    np.testing.assert_allclose([row["loss"] for row in table], losses[:26])
    picture = np.asarray(Image.open(tmp_path / "lr_find.png").convert("RGB")).astype(int)
    red, green, blue = np.moveaxis(picture, -1, 0)
    assert picture.shape == (600, 960, 3)
    assert ((red > green + 100) & (red > blue + 100)).sum() > 100  # the suggestion
    assert ((blue > red + 80) & (green > red + 40)).sum() > 100  # the curve


def test_the_suggested_peak_is_reported(run_of, tmp_path, capsys):
    run = run_of(*TINY, "lr_find=true", "lr_find_steps=30")
    made, _ = explored(run, tmp_path, lambda step: 2.0 - 0.1 * step)
    progress.report(made, run)
    text = capsys.readouterr().out
    assert f"optim.lr={made['suggested_lr']:.3g} " in text and str(Path(run.out) / "lr_find.png") in text


def test_a_loss_that_never_falls_is_told_by_the_knob_and_leaves_the_curve(run_of, tmp_path):
    with pytest.raises(UserError, match=r"^lr_find_start=0\.0001: the loss falls at no rate .*; give a lower one"):
        explored(run_of(*TINY, "lr_find=true"), tmp_path, lambda step: 1.0 + step)
    assert (tmp_path / "lr_find.csv").exists() and (tmp_path / "lr_find.png").exists()
    assert result.read(tmp_path) is None


def test_a_signal_ends_it_and_nothing_is_saved(run_of, tmp_path):
    signals = Signals()
    signals.stop = True
    with pytest.raises(Stopped, match="a range test saves nothing; start it again"):
        explored(run_of(*TINY, "lr_find=true"), tmp_path, lambda _step: 1.0, signals)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ for real
def rows(out):
    with (Path(out) / "lr_find.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_real_steps_give_a_curve_and_a_sane_peak_and_keep_nothing(run_of):
    run = run_of(*TINY, "lr_find=true", "lr_find_steps=60")
    made = train(run, Path(run.out))
    table = rows(run.out)
    assert made == result.read(Path(run.out))
    assert made["status"] == "lr_find" and made["steps"] == len(table) <= 60
    assert table[0]["lr"] == pytest.approx(1e-4) and table[0]["loss"] == pytest.approx(math.log(10), abs=0.5)
    assert table[-1]["smoothed_loss"] > 1.2 * table[0]["smoothed_loss"]  # lr 10 is too much
    assert 1e-3 < made["suggested_lr"] < 0.1
    assert checkpoint.list_checkpoints(Path(run.out)) == []
    assert [loss for _, loss in logged(run.out, "lr_find/loss")] == [row["loss"] for row in table]
    with pytest.raises(UserError, match=r"another run is here .*lr_find was True and is False.*give another out="):
        train(run_of(*TINY), Path(run.out))


@pytest.mark.usefixtures("small_network")
def test_its_steps_are_those_of_a_training(run_of, tmp_path):
    """A test at one rate throughout is a training at that rate."""
    common = (*TINY, "mixup=0.2", "steps_per_loop=3", "log_every_steps=1")
    words = ("lr_find=true", "lr_find_start=0.01", "lr_find_end=0.0100001", "lr_find_steps=20")
    run = run_of(*common, f"out={tmp_path}/test", *words)
    train(run, Path(run.out))
    words = ("schedule=constant", "optim.lr=0.01", "steps=20", "eval=false", "steps_per_loop=1")
    plain = run_of(*common, f"out={tmp_path}/plain", *words)
    train(plain, Path(plain.out))
    losses = [loss for _, loss in logged(plain.out, "train/loss")]
    assert len(losses) == 20
    # Later ones drift apart: float32 rounds the two graphs differently, and the network feeds it back.
    np.testing.assert_allclose([row["loss"] for row in rows(run.out)][:10], losses[:10], rtol=1e-4)


def test_the_command_suggests_a_peak_and_again_without_another_test(tmp_path, spawn):
    words = ("lr_find=true", *TINY, "out=here", "lr_find_steps=20")
    done = spawn("resnet.train", *words, cwd=tmp_path, before=small_network.BEFORE).finish()
    assert done.returncode == 0, done.stderr
    assert "range test: 20 steps, lr 0.0001 to 10" in done.stdout and "suggested peak: optim.lr=" in done.stdout
    before = (tmp_path / "here" / "lr_find.csv").read_bytes()
    again = spawn("resnet.train", *words, cwd=tmp_path).finish()
    assert again.returncode == 0 and "has finished already" in again.stdout
    assert again.stdout.splitlines()[-2:] == done.stdout.splitlines()[-2:]
    assert (tmp_path / "here" / "lr_find.csv").read_bytes() == before
