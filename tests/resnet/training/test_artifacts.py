"""What is kept of a training: all of it, and what can be made of it when something fails."""

import json

import numpy as np
import pytest

from resnet.config.track import Mlflow
from resnet.data import source
from resnet.serving import mlflow_model
from resnet.training import artifacts, plots
from resnet.training.evaluation import Predictions


class Tracker:
    """Remembers what it was given."""

    def __init__(self):
        self.kept, self.put_off = [], []

    def artifact(self, path):
        self.kept.append(path)

    def later(self, work):
        self.put_off.append(work)


@pytest.fixture
def ended(run_of, prepared, tmp_path):
    """(run, its folder, its images, the answers to them) of a training of three classes that has ended."""
    photos = prepared({"cat": 4, "dog": 4, "emu": 4}, tmp_path / "shards")
    run = run_of("model=tiny", "track=off", "data=folder", f"data.dir={photos}")
    images = source.open_source(run.data)
    labels = np.arange(images.eval_images, dtype=np.int32) % 3
    answers = Predictions(labels, np.zeros_like(labels), np.ones(len(labels), np.float32), labels < 3)
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "time_ms": 0, "train/loss": 1.0, "train/epoch": 0.5}) + "\n"
    )
    return run, out, images, answers


def test_pictures_and_model_are_written_and_given_to_the_tracker(ended, monkeypatch):
    run, out, images, answers = ended
    done = []
    monkeypatch.setattr(mlflow_model, "save", lambda *words: done.append(words) or out / "model")
    monkeypatch.setattr(mlflow_model, "log_model", lambda *words, **more: done.append((words, more)))
    drawn = []
    monkeypatch.setattr(plots, "mistakes", lambda path, _i, _a, names, _t: drawn.append(names) or path)
    tracker = Tracker()
    assert artifacts.make(run, out, images, answers, tracker, True, "photos") == []
    assert tracker.kept == [out / "curves.png", out / "confusion.png", out / "mistakes.png"]
    assert drawn == [["cat", "dog", "emu"]]
    assert done == [(run, out, ["cat", "dog", "emu"])]
    [work] = tracker.put_off
    work("client", "run id")
    assert done[1:] == [(("client", "run id"), {"place": out / "model", "register": "photos"})]


def test_without_an_evaluation_there_are_curves_and_without_being_asked_no_model(ended, monkeypatch):
    run, out, images, _ = ended
    monkeypatch.setattr(mlflow_model, "save", lambda *_: pytest.fail("nobody asked for it"))
    tracker = Tracker()
    assert artifacts.make(run, out, images, None, tracker, False, None) == []
    assert (tracker.kept, tracker.put_off) == ([out / "curves.png"], [])
    assert sorted(path.name for path in out.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_synthetic_images_leave_no_model(run_of, ended):
    _, out, _, _ = ended
    run = run_of("model=tiny", "track=off", "data=synthetic", "data.classes=3")
    answers = Predictions(np.int32([0]), np.int32([1]), np.float32([1]), np.array([True]))
    tracker = Tracker()
    assert artifacts.make(run, out, source.open_source(run.data), answers, tracker, True, "photos") == []
    assert (tracker.kept, tracker.put_off) == ([out / "curves.png", out / "confusion.png"], [])


def test_what_fails_is_told_in_a_line_and_the_rest_is_made(ended):
    """The run has no checkpoint, and its metrics are gone."""
    run, out, images, answers = ended
    (out / "metrics.jsonl").unlink()
    tracker = Tracker()
    curves, model = artifacts.make(run, out, images, answers, tracker, True, None)
    assert curves.startswith("curves.png could not be written: FileNotFoundError: ")
    assert model.startswith("the MLflow model could not be written: UserError: ") and "\n" not in curves + model
    assert tracker.kept == [out / "confusion.png", out / "mistakes.png"] and not tracker.put_off


@pytest.mark.parametrize(
    ("knobs", "wanted"),
    [
        ({}, True),
        ({"parent_run": "a sweep"}, False),
        ({"parent_run": "a sweep", "register": "photos"}, True),
        ({"parent_run": "a sweep", "log_model": True}, True),
        ({"log_model": False}, False),
    ],
)
def test_jobs_of_a_sweep_keep_no_model_unless_told_to(knobs, wanted):
    assert artifacts.wants_model(Mlflow(uri="http://x", run_name="y", **knobs)) is wanted
