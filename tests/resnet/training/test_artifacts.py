"""What a finished run leaves: plots, read back pixel by pixel or from their figures, the MLflow model, and what failed."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from resnet import files
from resnet.config import compose
from resnet.config.track import Mlflow
from resnet.data import pipeline, source
from resnet.serving import mlflow_model
from resnet.training import artifacts, trained
from resnet.training.evaluation import Predictions

ODD = [
    "a\nb",
    "tab\t",
    'quote"',
    "comma,",
    r"$\frac$",
    "日本",
    "x" * 300,
    os.fsdecode(b"no utf-8 \xff"),
    "",
    "back\\slash",
]
BLUE, ORANGE = (31, 119, 180), (255, 127, 14)  # matplotlib's first two colours


# ---------------------------------------------------------------------------------------------------------------- curves
def recorded(out, *lines):
    """A run's folder with these (step, metrics) recorded."""
    out.mkdir(exist_ok=True)
    text = "".join(json.dumps({"step": step, "time_ms": 1, **metrics}) + "\n" for step, metrics in lines)
    (out / "metrics.jsonl").write_text(text)
    return out


def panels(path):
    """The four quarters of curves.png, int [H, W, 3]: loss, top-1, learning rate, images/s."""
    whole = np.asarray(Image.open(path).convert("RGB"), int)
    top, bottom = np.array_split(whole[40:], 2)
    return [half for row in (top, bottom) for half in np.array_split(row, 2, axis=1)]


def inked(panel, colour):
    """Places (row, column) of a colour."""
    return np.argwhere((np.abs(panel - colour) < 40).all(2))


def test_every_panel_shows_its_own_curve(tmp_path):
    lines = [
        (
            step,
            {"train/loss": 3 - step / 50, "train/lr": step / 100, "train/images_per_s": 50.0, "train/epoch": step / 10},
        )
        for step in range(1, 101)
    ]
    lines += [(step, {"eval/top1": step / 200, "eval/loss": 1.0}) for step in (25, 50, 75, 100)]
    loss, top1, lr, speed = panels(artifacts.curves(recorded(tmp_path / "run, of $x$", *lines)))
    falling, rising, rate, flat = inked(loss, BLUE), inked(top1, BLUE), inked(lr, BLUE), inked(speed, BLUE)
    assert len(inked(loss, ORANGE)) > 50  # of the evaluation
    assert not len(inked(lr, ORANGE)) and not len(inked(top1, ORANGE))
    below = falling[falling[:, 0] > 70]  # not the legend
    assert np.corrcoef(below.T)[0, 1] > 0.9  # down is down
    assert np.corrcoef(rate.T)[0, 1] < -0.9 and rising[-1][1] < rising[0][1]
    assert np.ptp(flat[:, 0]) < 12 and np.ptp(flat[:, 1]) > 300


def test_a_run_that_recorded_nothing_has_a_picture_that_says_so(tmp_path):
    loss, top1, lr, speed = panels(artifacts.curves(recorded(tmp_path / "run", (1, {"train/lr": 0.1}))))
    assert len(inked(lr, BLUE)) and not len(inked(speed, BLUE))
    middle = [panel[150:300, 250:450] for panel in (loss, top1, speed)]
    assert all((part < 100).any() for part in middle)  # "not recorded"


# ------------------------------------------------------------------------------------------------------------- confusion
def test_the_matrix_is_dark_where_there_are_many(tmp_path):
    for name, counts in (("one.png", np.diag([5, 5])), ("other.png", np.array([[0, 5], [5, 0]]))):
        assert artifacts.confusion(tmp_path / name, counts, ["a", "b"], "") == tmp_path / name
    images = [np.asarray(Image.open(tmp_path / name).convert("L"), int) for name in ("one.png", "other.png")]
    difference = images[0] - images[1]
    top, left = (np.flatnonzero(difference.any(axis)) for axis in (1, 0))
    box = difference[top[0] : top[-1], left[0] : left[-1]]
    quarters = [np.sign(half.mean()) for rows in np.array_split(box, 2) for half in np.array_split(rows, 2, axis=1)]
    assert quarters == [-1, 1, 1, -1]  # darker where the diagonal is


