"""The log against the package's own checkers, which are the judges here."""

import copy
import functools
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf

from resnet import UserError
from resnet.model import resnet
from resnet.optim import schedule
from resnet.training import mlperf
from resnet.training.loop import train

IMAGENET = 1_281_167, 50_000
# What must be said of a run for the closed division; the LARS row of batch 8192 is the recipe's own.
REFERENCE = (
    "model=resnet50",
    "data=imagenet",
    "data.dir=/nowhere",
    "data.std=[1,1,1]",
    "data.min_area=0.05",
    "track=off",
    "eval_every_epochs=4",
    "stop_at_top1=0.759",
    "steps_per_loop=500",
    "mlperf=true",
)
LARS = ("optim=lars", "batch=8192")
SGD = (
    "optim=sgd",
    "schedule=polynomial",
    "schedule.warmup_epochs=5",
    "optim.lr=0.4",
    "optim.weight_decay=5e-5",
    "batch=1024",
    "epochs=40",
)


@pytest.fixture(scope="module")
def composed(run_at, tmp_path_factory):
    """`composed("optim=lars", ...)`: the run of these overrides, made once; only copy it."""
    folder = tmp_path_factory.mktemp("composed")
    return functools.cache(lambda *words: run_at(folder, *words))


@pytest.fixture
def run_of(composed, tmp_path, monkeypatch):
    """As everywhere, though most tests here ask for the same run: its folder alone is the test's own."""
    monkeypatch.chdir(tmp_path)

    def make(*words, out=tmp_path / "run"):
        run = copy.deepcopy(composed(*words))
        run.out = str(out)
        return run

    return make


def ranks(rank=0, ranks=1):
    """As device.up() tells it."""
    return SimpleNamespace(rank=rank, ranks=ranks, device="made-up chip")


def rising(epoch):
    """A top-1 that passes 0.759 at epoch 36."""
    return 0.4 + epoch / 100


def played(run, top1=rising, images=IMAGENET, finished=True, where=None):
    """What the training loop tells the log of a run, with `top1` of an epoch as its scores. Returns (minutes, lines told)."""
    Path(run.out).mkdir(exist_ok=True)
    log = mlperf.open_log(run, Path(run.out), where or ranks())
    plan = schedule.plan(run, images[0])
    told = log.begin(plan, 0, *images)
    for first, end in plan.calls(0):
        log.training(first)
        if plan.evaluates(end):
            log.evaluating(end)
            log.evaluated(end, top1(plan.epoch(end)))
            if run.stop_at_top1 and top1(plan.epoch(end)) >= run.stop_at_top1:
                break
    return log.end(finished), told


def lines(run):
    """mlperf.log, a dictionary a line."""
    text = (Path(run.out) / "mlperf.log").read_text()
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in text.splitlines()]


def value(run, key):
    """Of the only line with this key."""
    (found,) = [line["value"] for line in lines(run) if line["key"] == key]
    return found


