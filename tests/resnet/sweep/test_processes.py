"""Sweeps in MLflow, and in real processes: what is left of jobs that fail or are stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import job_program
import psutil
import pytest
from sweep_runs import PAIR, family, rows

import resnet
from resnet import cli
from resnet.rundir import result
from resnet.track import store, tracker


# ---------------------------------------------------------------------------------------------------------------- MLflow
@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def client(uri):
    return store.connect(uri)


@pytest.mark.usefixtures("machine")
def test_a_sweep_is_one_parent_with_its_jobs_nested_under_it(sweep, client, uri, home):
    line = f"-m model=tiny steps=2 eval=false track.uri={uri} batch=32,64 optim.lr=0.05,0.1 out=nested"
    assert sweep(line)[0] == 0
    parent, children = family(client, home / "nested")
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "sweep nested" and parent.data.tags["sweep"] == "parent"
    assert parent.data.params == {"batch": "32,64", "optim.lr": "0.05,0.1"}
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["summary.md"]
    assert sorted(children) == [
        "batch=32 optim.lr=0.05",
        "batch=32 optim.lr=0.1",
        "batch=64 optim.lr=0.05",
        "batch=64 optim.lr=0.1",
    ]
    for name, run in children.items():
        assert dict(word.split("=") for word in name.split()).items() <= run.data.params.items()
        assert run.info.status == "FINISHED" and run.info.run_name.startswith("tiny sgd b")
    # Again in the same folder: the same runs, none twice.
    assert sweep(line)[0] == 0
    again, same = family(client, home / "nested")
    assert again.info.run_id == parent.info.run_id
    assert {run.info.run_id for run in same.values()} == {run.info.run_id for run in children.values()}


def test_jobs_that_die_are_closed_and_the_parent_failed(sweep, machine, client, uri, home):
    machine.ends = {1: 1, 2: -9, 3: 143}
    line = f"-m model=tiny steps=2 eval=false track.uri={uri} seed=1,2,3,4 out=dying"
    assert sweep(line)[0] == 1
    parent, children = family(client, home / "dying")
    assert parent.info.status == "FAILED"
    assert {name: run.info.status for name, run in children.items()} == {
        "seed=1": "FINISHED",
        "seed=2": "FAILED",
        "seed=3": "KILLED",
        "seed=4": "KILLED",
    }


def test_an_interrupted_sweep_leaves_no_parent_running(sweep, machine, client, uri, home):
    machine.ends = {0: KeyboardInterrupt}
    assert sweep(f"-m model=tiny steps=2 eval=false track.uri={uri} seed=1,2 out=stopped")[0] == cli.INTERRUPTED
    assert family(client, home / "stopped")[0].info.status == "KILLED"


@pytest.mark.usefixtures("machine")
def test_a_refused_sweep_leaves_no_run_in_mlflow(sweep, client, uri, home):
    line = f"-m model=tiny steps=2 eval=false track.uri={uri} out=refused"
    assert sweep(f"{line} seed=1,2")[0] == 0
    experiment = client.get_experiment_by_name("resnet").experiment_id
    before = {run.info.run_id for run in client.search_runs([experiment])}
    (home / "refused" / store.FILE).unlink()
    assert sweep(f"{line} seed=1,3")[0] == 1
    assert {run.info.run_id for run in client.search_runs([experiment])} == before


@pytest.mark.usefixtures("machine")
def test_a_store_in_trouble_costs_a_sweep_nothing_but_a_line(sweep, monkeypatch):
    def away(*_words, **_more):
        raise ConnectionError("no answer\nat all")

    monkeypatch.setattr(store, "connect", away)
    monkeypatch.setattr(tracker.Sender, "retry", lambda *_words: None)
    code, out, err = sweep("-m model=tiny steps=2 eval=false seed=1,2 track.uri=http://127.0.0.1:1 out=mine")
    assert code == 0
    assert len(rows(out)) == 2
    assert err.splitlines()[0] == "MLflow: ConnectionError: no answer"


# ------------------------------------------------------------------------------------------------------------- processes
SWEEP = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background would have it ignored
from resnet import train
train.main()
"""
STAND_IN = f"""
from resnet.sweep import local
local.PROGRAM, local.PRELOAD = "job_program", ()
{SWEEP}
"""
PACKAGE = str(Path(resnet.__file__).parents[1])  # not that of another checkout, which may be installed here


class Driver:
    """A sweep of jobs that do what $DEED says, in processes of its own."""

    def __init__(self, folder, deed, line, **more):
        self.here = folder / "here"
        self.here.mkdir()
        paths = [str(Path(job_program.__file__).parent), PACKAGE]
        env = {**os.environ, "DEED": deed, "PYTHONPATH": os.pathsep.join(paths), **more}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        words = [sys.executable, "-c", STAND_IN, *line.split()]
        self.process = subprocess.Popen(words, cwd=self.here, env=env, start_new_session=True, **pipes)

    def out(self, number):
        return self.here / "mine" / str(number)

    def wait_for(self, *numbers):
        """Until these jobs run; their processes."""
        self.wait_until(lambda: all((self.out(number) / "up").exists() for number in numbers))
        return [psutil.Process(int((self.out(number) / "facts").read_text().split()[0])) for number in numbers]

    def wait_until(self, condition):
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()
            time.sleep(0.05)

    def end(self):
        """(status, stdout, stderr) once it has ended; no process of it is left."""
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


