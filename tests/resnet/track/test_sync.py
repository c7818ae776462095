"""What a finished run that was killed before MLflow had everything sends at the next start."""

import time
from pathlib import Path

import pytest

from resnet import rundir, train, uris
from resnet.config import fingerprint
from resnet.config.sweep import Sweep
from resnet.rundir import result
from resnet.sweep import command, execution, places
from resnet.sweep.job import Job
from resnet.track import store
from resnet.track.tracker import Tracker


def points(client, run_id):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, "train/loss")]


@pytest.fixture
def killed(run_at, tmp_path):
    """(run, its MLflow id) of a finished run in a folder of any name, whose process was killed before MLflow had all."""
    home = tmp_path / "job%2Ffoo ${x} b\\"
    home.mkdir()
    run = run_at(home, "model=tiny", "data=digits", "out=here", "track.system_metrics_s=1000")
    assert run.track.uri == uris.sqlite(home / "mlflow.db")
    run.out = str(home / "run")
    out = Path(run.out)
    rundir.claim(run, out)
    assert rundir.load(out) == run
    tracker = Tracker(out, run.track, fingerprint.flat(run), {"recipe": "none"})
    tracker.log(1, {"train/loss": 2.0})
    deadline = time.monotonic() + 60
    while not ((state := store.SyncState.read(out, run.track.uri)) and state.sent) and time.monotonic() < deadline:
        time.sleep(0.05)
    tracker.sender.retry = lambda _work: 1 / 0  # the kill, for its thread
    tracker.log(2, {"train/loss": 1.0})
    result.write(out, {"final/top1": 1.0, "fingerprint": fingerprint.fingerprint(run)})
    tracker.close("FINISHED")
    return run, tracker.run_id


def test_the_next_start_sends_the_rest_and_the_one_after_it_nothing(killed, monkeypatch, capsys):
    run, run_id = killed
    client = store.connect(run.track.uri)
    assert points(client, run_id) == [(1, 2.0)]
    monkeypatch.setattr(command, "command_line", lambda: [run])
    monkeypatch.setattr(train, "check_plan", lambda _run: None)
    monkeypatch.setattr("resnet.training.progress.report", lambda *_words: None)
    train.main()
    assert "this run has finished already" in (printed := capsys.readouterr().out)
    assert f"MLflow ({run.track.uri}) has not got all of it; sending the rest" in printed
    assert points(client, run_id) == [(1, 2.0), (2, 1.0)]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(run_id)} == {"config.yaml", "result.json"}
    train.main()
    assert "sending" not in capsys.readouterr().out


def test_a_store_that_is_still_away_costs_a_line(killed, capsys, monkeypatch):
    run, _ = killed
    uris.sqlite_path(run.track.uri).unlink()
    uris.sqlite_path(run.track.uri).mkdir()
    monkeypatch.setattr(execution, "open_sweeps", [])
    job = Job(0, run, ["seed=1"])
    sweep = execution.Execution(Sweep(), {}, [job], lambda _words, _number: job, places.Places(Sweep()), None)
    capsys.readouterr()
    assert sweep.start(job, places.Place(run.cluster.device)) is None
    assert job.code == 0 and "unable to open database file" in capsys.readouterr().err
