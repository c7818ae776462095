"""`eval_sizes=` and `data.eval_flip` of `python -m resnet.evaluate`, counted again in NumPy."""

import csv
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from resnet import UserError, evaluate
from resnet.data import pipeline, source
from resnet.model import resnet, weights
from resnet.training import artifacts
from resnet.training.trained import read as read_weights


@pytest.fixture(scope="module")
def trained(trained_once, tmp_path_factory):
    """A run on images of 48 px of a short side of 56; only read it."""
    return trained_once.copy("plain", tmp_path_factory.mktemp("trained"))


def flipped_scores(run, network, settings):
    """(top-1, loss) of the mean of the logits of each image and its mirror image, and the confusions [3, 3]."""
    batches = [[part.numpy() for part in batch] for batch in pipeline.evaluation(source.open_source(settings), 6)]
    pixels, labels, mask = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    both = [((one.astype(np.float64) - run.data.mean) / run.data.std) for one in (pixels, pixels[:, :, ::-1])]
    straight, mirrored = (network(one.astype(np.float32), training=False).numpy().astype(float) for one in both)
    assert np.abs(straight - mirrored).max() > 1e-3
    logits, labels = ((straight + mirrored) / 2)[mask > 0], labels[mask > 0]
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    likely = exponentials / exponentials.sum(1, keepdims=True)
    confusion = np.zeros([3, 3], int)
    np.add.at(confusion, (labels, logits.argmax(1)), 1)
    return (np.trace(confusion) / len(labels), -np.log(likely[np.arange(len(labels)), labels]).mean()), confusion


def test_each_size_is_evaluated_with_mirror_images_and_the_files_are_of_the_networks_own(
    trained, tmp_path, monkeypatch, capsys
):
    words = [trained.out, "eval_sizes=[40]", "data.eval_flip=true", f"out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["resnet.evaluate", *words])
    monkeypatch.setattr(artifacts, "of_predictions", lambda *_: [])  # the plots
    evaluate.main()
    found = json.loads((tmp_path / "scores.json").read_text())
    assert [(one["image_size"], one["eval_resize"]) for one in found["sizes"]] == [(40, 47), (48, 56)]
    network = resnet.build(trained.model, 3, "float32")
    weights.load_into(network, read_weights(trained.out), trained.out)
    for one in found["sizes"]:
        settings = dataclasses.replace(trained.data, image_size=one["image_size"], eval_resize=one["eval_resize"])
        wanted, confusion = flipped_scores(trained, network, settings)
        assert (one["top1"], one["loss"]) == (pytest.approx(wanted[0]), pytest.approx(wanted[1], rel=1e-5))
        assert one["seen"] == confusion.sum()
    for key in ("top1", "top5", "loss", "seen"):
        assert found[key] == found["sizes"][1][key]
    with (tmp_path / "confusion.csv").open(newline="", encoding="utf-8") as file:
        np.testing.assert_array_equal(np.array([line[1:] for line in list(csv.reader(file))[1:]], int), confusion)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    head = printed.index(["size", "resize", "top-1", "%", "top-5", "%", "loss", "images/s"])
    for line, one in zip(printed[head + 1 :], found["sizes"], strict=False):
        assert line[:3] == [str(one["image_size"]), str(one["eval_resize"]), f"{100 * one['top1']:.2f}"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("eval_sizes=many", "eval_sizes=many: must be sides in pixels, such as eval_sizes=[160,224,288]"),
        ("eval_sizes=[]", "eval_sizes=[]: must be sides"),
        ("eval_sizes=[160,-2]", "eval_sizes=[160,-2]: must be sides"),
        ("eval_sizes=[4]", "eval_sizes=4: data.image_size=4: must be at least 8 pixels"),
        ("eval_sizes=[9000]", "eval_sizes=9000: data.image_size=9000: must be at most 4,096"),
    ],
)
def test_a_size_that_cannot_be_is_refused_before_anything_is_written(
    trained, tmp_path, monkeypatch, capsys, exit_status, word, message
):
    monkeypatch.setattr(sys, "argv", ["resnet.evaluate", trained.out, word, f"out={tmp_path}/scores"])
    assert exit_status(evaluate.main) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") and err.count("\n") == 1, err
    assert not Path(tmp_path, "scores").exists()


def test_the_crop_keeps_its_share_of_the_short_side():
    records = {"dir": "x", "classes": 2}
    for knobs, size, short in (
        ({}, 288, 329),
        ({"eval_resize": 232}, 288, 298),
        ({"eval_crop": 0.95}, 288, 303),
        ({"eval_crop": 0.95, "eval_resize": None}, 160, 168),
    ):
        sized = evaluate.at_size(evaluate.Records(**records, **knobs), size)
        assert (sized.image_size, sized.eval_short) == (size, short)
    with pytest.raises(UserError, match="eval_sizes=160: is for photographs, and data=synthetic has none"):
        evaluate.at_size(evaluate.Data(name="synthetic", classes=2), 160)