@pytest.fixture
def driver(tmp_path):
    drivers = []

    def start(line, deed="wait", **more):
        drivers.append(Driver(tmp_path, deed, line, **more))
        return drivers[-1]

    yield start
    for one in drivers:
        for process in (
            (*psutil.Process(one.process.pid).children(recursive=True),) if one.process.poll() is None else ()
        ):
            process.kill()
        one.process.kill()
        one.process.wait()


def gone(processes):
    return not psutil.wait_procs(processes, 120)[1]


@pytest.mark.parametrize(
    ("number", "to_all", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGHUP, True, 129)],  # a terminal's go to all
    ids=["Ctrl-C", "terminate", "hang-up"],
)
def test_a_signal_to_the_sweep_reaches_each_job_once_and_ends_the_sweep(driver, number, to_all, code):
    one = driver(PAIR.replace("1,2", "1,2,3") + (" sweep.jobs=2" if len(os.sched_getaffinity(0)) > 1 else ""))
    jobs = one.wait_for(*(0, 1)[: len(os.sched_getaffinity(0))])
    (os.killpg if to_all else os.kill)(one.process.pid, number)
    status, out, err = one.end()
    assert status == code and gone(jobs), err
    assert [(one.out(n) / "heard").read_text() for n in range(len(jobs))] == ["[15]"] * len(jobs)
    assert not one.out(len(jobs)).exists() and "Traceback" not in err
    assert [row[4] for row in rows(out)] == ["interrupted"] * len(jobs)


def test_jobs_save_and_end_when_their_sweep_is_killed(driver):
    one = driver(PAIR)
    jobs = one.wait_for(0)
    others = psutil.Process(one.process.pid).children(recursive=True)
    one.process.kill()
    one.process.wait()
    assert gone([*jobs, *others]) and (one.out(0) / "heard").read_text() == "[15]"


def test_jobs_go_on_when_the_process_they_were_forked_from_is_killed(driver):
    one = driver(PAIR)
    (job,) = one.wait_for(0)
    job.parent().kill()
    time.sleep(1)
    assert job.is_running() and one.process.poll() is None
    job.terminate()
    (second,) = one.wait_for(1)  # from another such process
    second.terminate()
    status, out, err = one.end()
    assert status == 1 and [row[4] for row in sorted(rows(out))] == ["interrupted"] * 2
    assert f"job 0 (seed=1): exit status 255, {one.out(0)}" in err and "job 1 (seed=2): exit status 143" in err


def test_a_temporary_folder_that_is_too_long_for_a_socket_is_no_obstacle(driver, tmp_path):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    status, out, err = driver(PAIR, "exit 3", TMPDIR=str(folder)).end()
    assert (status, [row[4] for row in rows(out)]) == (1, ["failed"] * 2) and "exit status 3" in err


def test_a_job_that_is_killed_fails_and_the_sweep_goes_on(driver):
    one = driver(PAIR)
    (job,) = one.wait_for(0)
    job.kill()
    (second,) = one.wait_for(1)
    second.terminate()
    status, _, err = one.end()
    assert status == 1 and f"job 0 (seed=1): exit status -9, {one.out(0)}" in err