def test_any_name_of_a_class_can_be_drawn(tmp_path, recwarn):
    counts = np.arange(100).reshape(10, 10)
    counts[3] = 0
    artifacts.confusion(tmp_path / "confusion.png", counts, ODD, "top-1")
    assert not recwarn
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.format == "PNG" and min(image.size) > 300


# -------------------------------------------------------------------------------------------------------------- mistakes
@pytest.fixture(scope="module")
def images(prepared, tmp_path_factory):
    """Thirty evaluation images of ten classes."""
    folder = prepared({f"class {number}": 6 for number in range(10)}, tmp_path_factory.mktemp("photos") / "shards")
    return source.open_source(compose.one_group("data", "data=folder", dir=str(folder), image_size=48, eval_resize=56))


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, by the names of their files."""
    figures, save = {}, artifacts.save

    def saved(figure, path):
        figures[path.name] = figure
        return save(figure, path)

    monkeypatch.setattr(artifacts, "save", saved)
    return figures


def shown(figure):
    """(pixels, title) of every image in it."""
    return [(axes.get_images()[0].get_array(), axes.get_title()) for axes in figure.axes if axes.get_images()]


def all_predicted(labels, predicted, probability=1.0):
    """Predictions of as many images as there are labels."""
    labels = np.int32(labels)
    return Predictions(
        labels, np.int32(predicted), np.broadcast_to(np.float32(probability), labels.shape), np.ones(labels.shape, bool)
    )


def test_mistakes_are_shown_as_the_network_saw_them_the_most_confident_first(images, figures, tmp_path):
    count = images.eval_images
    random = np.random.default_rng(1)
    pixels, labels = next((a.numpy(), b.numpy()) for a, b, _ in pipeline.evaluation(images, count))
    predicted = np.where(np.arange(count) % 3, (labels + 1) % 10, labels)
    predictions = all_predicted(labels, predicted, random.random(count))
    paths = artifacts.of_predictions(tmp_path, images, predictions, ODD)
    assert [path.name for path in paths] == ["confusion.png", "mistakes.png"] and all(map(Image.open, paths))
    mistakes = shown(figures["mistakes.png"])
    wrong = sorted((n for n in range(count) if n % 3), key=lambda n: -predictions.probability[n])
    assert len(mistakes) == len(wrong) == 20
    for (picture, title), number in zip(mistakes, wrong, strict=True):
        np.testing.assert_array_equal(picture, pixels[number])
        assert f"{100 * predictions.probability[number]:.1f} %" in title
        assert title.isprintable() or title.count("\n") == 1  # escaped names, on two lines


def test_there_are_no_more_than_so_many_of_them(images, figures, tmp_path):
    labels = next(part[1].numpy() for part in pipeline.evaluation(images, images.eval_images))
    artifacts.mistakes(tmp_path / "page.png", images, all_predicted(labels, (labels + 1) % 10), ODD, "a title")
    assert images.eval_images > artifacts.MISTAKES == len(shown(figures["page.png"]))


def test_a_network_that_makes_no_mistake_has_an_empty_page(images, figures, tmp_path):
    labels = np.zeros(images.eval_images, np.int32)
    artifacts.mistakes(tmp_path / "page.png", images, all_predicted(labels, labels), ODD, "top-1 100 %")
    assert shown(figures["page.png"]) == []
    assert (np.asarray(Image.open(tmp_path / "page.png").convert("L")) < 100).any()  # its title


def test_synthetic_images_have_no_page_of_mistakes(tmp_path):
    images = source.open_source(compose.one_group("data", "data=synthetic", classes=3, image_size=8))
    predictions = all_predicted([0, 1], [1, 1])
    paths = artifacts.of_predictions(tmp_path, images, predictions, ["a", "b", "c"])
    assert paths == [tmp_path / "confusion.png"]


# ------------------------------------------------------------------------------------------------------------------ all
class Log:
    """In place of a RunLog: what it was called with."""

    def __init__(self):
        self.files, self.lines, self.models = [], [], []
        self.artifact, self.say = self.files.append, self.lines.append
        self.tracker = SimpleNamespace(model=lambda *words: self.models.append(words))


@pytest.fixture(scope="module")
def shards(prepared, tmp_path_factory):
    """The folder of twelve photos of three classes."""
    return prepared({"cat": 4, "dog": 4, "emu": 4}, tmp_path_factory.mktemp("animals") / "shards")


@pytest.fixture
def finished(run_of, shards, tmp_path):
    """(run, its folder, its images, the predictions for them) of a finished run; no model unless log_model is changed."""
    run = run_of("model=tiny", "track=off", "data=folder", f"data.dir={shards}")
    run = replace(run, track=Mlflow(uri="http://x", run_name="y", log_model=False))
    images = source.open_source(run.data)
    labels = np.arange(images.eval_images) % 3
    line = {"step": 1, "time_ms": 0, "train/loss": 1.0, "train/epoch": 0.5}
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return run, out, images, all_predicted(labels, 0 * labels)


def test_plots_and_model_are_written_and_given_to_the_tracker(finished, monkeypatch):
    run, out, images, predictions = finished
    run.track.log_model, run.track.register = None, "photos"
    files.write_classes(out, ["cat", "dog", "emu"])
    calls, names = [], []
    monkeypatch.setattr(trained, "read", lambda path: f"weights of {path}")
    monkeypatch.setattr(mlflow_model, "save", lambda *words: calls.append(words) or out / "model")
    monkeypatch.setattr(artifacts, "mistakes", lambda path, _s, _p, classes, _t: names.append(classes) or path)
    log = Log()
    artifacts.make(run, out, images, predictions, log)
    assert log.lines == []
    assert log.files == [out / "curves.png", out / "confusion.png", out / "mistakes.png"]
    assert names == [["cat", "dog", "emu"]]
    assert calls == [(run, out, ["cat", "dog", "emu"], f"weights of {out}")]
    assert log.models == [(out / "model", "photos")]


def test_without_an_evaluation_there_are_curves_alone_and_no_model_unless_it_is_wanted(finished, monkeypatch):
    run, out, images, _ = finished
    monkeypatch.setattr(mlflow_model, "save", lambda *_: pytest.fail("log_model=false"))
    log = Log()
    artifacts.make(run, out, images, None, log)
    assert (log.lines, log.files, log.models) == ([], [out / "curves.png"], [])
    assert sorted(path.name for path in out.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_synthetic_images_leave_no_model(run_of, finished):
    _, out, _, _ = finished
    run = replace(run_of("model=tiny", "data=synthetic", "data.classes=3"), track=Mlflow(uri="http://x", run_name="y"))
    log = Log()
    artifacts.make(run, out, source.open_source(run.data), all_predicted([0], [1]), log)
    assert (log.lines, log.files, log.models) == ([], [out / "curves.png", out / "confusion.png"], [])


def test_without_mlflow_nothing_is_written(run_of, finished):
    _, out, images, predictions = finished
    artifacts.make(run_of("model=tiny", "track=off"), out, images, predictions, Log())
    assert [path.name for path in out.iterdir()] == ["metrics.jsonl"]


def test_what_fails_is_reported_in_a_line_and_the_rest_is_made(finished):
    """The run has no checkpoint, and its metrics are gone."""
    run, out, images, predictions = finished
    run.track.log_model = True
    (out / "metrics.jsonl").unlink()
    log = Log()
    artifacts.make(run, out, images, predictions, log)
    curves, model = log.lines
    assert curves.startswith("curves.png could not be written: FileNotFoundError: ")
    assert model.startswith("the MLflow model could not be written: UserError: ") and "\n" not in curves + model
    assert log.files == [out / "confusion.png", out / "mistakes.png"] and not log.models


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
def test_jobs_of_a_sweep_log_no_model_unless_their_knobs_want_one(knobs, wanted):
    assert artifacts.wants_model(Mlflow(uri="http://x", run_name="y", **knobs)) is wanted
