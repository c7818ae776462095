"""What mlperf.log has in it, its clock and its file."""

import copy
import functools
import logging
import sys
import time
from pathlib import Path

import pytest
from mlperf_log import IMAGENET, LARS, REFERENCE, entries, open_log, path_of, play, rising, value

from resnet import UserError
from resnet.distributed.ranks import Ranks
from resnet.optim import schedule


@pytest.fixture(scope="module")
def composed_runs(run_at, tmp_path_factory):
    """`composed_runs("optim=lars", ...)`: the run of these overrides, composed once; only copy it."""
    folder = tmp_path_factory.mktemp("composed")
    return functools.cache(lambda *words: run_at(folder, *words))


@pytest.fixture
def run_of(composed_runs, tmp_path):
    """As everywhere, though most tests here want the same run: its folder alone is the test's own."""

    def make(*words, out=tmp_path / "run"):
        run = copy.deepcopy(composed_runs(*words))
        run.out = str(out)
        return run

    return make


# ------------------------------------------------------------------------------------------------------------ the content
def test_the_log_has_the_run_s_own_figures(run_of):
    run = run_of(
        *REFERENCE,
        *LARS,
        "optim.lr=16",
        "schedule.warmup_epochs=6",
        "epochs=40",
        "schedule.horizon_epochs=44",
        "seed=77",
    )
    play(run, ranks=Ranks(0, 4, "test chip"))
    per_epoch = 1_281_167 // 8192
    expected = {
        "submission_benchmark": "resnet",
        "submission_org": "resnet-experiments",
        "submission_status": "research",
        "submission_platform": "4 x test chip",
        "cache_clear": False,
        "seed": 77,
        "global_batch_size": 8192,
        "gradient_accumulation_steps": 1,
        "model_bn_span": 8192,
        "train_samples": 1_281_167,
        "eval_samples": 50_000,
        "opt_name": "lars",
        "lars_opt_base_learning_rate": 16,
        "lars_opt_end_learning_rate": 1e-4,
        "lars_opt_learning_rate_decay_poly_power": 2,
        "lars_epsilon": 0,
        "lars_opt_momentum": 0.9,
        "lars_opt_weight_decay": run.optim.weight_decay,
        "lars_opt_learning_rate_warmup_epochs": 6,
        "lars_opt_learning_rate_decay_steps": (44 - 6) * per_epoch,
    }
    assert {key: value(run, key) for key in expected} == expected
    lr, warm, fall = (
        value(run, f"lars_opt_{key}")
        for key in ("base_learning_rate", "learning_rate_warmup_epochs", "learning_rate_decay_steps")
    )
    curve = schedule.plan(run, IMAGENET[0]).lr
    assert curve(warm * per_epoch) == pytest.approx(lr)
    assert curve(warm * per_epoch + fall) == pytest.approx(1e-4)
    assert curve(warm * per_epoch + fall / 2) == pytest.approx(1e-4 + (lr - 1e-4) / 4)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_blocks_and_evaluations_count_epochs_from_one(run_of, offset):
    run = run_of(*REFERENCE, *LARS, "epochs=38", "stop_at_top1=null")
    run.eval_offset_epochs = float(offset)
    assert play(run)[1] == []  # closed
    metadata = [
        (line["key"], {k: v for k, v in line["metadata"].items() if k not in ("file", "lineno")})
        for line in entries(run)
    ]
    blocks = [data for key, data in metadata if key == "block_start"]
    ends = [*range(offset or 4, 38, 4), 38]
    starts = [1, *(end + 1 for end in ends[:-1])]
    assert blocks == [
        {"first_epoch_num": first, "epoch_count": end + 1 - first} for first, end in zip(starts, ends, strict=True)
    ]
    assert [data["first_epoch_num"] for key, data in metadata if key == "block_stop"] == starts
    scores = [
        (data["epoch_num"], line["value"])
        for (key, data), line in zip(metadata, entries(run), strict=True)
        if key == "eval_accuracy"
    ]
    assert scores == [(epoch, rising(epoch)) for epoch in ends]
    assert all(isinstance(epoch, int) for epoch, _ in scores)
    order = [key for key, _ in metadata if key.startswith(("block", "eval_st", "run", "init"))]
    assert order == [
        "init_start",
        "init_stop",
        "run_start",
        *len(ends) * ["block_start", "eval_start", "eval_stop", "block_stop"],
        "run_stop",
    ]