# -------------------------------------------------------------------------------------------------------------- for real
def run_really(folder, line):
    """A finished process of the front end, and (pid, its parent's, command) of every Python that it started."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "with open(os.environ['PIDS'], 'a') as file:\n"
        "    print(os.getpid(), os.getppid(), ' '.join(sys.orig_argv[1:]), file=file)\n"
    )
    (folder / "here").mkdir(exist_ok=True)
    (folder / "pids").write_text("")
    env = {
        **os.environ,
        "PYTHONPATH": f"{folder / 'site'}:{PACKAGE}",
        "PIDS": str(folder / "pids"),
        "TMPDIR": str(folder),
    }
    env["XDG_CACHE_HOME"] = str(folder / "cache")
    argv = [sys.executable, "-m", "resnet.train", *line.split()]
    done = subprocess.run(argv, cwd=folder / "here", env=env, capture_output=True, text=True, timeout=280)
    return done, [text.split(maxsplit=2) for text in (folder / "pids").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_fails(shared):
    """A sweep of two, whose second job goes to NaN, and what MLflow had of it when it had ended."""
    with shared("a real sweep") as folder:
        if not (folder / "end.json").exists():
            done, started = run_really(
                folder, "-m model=tiny schedule=constant optim.lr=0.05,1e30 steps=3 eval=false out=mine"
            )
            (folder / "end.json").write_text(json.dumps([done.returncode, done.stdout, done.stderr, started]))
        code, out, err, started = json.loads((folder / "end.json").read_text())
    here = folder / "here"
    client = store.connect(f"sqlite:///{here}/mlflow.db")
    parent, children = family(client, here / "mine")
    return SimpleNamespace(
        code=code,
        out=out,
        err=err,
        started=started,
        client=client,
        parent=parent,
        children=children,
        folder=here / "mine",
    )


def test_the_jobs_are_forked_from_one_process_that_has_imported_everything(one_fails):
    commands = [words for _, _, words in one_fails.started]
    assert len(commands) == 3  # the third is multiprocessing's tracker of resources
    assert (
        sum("-m resnet.train" in words for words in commands) == sum("forkserver" in words for words in commands) == 1
    )
    made = result.read(one_fails.folder / "0")
    assert (made["status"], made["steps"]) == ("finished", 3)
    assert result.read(one_fails.folder / "1") is None


def test_a_job_that_goes_to_nan_is_told_by_step_and_lr_and_the_sweep_fails(one_fails):
    assert one_fails.code == 1
    nan, last = (line for line in one_fails.err.splitlines() if line.startswith("error: "))
    assert "the loss is nan at lr 1e+30" in nan and "optim.lr=1e+30" in nan
    assert last == one_fails.err.splitlines()[-1] and "job 1 (optim.lr=1e+30)" in last
    assert "Traceback" not in one_fails.err and "alembic" not in one_fails.err.lower()
    assert [row[4] for row in sorted(rows(one_fails.out))] == ["finished", "failed"]


def test_the_runs_of_a_real_sweep_are_nested_in_mlflow_with_their_ends(one_fails):
    assert one_fails.parent.info.status == "FAILED"
    assert one_fails.parent.data.params == {"optim.lr": "0.05,1e30"}  # as typed
    assert {name: run.info.status for name, run in one_fails.children.items()} == {
        "optim.lr=0.05": "FINISHED",
        "optim.lr=1e+30": "FAILED",
    }
    finished = one_fails.children["optim.lr=0.05"].info.run_id
    assert {"config.yaml", "result.json"} <= {file.path for file in one_fails.client.list_artifacts(finished)}


def test_nothing_but_runs_and_the_store_is_left_where_it_was_typed(one_fails):
    typed_in = one_fails.folder.parent
    assert {path.name for path in typed_in.iterdir()} <= {"mine", "mlflow.db", "mlruns", ".mlflow.db.lock"}
    assert not [path for path in typed_in.parent.iterdir() if path.name.startswith("resnet-sweep-")]


@pytest.mark.slow
def test_the_sweep_of_the_readme_ends_well_and_again_at_once(tmp_path):
    line = "-m model=tiny batch=32,64 optim.lr=0.05,0.1 steps=2 eval=false out=grid"
    done, started = run_really(tmp_path, line)
    assert done.returncode == 0, done.stderr
    assert len({pid for pid, _, _ in started}) == len(started) == 3
    assert [row[4] for row in rows(done.stdout)] == ["finished"] * 4
    client = store.connect(f"sqlite:///{tmp_path}/here/mlflow.db")
    parent, children = family(client, tmp_path / "here" / "grid")
    assert parent.info.status == "FINISHED" and len(children) == 4
    began = time.monotonic()
    done, _ = run_really(tmp_path, line)
    assert done.returncode == 0 and done.stdout.count("finished already") == 4
    assert time.monotonic() - began < 60
    assert len(family(client, tmp_path / "here" / "grid")[1]) == 4


@pytest.mark.slow
def test_ctrl_c_saves_the_job_and_the_same_command_goes_on(tmp_path):
    """The whole of it: a signal, a checkpoint, a status in MLflow, and the rest of the sweep on the next start."""
    line = (
        "-m model=tiny schedule=constant optim.lr=0.05,0.1 steps=4000 eval=false save_every_steps=4000 out=interrupted"
    )
    folder = tmp_path / "here" / "interrupted"
    folder.parent.mkdir()
    argv = [sys.executable, "-c", SWEEP, *line.split()]
    driver = subprocess.Popen(
        argv,
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": PACKAGE},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "0" / "metrics.jsonl").exists() or not (folder / "0" / "metrics.jsonl").read_text():
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3)
        driver.send_signal(signal.SIGINT)
        _, err = driver.communicate(timeout=120)
    finally:
        driver.kill()
    assert driver.returncode == 130, err
    assert "stopped by a signal; saved" in err
    client = store.connect(f"sqlite:///{tmp_path}/here/mlflow.db")
    parent, children = family(client, folder)
    assert parent.info.status == "KILLED"
    assert {name: run.info.status for name, run in children.items()} == {"optim.lr=0.05": "KILLED"}
    (saved,) = (folder / "0" / "checkpoints").iterdir()
    step = int(saved.name.rpartition("-")[2])
    assert 0 < step < 4000
    done, _ = run_really(tmp_path, line.replace("steps=4000 eval", f"steps={step + 2} eval"))
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {step:,}" in done.stdout
    assert result.read(folder / "0")["steps"] == result.read(folder / "1")["steps"] == step + 2
