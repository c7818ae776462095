"""The command line of all benchmarks, and where an outcome goes."""

import json
import subprocess
import sys

import pytest

from resnet import UserError
from resnet.bench import __main__ as bench
from resnet.bench import logged
from resnet.bench.result import Kept, Outcome, Row, at_least

FOUND = Outcome(
    "What.",
    [Row("step (bf16), images/s", [12.0, 30.0], [10.0, 20.0], "Keras, fit", at_least(1.0), [24.0, 40.0])],
    {"cores": "2"},
)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(bench.COMMANDS, "toy", (Kept, lambda _asked: FOUND))


@pytest.mark.usefixtures("toy")
def test_an_outcome_is_printed_with_its_command_and_kept_where_it_is_asked_for(tmp_path, capsys):
    bench.measure("toy", ["out=a folder"])
    assert "`python -m resnet.bench toy`" in capsys.readouterr().out
    assert json.loads((tmp_path / "a folder" / "toy.json").read_text())["command"] == "python -m resnet.bench toy"
    assert not list(tmp_path.glob("mlflow*"))


@pytest.mark.usefixtures("toy")
def test_mlflow_has_it_in_the_working_folder(tmp_path, capsys):
    bench.measure("toy", ["track=mlflow"])
    run_id = capsys.readouterr().err.split()[-1]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(run_id)
    assert client.get_experiment(run.info.experiment_id).name == "bench"
    assert (run.info.run_name, run.info.status) == ("toy", "FINISHED")
    assert run.data.tags["command"] == "python -m resnet.bench toy" and run.data.tags["cores"] == "2"
    assert run.data.metrics == {
        f"step bf16 images/s to Keras fit/{name}": pytest.approx(value)
        for name, value in {"ours": 21.0, "theirs": 15.0, "ratio": 1.35, "of limit": 0.625}.items()
    }
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["toy.json", "toy.md"]


@pytest.mark.usefixtures("toy")
def test_a_store_that_is_not_there_is_told_after_the_outcome(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
    with pytest.raises(UserError, match=r"^track=mlflow: http://127.0.0.1:1: ") as raised:
        bench.measure("toy", ["track=mlflow"])
    assert "secret" not in str(raised.value) and "| step (bf16), images/s | 21 |" in capsys.readouterr().out


def test_names_of_metrics_are_those_mlflow_takes():
    assert set(logged.metrics(FOUND)) == {
        f"step bf16 images/s to Keras fit/{name}" for name in ("ours", "theirs", "ratio", "of limit")
    }


def test_help_names_every_command_and_imports_no_tensorflow():
    code = (
        "import sys; from resnet import bench; sys.argv[1:] = []; bench.main(); sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:] if line and line[0] != " "] == list(bench.COMMANDS)


def test_a_reproducing_command_is_quoted_for_a_shell():
    assert (
        bench.shown("accuracy", ["words=a=1 b=2", "out=x", "track=off"])
        == "python -m resnet.bench accuracy 'words=a=1 b=2'"
    )
