"""The MLflow store: creating it, what a run's folder says of it, and its password."""

import subprocess
import sys

import pytest

from resnet import UserError, rundir
from resnet.config import track
from resnet.track import store


@pytest.mark.parametrize("text", ["", "{", "[]", '{"uri": "u"}'])
def test_a_torn_note_of_the_mlflow_run_is_no_note(tmp_path, text):
    assert store.run_id(tmp_path, "u") is None
    (tmp_path / store.FILE).write_text(text)
    assert store.run_id(tmp_path, "u") is None


def test_two_processes_on_a_fresh_database_both_succeed_in_silence(tmp_path):
    """Racing to create the tables breaks the file for good: one makes them, the other waits."""
    program = (
        "import sys; from pathlib import Path\n"
        "from resnet.track.tracker import Tracker; from resnet.config.track import Mlflow\n"
        "out = Path(sys.argv[1]); out.mkdir(); (out / 'config.yaml').write_text('a: 1')\n"
        "tracker = Tracker(out, Mlflow(uri=sys.argv[2], run_name=out.name), {'a': 1}, {})\n"
        "tracker.log(1, {'train/loss': 1.0})\n"
        "sys.exit(tracker.close('FINISHED'))\n"
    )
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / name), uri], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for name in ("one", "two")
    ]
    printed = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    assert printed == [b"", b""]  # not a word of MLflow's or Alembic's
    client = store.connect(uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "resnet")
    runs = client.search_runs([experiment.experiment_id])
    assert {(run.info.run_name, run.info.status) for run in runs} == {("one", "FINISHED"), ("two", "FINISHED")}
    assert all(run.data.metrics["train/loss"] == 1.0 for run in runs)


# ------------------------------------------------------------------------------------------------------------- secrets
SECRET = "http://me:s3cr%40t@host:5000/x"


def test_a_password_in_the_store_goes_nowhere_but_into_the_environment(run_of, monkeypatch, tmp_path):
    monkeypatch.delenv(track.SECRET, raising=False)
    run = run_of("track=server", f"track.uri='{SECRET}'", "model=tiny", "data=digits")
    assert run.track.uri == "http://host:5000/x"
    rundir.claim(run, tmp_path / "run")
    assert "s3cr" not in (tmp_path / "run" / "config.yaml").read_text()
    asked = []
    monkeypatch.setattr("mlflow.MlflowClient", asked.append)
    store.connect(run.track.uri)
    store.connect("http://elsewhere:5000")
    assert asked == [SECRET, "http://elsewhere:5000"]
    assert track.redact(f"cannot reach {SECRET}: me:s3cr%40t") == "cannot reach http://host:5000/x: ***"


def test_the_server_may_come_from_mlflows_own_variable(run_of, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"^track.uri: must be given, as in .*MLFLOW_TRACKING_URI"):
        run_of("track=server", "model=tiny", "data=digits")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert run_of("track=server", "model=tiny", "data=digits").track.uri == "http://host:5000"
