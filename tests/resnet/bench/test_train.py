"""The benchmark of a whole training: its arithmetic by hand, what it refuses, and a small real one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rank_runs import later

from resnet import UserError
from resnet.bench import images, train
from resnet.bench.result import Result
from resnet.bench.train import Train


def test_the_ideal_shares_all_cores_between_reading_and_computing():
    """0.05 s to compute an image on both cores, and 0.1 s of one core to read it: 0.05 s of two."""
    assert train.ideal(20.0, 10.0, 2) == pytest.approx(10.0)


@pytest.fixture
def stretched(monkeypatch):
    """In place of a training of 36 steps: 1 s a step; 0.2, 0.4, ... more in the three that follow steps 6, 12, ..."""
    times, now, words = {}, 1000.0, []
    for step in range(3, 37, 3):
        times[step] = now
        now += 3.0 + (0.2 * step / 6 if step % 6 == 0 else 0)

    def trained(jobs):
        words.extend(jobs[0][0])
        (jobs[0][1] / "checkpoints" / f"step-{saved[0]:08}").mkdir(parents=True)

    saved = [36]
    monkeypatch.setattr(train, "run_trainings", trained)
    monkeypatch.setattr(train, "step_times", lambda _out: times)
    return times, words, saved


def test_a_checkpoint_costs_what_the_stretch_after_it_takes_longer_than_the_next(stretched):
    result = Result()
    train.checkpoints(Train(stretch=3, rounds=5), result)
    assert {"save_every_steps=6", "log_every_steps=3", "steps=36", "data=synthetic"} <= set(stretched[1])
    (row,) = result.rows
    assert row.theirs == pytest.approx([100.0] * 5)
    assert row.ours == pytest.approx([100.2, 100.4, 100.6, 100.8, 101.0])
    assert row.ratio == pytest.approx(1.006)


def test_an_interrupted_training_has_the_cost_of_the_checkpoints_so_far(stretched, monkeypatch):
    times, _, _ = stretched

    def interrupted(jobs):
        jobs[0][1].mkdir(parents=True)
        (jobs[0][1] / "metrics.jsonl").touch()
        for step in range(21, 37, 3):
            del times[step]
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_trainings", interrupted)
    result = Result()
    train.checkpoints(Train(stretch=3, rounds=5), result)
    assert result.rows[0].ours == pytest.approx([100.2, 100.4])
    assert result.interrupted and result.notes == ["Interrupted: checkpoints: 2 of 5 rounds."]


def test_a_checkpoint_that_was_not_written_is_no_measurement(stretched):
    stretched[2][0] = 30
    with pytest.raises(UserError, match=r"^the checkpoint of step 36 was not written: there are \[30\]$"):
        train.checkpoints(Train(stretch=3, rounds=5), Result())


@pytest.mark.parametrize(
    ("steps", "lines", "word", "error"),
    [
        (3, {1: 2.0, 3: 1.5}, "", None),
        (2, {1: 2.0, 2: 1.5}, "", "steps 2, not 3"),
        (3, {1: 2.0, 3: float("nan")}, "", "last step with a finite loss 1, not 3"),
        (3, {}, "", "last step with a finite loss None, not 3"),
        (3, {3: 2.0}, "cluster.ranks=2", "ranks 1, not 2"),
    ],
)
def test_a_training_that_did_not_do_its_steps_is_no_measurement(tmp_path, steps, lines, word, error):
    text = (json.dumps({"step": step, "time_ms": 1, "train/loss": loss}) for step, loss in lines.items())
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in text))
    words = ["steps=3", *([word] if word else [])]
    if error is None:
        train.check_training(words, tmp_path, {"steps": steps})
    else:
        with pytest.raises(UserError, match=f"^a training was not what it should be: {error}$"):
            train.check_training(words, tmp_path, {"steps": steps})


def test_words_of_a_training_name_each_knob_once():
    for data in ([], ["data=imagenet", "data.dir=folder/of/shards"]):
        names = [word.partition("=")[0] for word in train.words_of(Train(), 5, "track=off", data=data)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("knobs", "error"), [({"stretch": 0}, "^stretch=0: "), ({"steps": 2}, "^steps=2: must be above 2")]
)
def test_what_cannot_be_measured_is_refused(knobs, error):
    with pytest.raises(UserError, match=error):
        Train(**knobs)


def test_shards_have_as_many_images_as_they_should(tmp_path):
    from resnet.config.data import Records
    from resnet.data import source

    folder = images.shards(tmp_path / "new", images.photos(2), 7)
    opened = source.open_source(Records(dir=str(folder), classes=1000))
    assert (opened.train_images, opened.eval_images) == (7, 7)


def test_a_training_that_fails_is_reported_with_its_last_line(tmp_path):
    with pytest.raises(UserError, match=r"^a training failed: error: model=nothing: no such option"):
        train.run_trainings([(["model=nothing"], tmp_path / "run")])


def test_an_interruption_stops_the_trainings(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho $$ >> pids\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    pids = tmp_path / "pids"
    both = lambda: pids.exists() and pids.read_text().count("\n") == 2  # noqa: E731
    thread = later(both, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train.run_trainings([([], tmp_path / "a"), ([], tmp_path / "b")])
    thread.join()
    pids = pids.read_text().split()
    assert len(pids) == 2 and not any(Path("/proc", pid).exists() for pid in pids)


@pytest.mark.slow
def test_a_small_one_measures_all_three(tmp_path):
    words = ["model=tiny", "size=32", "batch=8", "rounds=2", "steps=4", "eval_steps=3", "stretch=3", f"out={tmp_path}"]
    process = subprocess.run([sys.executable, "-m", "resnet.bench", "train", *words], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    rows = json.loads((tmp_path / "train.json").read_text())["rows"]
    assert [(row["against"], len(row["ours"])) for row in rows] == [
        ("ideal of its parts", 2),
        ("on synthetic images", 2),
        ("", 2),
        ("forward passes alone", 2),
        ("", 1),
        ("without one", 2),
    ]
    assert rows[4]["ours"] == [1.0]
