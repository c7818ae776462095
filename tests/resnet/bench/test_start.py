"""The benchmark of starts: what counts as an import, what it refuses, and a small real one."""

import json
import subprocess
import sys

import pytest

from resnet import UserError
from resnet.bench import start


def test_the_row_of_a_network_is_that_of_conf():
    row = json.loads(start.row_of("resnext50"))
    assert (row["depths"], row["groups"], row["width"], row["block"]) == ([3, 4, 6, 3], 32, 4, "bottleneck")


def test_modules_of_a_package_are_counted_and_those_of_the_like_name_are_not(monkeypatch):
    said = "\n".join(
        f"import time:  1 |  2 | {name}" for name in ("  tensorflow.python", "tensorflow", "tensorflow_io", "re")
    )
    done = subprocess.CompletedProcess([], 0, "", f"import time: self [us] | cumulative | imported package\n{said}\n")
    monkeypatch.setattr(start, "wall_s", lambda *_words: (0.1, done))
    assert (start.imported("tensorflow", [], 0), start.imported("mlflow", [], 0)) == (2, 0)


def test_answers_are_given_without_tensorflow():
    rows = start.answers(start.Start(rounds=1))
    assert [row.what for row in rows] == [
        "--help, s",
        "a refused configuration, s",
        "--help, modules of TensorFlow imported",
        "a refused configuration, modules of TensorFlow imported",
    ]
    assert [row.ours for row in rows[2:]] == [[0.0], [0.0]] and rows[3].verdict == "reached"


def test_an_end_that_was_not_expected_is_told():
    with pytest.raises(UserError, match=r"^-c import sys; sys\.exit\(3\): exit status 3, not 0: not a word$"):
        start.wall_s([sys.executable, "-c", "import sys; sys.exit(3)"], 0)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match=r"^rounds=0: must be above 0"):
        start.Start(rounds=0)


@pytest.mark.slow
def test_a_small_one_measures_first_steps(tmp_path):
    words = ["model=tiny", "size=32", "batch=8", "rounds=1", f"out={tmp_path}"]
    done = subprocess.run([sys.executable, "-m", "resnet.bench", "start", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "start.json").read_text())["rows"]
    assert [row["what"] for row in rows[:2]] == [
        "tiny fp32, start to first step with track=off, s",
        "tiny fp32, start to first step with MLflow, s",
    ]
    assert all(0 < row["fraction_of_limit"] < 1.5 and row["ratio"] > 0 for row in rows[:2])
