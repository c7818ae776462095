"""The MLflow store: creating it, what a run's folder says of it, and its troubles."""

import os
import shutil
import sqlite3
import threading
import time

import pytest

from resnet import UserError, files, uris
from resnet.config.track import Mlflow
from resnet.track import client as opening
from resnet.track import store
from resnet.track.tracker import Tracker


@pytest.mark.parametrize("text", ["", "{", "[]", '{"uri": "u"}'])
def test_a_torn_note_of_the_mlflow_run_is_no_note(tmp_path, text):
    assert store.run_id(tmp_path, "u") is None
    (tmp_path / store.FILE).write_text(text)
    assert store.run_id(tmp_path, "u") is None


@pytest.mark.slow  # tables that another process is creating are waited for: below
def test_two_processes_on_a_fresh_database_both_succeed_in_silence(tmp_path, spawn):
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
    started = [spawn(None, tmp_path / name, uri, before=program) for name in ("one", "two")]
    printed = [(process.finish().stdout, process.stderr) for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    assert printed == [("", "")] * 2  # not a word of MLflow's or Alembic's
    client = store.connect(uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "resnet")
    runs = client.search_runs([experiment.experiment_id])
    assert {(run.info.run_name, run.info.status) for run in runs} == {("one", "FINISHED"), ("two", "FINISHED")}
    assert all(run.data.metrics["train/loss"] == 1.0 for run in runs)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A database with MLflow's tables."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    store.connect(uris.sqlite(path))
    return path


def test_tables_that_another_process_is_creating_are_waited_for(tmp_path, database):
    """`mlflow ui`, which knows nothing of our lock, has begun: first versions of the tables are there."""
    path = tmp_path / "mlflow.db"

    def migrate():
        for version in ("one", "two", "three"):
            with sqlite3.connect(path) as half:
                half.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num TEXT)")
                half.execute("DELETE FROM alembic_version")
                half.execute("INSERT INTO alembic_version VALUES (?)", [version])
            time.sleep(0.7)
        sqlite3.connect(database).backup(sqlite3.connect(path))

    ui = threading.Thread(target=migrate)
    ui.start()
    while not path.exists():
        time.sleep(0.01)
    client = store.connect(uris.sqlite(path))
    assert not ui.is_alive() and [one.name for one in client.search_experiments()] == ["Default"]


def test_a_database_has_its_name_only_when_it_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_names: (_ for _ in ()).throw(OSError("killed here")))
    with pytest.raises(OSError, match="killed here"):
        store.connect(uris.sqlite(tmp_path / "mlflow.db"))
    assert [path.name for path in tmp_path.iterdir()] == [".mlflow.db.lock"]


# ------------------------------------------------------------------------------------------------------------- troubles
def test_a_deleted_experiment_is_told_at_once_with_the_way_out(tmp_path, database, capsys):
    copy = shutil.copy(database, tmp_path)
    os.utime(copy, (0, 0))  # one that was written just now is waited for
    uri = uris.sqlite(copy)
    client = store.connect(uri)
    number = client.create_experiment("gone")
    client.delete_experiment(number)
    (tmp_path / "config.yaml").write_text("a: 1")
    tracker = Tracker(tmp_path, Mlflow(uri=uri, run_name="x", experiment="gone"), {}, {})
    tracker.log(1, {"train/loss": 1.0})
    trouble = tracker.close("FINISHED")
    way_out = f"MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {number}"
    assert f"track.experiment=gone: was deleted; {way_out} restores it, or give another" in trouble
    assert "was deleted" in capsys.readouterr().err


def test_a_file_that_is_no_database_is_told_at_once(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database\n" * 100)
    began = time.monotonic()
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        store.connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert time.monotonic() - began < 20  # MLflow alone tries for two minutes


def test_a_lock_that_is_never_released_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "LIMIT_S", 0.1)
    with (
        files.locked(tmp_path / ".mlflow.db.lock"),
        pytest.raises(TimeoutError, match=r"\.mlflow\.db\.lock, and does not"),
    ):
        store.connect(f"sqlite:///{tmp_path}/mlflow.db")


# --------------------------------------------------------------------------------------------- MLflow's own variables
WORDS = ("model=tiny", "data=digits")


def test_the_store_may_come_from_mlflows_own_variables(run_of, monkeypatch, tmp_path):
    assert run_of(*WORDS).track.uri == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(UserError, match=r"^track.uri: must be given, as in .*MLFLOW_TRACKING_URI"):
        run_of("track=server", *WORDS)
    monkeypatch.setenv(uris.STORE, "")
    monkeypatch.setenv(uris.TRACKING, "http://me:p@ss@host:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "birds")
    for words in (("track=server",), ()):
        track = run_of(*words, *WORDS).track
        assert (track.uri, track.experiment, uris.login(track.uri)) == ("http://host:5000", "birds", ("me", "p@ss"))
    explicit = run_of("track.uri=http://other:1", "track.experiment=fish", *WORDS).track
    assert (explicit.uri, explicit.experiment) == ("http://other:1", "fish")
    assert run_of("track=off", *WORDS).track.name == "off"
    monkeypatch.setenv(uris.TRACKING, "runs of mine")
    assert run_of(*WORDS).track.uri == (tmp_path / "runs of mine").as_uri()
