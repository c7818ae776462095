"""The benchmark of starts: what counts as an import, what it refuses, and a small real one."""

import json
import subprocess
import sys

import pytest

from resnet import UserError
from resnet.bench import start
from resnet.bench.result import Result


def test_modules_of_a_package_are_counted_and_those_of_the_like_name_are_not(monkeypatch):
    names = ("resnet.cli", "  tensorflow.python", "tensorflow", "tensorflow_io", "re")
    lines = "\n".join(f"import time:  1 |  2 | {name}" for name in names)
    stderr = f"import time: self [us] | cumulative | imported package\n{lines}\n"
    monkeypatch.setattr(start, "run_process", lambda *_words: (0.1, stderr))
    assert (start.imported("tensorflow", [], 0), start.imported("mlflow", [], 0)) == (2, 0)


def test_what_lists_no_modules_or_does_not_answer_is_no_measurement(monkeypatch):
    monkeypatch.setattr(start, "run_process", lambda *_words: (0.1, "hello"))
    with pytest.raises(UserError, match="does not list the modules"):
        start.imported("tensorflow", [], 0)
    with pytest.raises(UserError, match=r"^resnet\.train --help: does not answer with nesterov$"):
        start.answers(start.Start(rounds=1), Result())


def test_answers_come_without_tensorflow():
    result = Result()
    start.answers(start.Start(rounds=1), result)
    assert [row.what for row in result.rows] == [
        "--help, s",
        "a refused configuration, s",
        "--help, modules of TensorFlow imported",
        "a refused configuration, modules of TensorFlow imported",
    ]
    assert [row.ours for row in result.rows[2:]] == [[0.0], [0.0]]


def test_an_unexpected_exit_status_is_an_error():
    with pytest.raises(UserError, match=r"^-c import sys; sys\.exit\(3\): exit status 3, not 0: no message$"):
        start.run_process([sys.executable, "-c", "import sys; sys.exit(3)"], 0)


@pytest.mark.slow
def test_a_small_one_measures_first_steps(tmp_path):
    words = ["model=tiny", "size=32", "batch=8", "rounds=1", f"out={tmp_path}"]
    process = subprocess.run([sys.executable, "-m", "resnet.bench", "start", *words], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    rows = json.loads((tmp_path / "start.json").read_text())["rows"]
    assert [row["what"] for row in rows[:2]] == [
        "tiny fp32, start to first step with track=off, s",
        "tiny fp32, start to first step with MLflow, s",
    ]
    assert all(0 < row["fraction_of_limit"] < 1.5 and row["ratio"] > 0 for row in rows[:2])
