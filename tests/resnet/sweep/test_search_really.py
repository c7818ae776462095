"""A real search of real trainings: pruned jobs, one that fails, and a kill of the sweep half-way."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from sweep_runs import family, rows

from resnet import cli
from resnet.rundir import metrics, result
from resnet.track import store

optuna = pytest.importorskip("optuna")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LINE = (
    "-m model=tiny data=digits schedule=constant batch=32 epochs=4 eval_every_epochs=1 out=mine "
    "optim.lr=0.1,0.00001,0.000001,0.0001,1e30 sweep.sampler=random sweep.trials=9 sweep.pruner=halving sweep.jobs=2"
)


def study_of(folder):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    return optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))


def jobs_of(folder):
    """{number: (learning rate, state)} of the jobs in the study."""
    trials = [trial for trial in study_of(folder).trials if "job" in trial.user_attrs]
    return {trial.user_attrs["job"]: (trial.params["optim.lr"], trial.state.name) for trial in trials}


def test_a_search_prunes_and_fails_and_goes_on_after_a_kill(tmp_path):
    command = [sys.executable, "-m", "resnet.train"]
    environment = {name: value for name, value in os.environ.items() if name != "RESNET_TRACK_URI"}
    folder, log = tmp_path / "mine", tmp_path / "log"
    with log.open("w") as file:
        first = subprocess.Popen(
            [*command, *shlex.split(LINE)], cwd=tmp_path, env=environment, stdout=file, stderr=file
        )
    deadline = time.monotonic() + 300
    while not [path for path in folder.glob(f"[1-9]/{metrics.FILE}") if "eval/top1" in path.read_text()]:
        assert first.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = jobs_of(folder)
    assert "RUNNING" in {state for _, state in before.values()}

    deadline = time.monotonic() + 300
    while True:  # the jobs save and end; until then their folders are in use
        words = [*command, "sweep.resume=mine"]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
        )
        if "another process trains here" not in done.stderr or time.monotonic() > deadline:
            break
    after = jobs_of(folder)
    assert all(after[number][0] == rate for number, (rate, _) in before.items())
    assert sorted(rate for rate, _ in after.values()) == sorted(["0.1", "1e-05", "1e-06", "0.0001", "1e+30"])
    states = dict(after.values())
    assert states["1e+30"] == "FAIL" and "PRUNED" in states.values() and "COMPLETE" in states.values()

    assert done.returncode == cli.FAILED
    assert done.stderr.splitlines()[-1].startswith("error: 1 of the sweep's jobs failed: job ")
    words = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
    table = {int(row[0]): row[-1] for row in rows((folder / "summary.md").read_text())}
    assert table == {number: words[state] for number, (_, state) in after.items()}

    parent, children = family(store.connect(f"sqlite:///{tmp_path}/mlflow.db"), folder)
    ends = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
    runs = {name.removeprefix("optim.lr="): run for name, run in children.items()}
    assert {rate: run.info.status for rate, run in runs.items()} == {
        rate: ends[state] for rate, state in states.items()
    }
    assert {rate for rate, run in runs.items() if run.data.tags.get("pruned") == "true"} == {
        rate for rate, state in states.items() if state == "PRUNED"
    }
    for number, (_, state) in after.items():
        assert (result.read(folder / str(number)) is not None) == (state == "COMPLETE")
        last = (folder / str(number) / "output.log").read_text().splitlines()[-1]
        assert last.startswith("pruned by its search; saved step-") == (state == "PRUNED"), last
    best = max(
        (result.read(folder / str(n))["final/top1"], n) for n, (_, state) in after.items() if state == "COMPLETE"
    )[1]
    assert parent.data.tags["sweep.best"] == f"job {best} (optim.lr={after[best][0]})"
    files = {file.path for file in store.connect(f"sqlite:///{tmp_path}/mlflow.db").list_artifacts(parent.info.run_id)}
    assert {"best.yaml", "config.yaml", "summary.md"} <= files