def checked(path, *words):
    """(exit status, what was said) of the compliance checker for ruleset 4.0.0."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mlperf_logging.compliance_checker",
            "--usage",
            "training",
            "--ruleset",
            "4.0.0",
            "--log_output",
            "said.log",
            *words,
            str(path),
        ],
        cwd=path.parent,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


def complaints(path):
    """What the same checker has against a log; none if it passes."""
    from mlperf_logging.compliance_checker import mlp_compliance

    checker = mlp_compliance.make_checker("training", "4.0.0", quiet=False, werror=True)
    mlp_compliance.main(str(path), "training_4.0.0/common.yaml", checker)
    return [*checker.overwritable.values(), *checker.not_overwritable]


# ------------------------------------------------------------------------------------------------------------- what passes
@pytest.mark.parametrize("recipe", [LARS, SGD], ids=["lars", "sgd"])
def test_the_checker_accepts_a_closed_run_that_reaches_the_target(run_of, recipe):
    run = run_of(*REFERENCE, *recipe)
    _, told = played(run)
    assert told == []
    assert value(run, "submission_division") == "closed"
    status, said = checked(Path(run.out) / "mlperf.log", "--werror")
    assert status == 0, said
    assert "SUCCESS" in said
    assert f"closed_resnet_{value(run, 'opt_name')}.yaml" in said  # it did apply the optimizer's own rules


@pytest.mark.parametrize("recipe", [LARS, SGD], ids=["lars", "sgd"])
def test_the_checker_would_miss_any_line(run_of, recipe):
    run = run_of(*REFERENCE, *recipe)
    played(run)
    path = Path(run.out) / "mlperf.log"
    whole = path.read_text().splitlines(keepends=True)
    assert complaints(path) == []
    keys = {line["key"] for line in lines(run)}
    free = {"seed", *({"model_bn_span"} if recipe is LARS else ())}  # the seed is the package checker's
    free |= {"eval_start", "eval_stop", "block_stop"}  # wanted only where there is no block or epoch
    unmissed = set()
    for key in keys:
        path.write_text("".join(line for line in whole if f'"key": "{key}"' not in line))
        if not complaints(path):
            unmissed.add(key)
    assert unmissed <= free


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
    played(run, where=ranks(0, 4))
    per_epoch = 1_281_167 // 8192
    expected = {
        "submission_benchmark": "resnet",
        "submission_org": "resnet-experiments",
        "submission_status": "research",
        "submission_platform": "4 x made-up chip",
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


def test_blocks_and_evaluations_count_epochs_from_one(run_of):
    run = run_of(*REFERENCE, *LARS, "epochs=38", "stop_at_top1=null")
    played(run)
    metadata = [
        (line["key"], {k: v for k, v in line["metadata"].items() if k not in ("file", "lineno")}) for line in lines(run)
    ]
    blocks = [found for key, found in metadata if key == "block_start"]
    assert blocks == [{"first_epoch_num": first, "epoch_count": min(4, 39 - first)} for first in range(1, 39, 4)]
    assert [found for key, found in metadata if key == "block_stop"] == [
        {"first_epoch_num": first} for first in range(1, 39, 4)
    ]
    scores = [
        (found["epoch_num"], line["value"])
        for (key, found), line in zip(metadata, lines(run), strict=True)
        if key == "eval_accuracy"
    ]
    assert scores == [(epoch, rising(epoch)) for epoch in (*range(4, 38, 4), 38)]
    assert all(isinstance(epoch, int) for epoch, _ in scores)
    order = [key for key, _ in metadata if key.startswith(("block", "eval_st", "run", "init"))]
    assert order == [
        "init_start",
        "init_stop",
        "run_start",
        *10 * ["block_start", "eval_start", "eval_stop", "block_stop"],
        "run_stop",
    ]


def test_evaluations_within_epochs_and_none_at_all(run_of):
    run = run_of(*REFERENCE, *LARS, "epochs=42", "steps=234", "eval_every_epochs=0.5")
    played(run)
    per_epoch = 1_281_167 // 8192
    found = [line["metadata"]["epoch_num"] for line in lines(run) if line["key"] == "eval_accuracy"]
    assert found == [0.5, 1, 234 / per_epoch]
    run = run_of(*REFERENCE, *LARS, "stop_at_top1=null", "eval=false", "steps=156")
    played(run)
    assert [line["metadata"]["epoch_count"] for line in lines(run) if line["key"] == "block_start"] == [1]


def test_the_package_s_checkers_of_convergence_and_seeds_read_it_too(run_of, tmp_path):
    from mlperf_logging.package_checker.seed_checker import SeedChecker
    from mlperf_logging.rcp_checker import rcp_checker

    def checked(name, offset):
        (tmp_path / name).mkdir()
        for seed in range(5):
            run = run_of(*REFERENCE, *LARS, f"seed={seed}", out=tmp_path / str(seed))
            played(run, top1=lambda epoch: offset + epoch / 100)
            (tmp_path / name / f"result_{seed}.txt").write_text((Path(run.out) / "mlperf.log").read_text())
        logs = sorted(map(str, (tmp_path / name).iterdir()))
        return rcp_checker.get_submission_epochs(logs, "4.0.0", False), rcp_checker.check_directory(
            str(tmp_path / name), "training", "4.0.0", False, False, rcp_pass="full_rcps"
        )[:2]

    # The reference needs 41 to 44 epochs at this batch; to need fewer than 40.6 is not believed.
    assert checked("as the reference", 0.34) == ((8192, [42] * 5, "resnet"), (True, "RCP found"))
    assert checked("too fast", 0.40) == ((8192, [36] * 5, "resnet"), (False, "RCP found"))
    logs = sorted(map(str, (tmp_path / "too fast").iterdir()))
    assert SeedChecker("4.0.0").check_seeds(logs)
    assert not SeedChecker("4.0.0").check_seeds([logs[0], logs[0]])


# ----------------------------------------------------------------------------------------------------------- what does not
@pytest.mark.parametrize(
    ("top1", "complaint"),
    [
        (lambda _epoch: 0.7589, "Failed checks for eval_accuracy : v['value'] >= 0.7590 and v['value'] < 1.0"),
        (lambda _epoch: 1.0, "Failed checks for eval_accuracy : v['value'] >= 0.7590 and v['value'] < 1.0"),
    ],
    ids=["too low", "too good"],
)
def test_the_checker_rejects_a_closed_run_without_the_target(run_of, top1, complaint):
    run = run_of(*REFERENCE, *LARS)
    played(run, top1)
    assert complaints(Path(run.out) / "mlperf.log") == [complaint]
    status, said = checked(Path(run.out) / "mlperf.log")
    assert status == 1
    assert complaint in said


def test_a_run_that_does_not_reach_the_target_is_aborted_and_so_is_one_that_is_stopped(run_of):
    def status(run):
        (found,) = [line["metadata"]["status"] for line in lines(run) if line["key"] == "run_stop"]
        return found

    run = run_of(*REFERENCE, *LARS)
    played(run)
    assert status(run) == "success"
    played(run, finished=False)
    assert status(run) == "aborted"
    played(run, top1=lambda _epoch: 0.5)
    assert status(run) == "aborted"
    played(run_of(*REFERENCE, *LARS, "stop_at_top1=0.5"), top1=lambda _epoch: 0.5)
    assert status(run) == "success"  # what was asked for


def test_a_killed_run_s_log_is_rejected_for_what_it_lacks(run_of):
    run = run_of(*REFERENCE, *LARS, "epochs=42")
    log, plan = mlperf.open_log(run, Path(run.out), ranks()), schedule.plan(run, IMAGENET[0])
    Path(run.out).mkdir()
    log.begin(plan, 0, *IMAGENET)
    log.training(0)
    for key in ("run_stop", "eval_accuracy"):
        assert any(f"of '{key}' but found 0" in one for one in complaints(Path(run.out) / "mlperf.log"))
    log.end(False)
    assert not any("run_stop" in one for one in complaints(Path(run.out) / "mlperf.log"))


def test_what_the_rules_fix_is_rejected_by_value(run_of):
    run = run_of(*REFERENCE, *LARS)
    played(run)
    path = Path(run.out) / "mlperf.log"
    whole = path.read_text()
    for key, wrong in (
        ("lars_opt_end_learning_rate", 0.0),
        ("lars_opt_learning_rate_decay_poly_power", 1),
        ("lars_epsilon", 1e-9),
        ("lars_opt_weight_decay", 3e-4),
    ):
        line = next(line for line in whole.splitlines() if f'"key": "{key}"' in line)
        path.write_text(whole.replace(line, line.replace(json.dumps(value_of(line)), json.dumps(wrong), 1)))
        assert any(key in one for one in complaints(path)), key
    for key in ("train_samples", "eval_samples"):  # and what they do not
        path.write_text(whole.replace(f'"key": "{key}", "value": ', f'"key": "{key}", "value": 1'))
        assert complaints(path) == []


def value_of(line):
    """The value in one line of a log."""
    return json.loads(line.removeprefix(":::MLLOG "))["value"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((*LARS, "model=resnext50"), "model.groups=32 (1); model.width=4 (64)"),
        ((*LARS, "model=resnet34"), "model.block=basic (bottleneck)"),
        ((*LARS, "schedule=cosine"), "schedule.name=cosine (polynomial)"),
        ((*LARS, "schedule.power=1"), "schedule.power=1.0 (2)"),
        ((*LARS, "mixup=0.2"), "mixup=0.2 (0)"),
        ((*LARS, "label_smoothing=0.2"), "label_smoothing=0.2 (0 or 0.1)"),
        ((*LARS, "ema.decay=0.999"), "ema.on=True (False)"),
        ((*LARS, "progressive={start_size: 160, end_epochs: 9}"), "progressive.start_size=160 (None)"),
        ((*LARS, "data.train_size=176"), "data.train_size=176 (None or 224)"),
        ((*LARS, "data.std=[58,57,57]"), "data.std=[58.0, 57.0, 57.0] ([1, 1, 1])"),
        ((*LARS, "data.min_area=0.08"), "data.min_area=0.08 (0.05)"),
        ((*LARS, "optim.weight_decay=3e-4"), "optim.weight_decay=0.0003 (0.0004)"),
        ((*LARS, "optim.weight_decay=0"), "optim.weight_decay=0.0 (0.0001)"),
        ((*LARS, "optim.momentum=0.94"), "optim.momentum=0.94 (0.9)"),
        ((*LARS, "optim.epsilon=1e-9"), "optim.epsilon=1e-09 (0)"),
        ((*LARS, "stop_at_top1=0.7"), "stop_at_top1=0.7 (None or 0.759)"),
        ((*LARS, "eval_every_epochs=1"), "eval_every_epochs=1.0 (4)"),
        ((*SGD, "optim.nesterov=true"), "optim.nesterov=True (False)"),
        ((*SGD, "optim.lr=0.4003"), "optim.lr=0.4003 (0.4)"),
        ((*SGD, "schedule.warmup_epochs=5.5"), "schedule.warmup_epochs=5.5 (6)"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_run_outside_the_closed_division_says_so_and_why(run_of, words, named):
    run = run_of(*REFERENCE, *words)
    _, told = played(run)
    assert told == [f"mlperf=true: in the open division, not the closed one: {named}"]
    assert value(run, "submission_division") == "open"
    assert complaints(Path(run.out) / "mlperf.log") == []


def test_large_batches_of_lars_may_choose_their_momentum(run_of):
    _, told = played(run_of(*REFERENCE, "optim=lars", "batch=32768", "optim.momentum=0.94"))
    assert told == []


def test_small_data_is_open_yet_its_log_can_be_held_to_the_closed_rules(run_of):
    run = run_of("optim=lars", "model=tiny", "data=digits", "batch=64", "track=off", "mlperf=true")
    _, (told,) = played(run, top1=lambda _epoch: 0.97, images=(1437, 360))
    assert told.endswith("1437 training and 360 evaluation images (1281167 and 50000)")
    path = Path(run.out) / "mlperf.log"
    assert value(run, "submission_division") == "open"
    for config in ([], ["--config", "training_4.0.0/closed_common.yaml"]):
        status, said = checked(path, "--werror", *config)
        assert status == 0, said
    assert "closed_resnet_lars.yaml" in said
    played(run, top1=lambda _epoch: 0.5, images=(1437, 360))
    assert checked(path)[0] == 0
    status, said = checked(path, *config)
    assert status == 1
    assert "Failed checks for eval_accuracy" in said


# -------------------------------------------------------------------------------------------------- the clock and the file
def test_time_to_train_is_run_stop_less_run_start(run_of):
    run = run_of(*REFERENCE, *LARS, "steps=300")

    def slow(_epoch):
        time.sleep(0.05)
        return 0.5

    before = time.time() * 1000
    minutes, _ = played(run, top1=slow)
    times = {line["key"]: line["time_ms"] for line in lines(run)}
    assert minutes == (times["run_stop"] - times["run_start"]) / 60_000
    assert 0.05 < minutes * 60 < 5
    stamps = [line["time_ms"] for line in lines(run)]
    assert stamps == sorted(stamps)
    assert before - 2 < times["init_start"] <= times["init_stop"] <= times["run_start"] < time.time() * 1000 + 2


def test_the_clock_stops_once(run_of):
    run = run_of(*REFERENCE, *LARS)
    Path(run.out).mkdir()
    log = mlperf.open_log(run, Path(run.out), ranks())
    log.begin(schedule.plan(run, IMAGENET[0]), 0, *IMAGENET)
    assert log.end(True) is not None
    assert log.end(False) is None
    assert [line["metadata"]["status"] for line in lines(run) if line["key"] == "run_stop"] == ["aborted"]


@pytest.mark.parametrize(("knob", "where"), [("mlperf=false", ranks()), ("mlperf=true", ranks(1, 2))])
def test_without_the_knob_and_on_other_ranks_nothing_is_written(run_of, monkeypatch, knob, where):
    monkeypatch.setitem(sys.modules, "mlperf_logging.mllog.mllog", None)  # nor imported
    run = run_of(*REFERENCE, *LARS, knob)
    assert played(run, where=where) == (None, [])
    assert list(Path(run.out).iterdir()) == []


def test_a_run_that_goes_on_leaves_the_log_of_its_first_start_alone(run_of):
    run = run_of(*REFERENCE, *LARS)
    played(run, finished=False)
    first = (Path(run.out) / "mlperf.log").read_text()
    log, plan = mlperf.open_log(run, Path(run.out), ranks()), schedule.plan(run, IMAGENET[0])
    told = log.begin(plan, 1560, *IMAGENET)
    assert told == [
        "mlperf=true: going on from step 1,560, and MLPerf knows whole runs only; mlperf.log stays as it is"
    ]
    log.evaluating(1560)
    log.evaluated(1560, 0.8)
    log.training(1560)
    assert log.end(True) is None
    assert (Path(run.out) / "mlperf.log").read_text() == first
    played(run)  # from the first step again: anew
    assert [line["key"] for line in lines(run)].count("run_start") == 1


def test_two_runs_of_one_process_keep_apart_and_the_terminal_quiet(run_of, tmp_path, capfd, caplog):
    runs = [run_of(*REFERENCE, *LARS, f"seed={seed}", out=tmp_path / str(seed)) for seed in (3, 4)]
    logs = []
    for run in runs:
        Path(run.out).mkdir()
        logs.append(mlperf.open_log(run, Path(run.out), ranks()))
    with caplog.at_level(logging.DEBUG):
        for run, log in zip(runs, logs, strict=True):
            log.begin(schedule.plan(run, IMAGENET[0]), 0, *IMAGENET)
        for log in logs:
            log.training(0)
            log.end(True)
    assert [value(run, "seed") for run in runs] == [3, 4]
    assert len(lines(runs[0])) == len(lines(runs[1]))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert {line["metadata"]["file"] for line in lines(runs[0])} == {"resnet/mlperf.py"}  # no path of a machine


def test_without_the_package_it_says_what_to_install(run_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_logging.mllog.mllog", None)
    run = run_of(*REFERENCE, *LARS)
    with pytest.raises(UserError, match=r"mlperf=true: .*; pip install mlperf-logging, or use mlperf=false"):
        mlperf.open_log(run, Path(run.out), ranks())


def test_the_lars_recipe_on_digits_leaves_a_log_that_the_checker_accepts(run_of, monkeypatch):
    """A network of one matrix passes 0.759 within two epochs."""

    def matrix(_model, classes, *_settings):
        layers = tf.keras.layers
        return tf.keras.Sequential([layers.Input([32, 32, 3]), layers.Flatten(), layers.Dense(classes, name="fc")])

    monkeypatch.setattr(resnet, "build", matrix)
    run = run_of(
        "optim=lars",
        "model=tiny",
        "data=digits",
        "batch=64",
        "epochs=8",
        "stop_at_top1=0.759",
        "track=off",
        "mlperf=true",
    )
    train(run, Path(run.out))
    path = Path(run.out) / "mlperf.log"
    for config in ([], ["--config", "training_4.0.0/closed_common.yaml"]):
        status, said = checked(path, "--werror", *config)
        assert status == 0, said
    found = lines(run)
    times = {line["key"]: line["time_ms"] for line in found}
    logged = [json.loads(line) for line in (Path(run.out) / "metrics.jsonl").read_text().splitlines()]
    assert [line["eval/top1"] for line in logged if "eval/top1" in line] == [
        line["value"] for line in found if line["key"] == "eval_accuracy"
    ]
    minutes = [line["final/time_to_train_minutes"] for line in logged if "final/time_to_train_minutes" in line]
    assert minutes == [(times["run_stop"] - times["run_start"]) / 60_000]
    assert next(line for line in found if line["key"] == "run_stop")["metadata"]["status"] == "success"
