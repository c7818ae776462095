"""Pictures of a training: read back pixel by pixel, against what they are said to show."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from resnet.config import compose
from resnet.data import pipeline, source
from resnet.prepare import show
from resnet.rundir import metrics
from resnet.training import plots
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
def told(out, *lines):
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


def test_of_a_step_that_was_done_twice_the_last_one_counts_and_what_came_after_the_first_is_gone(tmp_path):
    first = [(step, {"train/loss": 9.0, "train/lr": 0.1}) for step in (10, 20, 30, 35)]
    again = [(step, {"train/loss": step / 10}) for step in (20, 30, 40)]
    out = told(tmp_path / "run", *first, (30, {"eval/top1": 0.5}), *again, (40, {"eval/top1": 0.7}))
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "train/lo')  # the power went
    found = metrics.read(out / "metrics.jsonl")
    assert found["train/loss"] == {10: 9.0, 20: 2.0, 30: 3.0, 40: 4.0}
    assert found["eval/top1"] == {30: 0.5, 40: 0.7}
    assert list(found["train/lr"]) == [10, 20, 30, 35]


def test_every_panel_shows_its_own_curve(tmp_path):
    lines = [
        (
            step,
            {"train/loss": 3 - step / 50, "train/lr": step / 100, "train/images_per_s": 50.0, "train/epoch": step / 10},
        )
        for step in range(1, 101)
    ]
    lines += [(step, {"eval/top1": step / 200, "eval/loss": 1.0}) for step in (25, 50, 75, 100)]
    loss, top1, lr, speed = panels(plots.curves(told(tmp_path / "run, of $x$", *lines)))
    falling, rising, rate, flat = inked(loss, BLUE), inked(top1, BLUE), inked(lr, BLUE), inked(speed, BLUE)
    assert len(inked(loss, ORANGE)) > 50  # of the evaluation
    assert not len(inked(lr, ORANGE)) and not len(inked(top1, ORANGE))
    below = falling[falling[:, 0] > 70]  # not the legend
    assert np.corrcoef(below.T)[0, 1] > 0.9  # down is down
    assert np.corrcoef(rate.T)[0, 1] < -0.9 and rising[-1][1] < rising[0][1]
    assert np.ptp(flat[:, 0]) < 12 and np.ptp(flat[:, 1]) > 300


def test_a_run_that_recorded_nothing_has_a_picture_that_says_so(tmp_path):
    loss, top1, lr, speed = panels(plots.curves(told(tmp_path / "run", (1, {"train/lr": 0.1}))))
    assert len(inked(lr, BLUE)) and not len(inked(speed, BLUE))
    middle = [panel[150:300, 250:450] for panel in (loss, top1, speed)]
    assert all((part < 100).any() for part in middle)  # "not recorded"


# ------------------------------------------------------------------------------------------------------------- confusion
def test_the_matrix_is_dark_where_there_are_many(tmp_path):
    for name, counted in (("one.png", np.diag([5, 5])), ("other.png", np.array([[0, 5], [5, 0]]))):
        assert plots.confusion(tmp_path / name, counted, ["a", "b"], "") == tmp_path / name
    shown = [np.asarray(Image.open(tmp_path / name).convert("L"), int) for name in ("one.png", "other.png")]
    difference = shown[0] - shown[1]
    top, left = (np.flatnonzero(difference.any(axis)) for axis in (1, 0))
    box = difference[top[0] : top[-1], left[0] : left[-1]]
    quarters = [np.sign(half.mean()) for rows in np.array_split(box, 2) for half in np.array_split(rows, 2, axis=1)]
    assert quarters == [-1, 1, 1, -1]  # darker where the diagonal is


def test_any_name_of_a_class_can_be_drawn(tmp_path, recwarn):
    counted = np.arange(100).reshape(10, 10)
    counted[3] = 0
    plots.confusion(tmp_path / "confusion.png", counted, ODD, "top-1")
    assert not recwarn
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.format == "PNG" and min(image.size) > 300


# -------------------------------------------------------------------------------------------------------------- mistakes
@pytest.fixture(scope="module")
def images(prepared, tmp_path_factory):
    """Thirty evaluation images of ten classes."""
    folder = prepared({f"class {number}": 6 for number in range(10)}, tmp_path_factory.mktemp("photos") / "shards")
    return source.open_source(compose.one_group("data", "data=folder", dir=str(folder), image_size=48, eval_resize=56))


def cells(path):
    """(what stands in the cells of the page, uint8 [CELL, CELL, 3] each; the height of the page)."""
    page = np.asarray(Image.open(path).convert("RGB"))
    found = []
    for top in range(show.MARGIN + 40, page.shape[0] - show.CELL, show.CELL + 2 * show.CAPTION + show.GAP):
        for column in range(show.COLUMNS):
            left = show.MARGIN + column * (show.CELL + show.GAP)
            found.append(page[top : top + show.CELL, left : left + show.CELL])
    return [cell for cell in found if (cell != 255).any()], page


def test_the_page_holds_the_surest_mistakes_as_the_network_saw_them_the_surest_first(images, tmp_path):
    count = images.eval_images
    random = np.random.default_rng(1)
    pixels, labels = next((a.numpy(), b.numpy()) for a, b, _ in pipeline.evaluation(images, count))
    said = np.where(np.arange(count) % 3, (labels + 1) % 10, labels).astype(np.int32)
    answers = Predictions(labels, said, random.random(count).astype(np.float32), np.ones(count, bool))
    made = plots.of_answers(tmp_path, images, answers, ODD)
    assert [path.name for path in made] == ["confusion.png", "mistakes.png"]
    shown, page = cells(tmp_path / "mistakes.png")
    wrong = sorted((number for number in range(count) if number % 3), key=lambda number: -answers.probability[number])
    assert len(shown) == len(wrong) == 20
    for cell, number in zip(shown, wrong, strict=True):
        np.testing.assert_array_equal(cell, np.asarray(show.fitted(pixels[number])))
    red = (np.abs(page.astype(int) - (0xB4, 0x23, 0x18)) < 30).all(2)
    assert red.any(1).nonzero()[0][0] > show.MARGIN + 40 + show.CELL  # under the first row


def test_there_are_no_more_than_so_many_of_them(images, tmp_path):
    count = images.eval_images
    labels = next(part[1].numpy() for part in pipeline.evaluation(images, count))
    answers = Predictions(labels, (labels + 1) % 10, np.ones(count, np.float32), np.ones(count, bool))
    plots.mistakes(tmp_path / "page.png", images, answers, ODD, "a title")
    assert count > plots.MISTAKES == len(cells(tmp_path / "page.png")[0])


def test_a_network_that_makes_no_mistake_has_an_empty_page(images, tmp_path):
    labels = np.zeros(images.eval_images, np.int32)
    answers = Predictions(labels, labels, np.ones(len(labels), np.float32), np.ones(len(labels), bool))
    plots.mistakes(tmp_path / "page.png", images, answers, ODD, "top-1 100 %")
    shown, page = cells(tmp_path / "page.png")
    assert not shown and (page < 100).any()


def test_synthetic_images_have_no_page_of_mistakes(tmp_path):
    images = source.open_source(compose.one_group("data", "data=synthetic", classes=3, image_size=8))
    answers = Predictions(np.int32([0, 1]), np.int32([1, 1]), np.float32([1, 1]), np.array([True, True]))
    assert plots.of_answers(tmp_path, images, answers, ["a", "b", "c"]) == [tmp_path / "confusion.png"]
