"""What a run reports to whom, and the status in MLflow that its end has."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_step import FakeStep, with_losses

from resnet import UserError
from resnet.cli import Stopped
from resnet.distributed.ranks import Ranks
from resnet.optim import schedule
from resnet.training import mlperf, run_log
from resnet.training.evaluation import EvalResult
from resnet.training.loop import train
from resnet.training.meter import Reading
from resnet.training.run_log import RunLog
from resnet.training.state import Progress

WORDS = ("model=tiny", "data=digits", "batch=32", "track=off", "eval=false", "log_every_steps=1", "steps=3")


class Tracker:
    """In place of the tracker: what it was called with."""

    problem = None

    def __init__(self, *_settings):
        self.values, self.files, self.statuses = [], [], []
        self.artifact = self.files.append

    def log(self, step, values):
        self.values.append((step, values))

    def close(self, status):
        self.statuses.append(status)
        return self.problem


@pytest.fixture
def trackers(monkeypatch):
    """Those of this test's runs."""
    trackers = []

    def new(*settings):
        trackers.append(Tracker(*settings))
        return trackers[-1]

    monkeypatch.setattr(run_log, "Tracker", new)
    monkeypatch.setattr(run_log, "described", lambda _source: {})
    return trackers


@pytest.fixture
def new_log(run_of, tmp_path, trackers):  # noqa: ARG001
    """`new_log(ranks)`: the log of a run at step 2 whose rate was halved; its source has skipped two records."""

    def make(ranks=Ranks(device="test chip")):  # noqa: B008
        run = run_of(*WORDS)
        source = SimpleNamespace(corrupt=lambda: ["record 3", "record 9"], train_images=1437, eval_images=360)
        state = SimpleNamespace(step=2, progress=Progress(lr_scale=0.5))
        mlperf_log = mlperf.Log(run, tmp_path / mlperf.FILE)
        log = RunLog(run, tmp_path, schedule.plan(run, 1437), source, state, ranks, mlperf_log)
        log.start(["a note"], 360)
        return log

    return make


# ----------------------------------------------------------------------------------------------------------------- status
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Stopped("saved"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (UserError("batch=9"), "FAILED"),
        (MemoryError(), "FAILED"),
    ],
)
def test_the_error_that_ends_a_run_decides_its_status(new_log, trackers, error, status):
    with pytest.raises(type(error)), new_log():
        raise error
    assert trackers[0].statuses == [status]


def test_a_run_that_ends_without_one_is_finished_and_what_could_not_be_logged_is_printed(
    new_log, trackers, monkeypatch, capsys
):
    monkeypatch.setattr(Tracker, "problem", "the server is away")
    with new_log():
        pass
    assert trackers[0].statuses == ["FINISHED"]
    assert "the server is away" in capsys.readouterr().out


@pytest.mark.usefixtures("small_network")
def test_a_training_that_fails_is_failed_and_one_that_finishes_is_finished(run_of, trackers):
    run = run_of(*WORDS)
    with pytest.raises(ZeroDivisionError):
        train(run, Path(run.out), make_step=with_losses(lambda step: 1 / (2 - step)))
    train(run, Path(run.out), make_step=FakeStep)
    assert [tracker.statuses for tracker in trackers] == [["FAILED"], ["FINISHED"]]


@pytest.mark.usefixtures("small_network")
def test_a_training_that_a_signal_stops_is_killed_and_says_how_to_resume(run_of, trackers):
    class Step(FakeStep):
        def update(self, step, lr):
            signal.raise_signal(signal.SIGTERM)
            return super().update(step, lr)

    run = run_of(*WORDS)
    with pytest.raises(Stopped, match=r"^saved step-00000001; resume with: python -m resnet.train resume=.*/run$"):
        train(run, Path(run.out), make_step=Step)
    assert trackers[0].statuses == ["KILLED"]


# ------------------------------------------------------------------------------------------------------------ what it logs
def test_the_start_says_what_is_about_to_happen_and_the_notes_of_the_restored_state(new_log, capsys):
    new_log()
    printed = capsys.readouterr().out.splitlines()
    assert "batch 32 on test chip" in printed[0] and printed[-2:] == ["resuming at step 2, epoch 0.05", "a note"]


def test_a_reading_is_logged_with_epoch_rate_and_images(new_log, trackers, capsys):
    log = new_log()
    log.train(22, Reading(1.5, 100.0, data_wait=0.25, top1=0.5, top5=0.875), {"train/skipped": 1})
    assert trackers[0].values == [
        (
            22,
            {
                "train/loss": 1.5,
                "train/top1": 0.5,
                "train/top5": 0.875,
                "train/lr": 0.5 * float(log.plan.lr(21)),
                "train/images_per_s": 100.0,
                "train/data_wait": 0.25,
                "train/epoch": 0.5,
                "train/images": 704,
                "data/corrupt_records": 2,
                "train/skipped": 1,
            },
        )
    ]
    log.train(23, Reading(1.4, 100.0), {})
    printed = capsys.readouterr().out
    assert printed.count("data.on_corrupt=skip: record 3") == printed.count("record 9") == 1  # each once
    assert "step 22/3 " in printed and "loss 1.5000  top-1 50.0 %" in printed


def test_an_evaluation_is_recorded_logged_and_printed(new_log, trackers, capsys):
    log = new_log()
    log.evaluation(lambda: (EvalResult(0.5, 0.9, 1.2, 360), EvalResult(0.6, 0.95, 1.1, 360)))
    plain = {"eval/top1": 0.5, "eval/top5": 0.9, "eval/loss": 1.2}
    average = {"ema/top1": 0.6, "ema/top5": 0.95, "ema/loss": 1.1}
    assert trackers[0].values == [(2, {**plain, **average, "best/top1": 0.6})]
    assert log.state.progress.top1(2) == log.state.progress.best_top1 == 0.6
    assert "averaged weights: top-1 60.00 %" in capsys.readouterr().out


def test_ranks_other_than_0_report_nothing(new_log, trackers, capsys):
    with new_log(Ranks(1, 2)) as log:
        log.say("a line")
        log.train(22, Reading(1.5, 100.0), {})
        log.evaluation(lambda: (EvalResult(0.5, 0.9, 1.2, 360), None))
    assert trackers == [] and capsys.readouterr().out == ""
    assert log.state.progress.best_top1 == 0.5  # which every rank knows


@pytest.mark.usefixtures("small_network")
def test_the_final_metrics_are_logged_and_the_result_is_the_last_file(run_of, trackers):
    run = run_of(*WORDS)
    content = train(run, Path(run.out), make_step=FakeStep)
    final = {name: value for name, value in content.items() if name.startswith("final/")}
    assert len(final) >= 5 and trackers[0].values[-1] == (3, final)
    assert trackers[0].files[-1] == Path(run.out) / "result.json"