def test_evaluations_within_epochs_and_none_at_all(run_of):
    run = run_of(*REFERENCE, *LARS, "epochs=42", "steps=234", "eval_every_epochs=0.5")
    play(run)
    per_epoch = 1_281_167 // 8192
    epochs = [line["metadata"]["epoch_num"] for line in entries(run) if line["key"] == "eval_accuracy"]
    assert epochs == [0.5, 1, 234 / per_epoch]
    run = run_of(*REFERENCE, *LARS, "stop_at_top1=null", "eval=false", "steps=156")
    play(run)
    assert [line["metadata"]["epoch_count"] for line in entries(run) if line["key"] == "block_start"] == [1]


# -------------------------------------------------------------------------------------------------- the clock and the file
def test_time_to_train_is_run_stop_less_run_start(run_of):
    run = run_of(*REFERENCE, *LARS, "steps=300")

    def slow(_epoch):
        time.sleep(0.05)
        return 0.5

    before = time.time() * 1000
    minutes, _ = play(run, top1=slow)
    times = {line["key"]: line["time_ms"] for line in entries(run)}
    assert minutes == (times["run_stop"] - times["run_start"]) / 60_000
    assert 0.05 < minutes * 60 < 60
    times_ms = [line["time_ms"] for line in entries(run)]
    assert times_ms == sorted(times_ms)
    assert before - 2 < times["init_start"] <= times["init_stop"] <= times["run_start"] < time.time() * 1000 + 2


def test_the_clock_stops_once(run_of):
    run = run_of(*REFERENCE, *LARS)
    log = open_log(run)
    log.begin(schedule.plan(run, IMAGENET[0]), 0, *IMAGENET)
    assert log.end(True) is not None
    assert log.end(False) is None
    assert [line["metadata"]["status"] for line in entries(run) if line["key"] == "run_stop"] == ["aborted"]


@pytest.mark.parametrize(("knob", "ranks"), [("mlperf=false", Ranks()), ("mlperf=true", Ranks(1, 2))])
def test_without_the_knob_and_on_other_ranks_nothing_is_written(run_of, monkeypatch, knob, ranks):
    monkeypatch.setitem(sys.modules, "mlperf_logging.mllog.mllog", None)  # nor imported
    run = run_of(*REFERENCE, *LARS, knob)
    assert play(run, ranks=ranks) == (None, [])
    assert list(Path(run.out).iterdir()) == []


def test_a_run_that_goes_on_leaves_the_log_of_its_first_start_alone(run_of):
    run = run_of(*REFERENCE, *LARS)
    play(run, finished=False)
    first = path_of(run).read_text()
    log, plan = open_log(run), schedule.plan(run, IMAGENET[0])
    (note,) = log.begin(plan, 1560, *IMAGENET)
    assert note.startswith("mlperf=true: ") and "step 1,560" in note and "mlperf.log" in note
    log.evaluating(1560)
    log.evaluated(1560, 0.8)
    log.training(1560)
    assert log.end(True) is None
    assert path_of(run).read_text() == first
    play(run)  # from the first step again: anew
    assert [line["key"] for line in entries(run)].count("run_start") == 1


def test_two_runs_of_one_process_keep_apart_and_the_terminal_quiet(run_of, tmp_path, capfd, caplog):
    runs = [run_of(*REFERENCE, *LARS, f"seed={seed}", out=tmp_path / str(seed)) for seed in (3, 4)]
    logs = []
    for run in runs:
        logs.append(open_log(run))
    with caplog.at_level(logging.DEBUG):
        for run, log in zip(runs, logs, strict=True):
            log.begin(schedule.plan(run, IMAGENET[0]), 0, *IMAGENET)
        for log in logs:
            log.training(0)
            log.end(True)
    assert [value(run, "seed") for run in runs] == [3, 4]
    assert len(entries(runs[0])) == len(entries(runs[1]))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert {line["metadata"]["file"] for line in entries(runs[0])} == {
        "resnet/training/mlperf.py"
    }  # no path of a machine


def test_without_the_package_it_says_what_to_install(run_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_logging.mllog.mllog", None)
    run = run_of(*REFERENCE, *LARS)
    with pytest.raises(UserError, match=r"mlperf=true: .*; pip install mlperf-logging, or use mlperf=false"):
        open_log(run)
