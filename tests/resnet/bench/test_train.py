"""The benchmark of a whole training: its arithmetic by hand, what it refuses, and a small real one."""

import json
import subprocess
import sys

import pytest

from resnet import UserError
from resnet.bench import images, train, trainings
from resnet.bench.train import Train


def test_the_ideal_shares_all_cores_between_reading_and_computing():
    """0.05 s to compute an image on both cores, and 0.1 s of one core to read it: 0.05 s of two."""
    assert train.ideal(20.0, 10.0, 2) == pytest.approx(10.0)


def test_a_checkpoint_costs_what_the_stretch_after_it_takes_longer_than_the_next(monkeypatch):
    times, now = {}, 1000.0
    for step in range(3, 37, 3):  # 1 s a step; 0.2, 0.4, ... more in the three that follow steps 6, 12, ...
        times[step] = now
        now += 3.0 + (0.2 * step / 6 if step % 6 == 0 else 0)
    words = []
    monkeypatch.setattr(trainings, "result_of", lambda given, _out: words.extend(given))
    monkeypatch.setattr(trainings, "times", lambda _out: times)
    row = train.checkpoints(Train(stretch=3, rounds=5))
    assert {"save_every_steps=6", "log_every_steps=3", "steps=36", "data=synthetic"} <= set(words)
    assert row.theirs == pytest.approx([100.0] * 5)
    assert row.ours == pytest.approx([100.2, 100.4, 100.6, 100.8, 101.0])
    assert row.ratio == pytest.approx(1.006) and row.verdict == "reached"


def test_words_of_a_training_name_each_knob_once():
    for data in ("synthetic", "folder/of/shards"):
        names = [word.partition("=")[0] for word in trainings.words(Train(), 5, data)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("knobs", "said"), [({"rounds": 0}, "^rounds=0: "), ({"steps": 2}, "^steps=2: must be above 2")]
)
def test_what_cannot_be_measured_is_refused(knobs, said):
    with pytest.raises(UserError, match=said):
        Train(**knobs)


def test_shards_have_as_many_images_as_asked_for(tmp_path):
    from resnet.config.data import Records
    from resnet.data import source

    opened = source.open_source(Records(dir=str(images.shards(tmp_path / "new", images.several(2), 7)), classes=1000))
    assert (opened.train_images, opened.eval_images) == (7, 7)


def test_a_training_that_fails_is_told_with_its_last_line(tmp_path):
    with pytest.raises(UserError, match=r"^a training: error: model=nothing: no such option"):
        trainings.result_of(["model=nothing"], tmp_path / "run")


@pytest.mark.slow
def test_a_small_one_measures_all_three(tmp_path):
    words = ["model=tiny", "size=32", "batch=8", "rounds=2", "steps=4", "eval_steps=3", "stretch=3", f"out={tmp_path}"]
    done = subprocess.run([sys.executable, "-m", "resnet.bench", "train", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "train.json").read_text())["rows"]
    assert [(row["against"], len(row["ours"])) for row in rows] == [
        ("ideal of its parts", 2),
        ("on synthetic images", 2),
        ("", 2),
        ("forward passes alone", 2),
        ("", 1),
        ("without one", 2),
    ]
    assert rows[4]["ours"] == [1.0] and rows[4]["verdict"] == "reached"
