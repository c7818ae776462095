"""Sweeps: what runs, what is refused, what is told, and what is left of jobs that fail or are stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig

from resnet import cli, files, rundir, train
from resnet.config import fingerprint, track
from resnet.config.track import Mlflow
from resnet.launch import sweep as launch
from resnet.rundir import result
from resnet.track import store, tracker


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder to type in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Machine:
    """Stands in for the processes of jobs: notes what was started, and ends each as it was told to."""

    def __init__(self):
        self.started = []  # run of every job, in order, as its process would load it
        self.ends = {}  # job number -> exit status, or what to raise
        self.top1 = {}

    def process(self, out):
        run = rundir.load(out)
        self.started.append(run)
        number = int(out.name)
        code = self.ends.get(number, 0)
        if isinstance(run.track, Mlflow):
            log = tracker.Tracker(out, run.track, fingerprint.flat(run), {})
            log.log(1, {"train/loss": 1.0})
            log.close("FINISHED" if code == 0 else "RUNNING")
        if isinstance(code, type):
            raise code
        if code == 0:
            made = {"status": "finished", "final/top1": self.top1.get(number), "final/images_per_s": 1000.0 + number}
            made["fingerprint"] = fingerprint.fingerprint(run)
            result.write(out, made)
        return code


@pytest.fixture
def machine(monkeypatch):
    stand_in = Machine()
    monkeypatch.setattr(launch, "process", stand_in.process)
    return stand_in


@pytest.fixture
def sweep(home, monkeypatch, capfd, exit_status):
    """`sweep("batch=32,64 ...")`: (exit status, stdout, stderr) of a sweep typed in an empty folder."""

    def type_in(line, folder=home):
        words = line.split() if isinstance(line, str) else line
        monkeypatch.setattr(sys, "argv", ["resnet.train", *words])
        monkeypatch.setattr(launch, "open_sweeps", [])
        monkeypatch.chdir(folder)
        try:
            code = exit_status(train.main)
        finally:
            HydraConfig.instance().cfg = None
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return type_in


TINY = "model=tiny steps=2 eval=false track=off"
GRID = f"-m {TINY} batch=32,64 optim.lr=0.05,0.1"
PAIR = f"-m {TINY} seed=1,2 out=mine"


def rows(text):
    """The cells of a summary's jobs."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| job ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# --------------------------------------------------------------------------------------------------------- what runs
def test_a_grid_runs_a_job_for_every_combination_in_one_folder_and_ends_in_a_table(sweep, machine, home):
    machine.top1 = {0: 0.5, 1: 0.75, 3: 0.625}
    code, out, err = sweep(GRID)
    assert (code, err) == (0, "")
    grid = [(32, 0.05), (32, 0.1), (64, 0.05), (64, 0.1)]
    assert [(run.batch, run.optim.lr) for run in machine.started] == grid
    assert all((run.model.name, run.steps, run.eval) == ("tiny", 2, False) for run in machine.started)
    (folder,) = (home / "runs").iterdir()  # the time in its name is that of the sweep, not of each job
    assert [Path(run.out) for run in machine.started] == [folder / str(number) for number in range(4)]
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2", "3", "summary.md", "sweep.yaml"]
    assert sorted(path.name for path in home.iterdir()) == ["runs"]  # nor has Hydra left anything
    assert rows(out) == [
        ["1", "batch=32 optim.lr=0.1", "75.00 %", "1,001.0", "finished"],
        ["3", "batch=64 optim.lr=0.1", "62.50 %", "1,003.0", "finished"],
        ["0", "batch=32 optim.lr=0.05", "50.00 %", "1,000.0", "finished"],
        ["2", "batch=64 optim.lr=0.05", "-", "1,002.0", "finished"],
    ]
    assert (folder / "summary.md").read_text() in out


def test_a_sweep_file_is_a_sweep_without_more_words(sweep, machine):
    code, out, err = sweep("sweep=batch_lr track=off out=mine")
    assert (code, err) == (0, "")
    said = yaml.safe_load((files.tree("experiments") / "sweep" / "batch_lr.yaml").read_text())
    batches, lrs = (str(values).split(",") for values in said["hydra"]["sweeper"]["params"].values())
    grid = [(batch, lr) for batch in batches for lr in lrs]
    assert [(str(run.batch), str(run.optim.lr)) for run in machine.started] == grid and len(grid) == 4
    assert {(run.recipe, run.model.name) for run in machine.started} == {("quickstart", "resnet50")}
    assert sorted(row[1] for row in rows(out)) == sorted(f"batch={batch} optim.lr={lr}" for batch, lr in grid)


def test_a_group_can_be_swept_too(sweep, machine):
    code, out, _ = sweep(f"-m {TINY} optim=sgd,lars epochs=20 out=mine")
    assert code == 0
    assert [run.optim.name for run in machine.started] == ["sgd", "lars"]
    assert [run.schedule.name for run in machine.started] == ["piecewise", "polynomial"]
    assert sorted(row[1] for row in rows(out)) == ["optim=lars", "optim=sgd"]


def test_a_sweep_of_one_is_a_sweep(sweep, machine, home):
    code, out, _ = sweep(f"-m {TINY} out=mine")
    assert code == 0
    assert [run.out for run in machine.started] == [str(home / "mine" / "0")]
    assert "model=tiny" in rows(out)[0][1]


def test_batches_of_jobs_end_in_one_summary(sweep, machine):
    machine.ends = {0: 1}
    code, out, err = sweep(f"{PAIR} hydra.sweeper.max_batch_size=1")
    assert len(machine.started) == 2 and code == 1
    assert sorted(row[0] for row in rows(out)) == ["0", "1"]
    assert err.splitlines()[-1].startswith("error: 1 of the sweep's jobs failed: job 0 ")


# --------------------------------------------------------------------------------------------------------- what fails
def test_a_failing_job_does_not_stop_the_others_and_is_named_in_the_last_line(sweep, machine, home):
    machine.ends = {0: 1, 1: -9}
    code, out, err = sweep(f"-m {TINY} seed=1,2,3 out=mine")
    assert code == 1
    assert len(machine.started) == 3
    assert [row[4] for row in sorted(rows(out))] == ["failed", "failed", "finished"]
    assert err.splitlines() == [
        f"error: 2 of the sweep's jobs failed: job 0 (seed=1): exit status 1, {home}/mine/0; "
        f"job 1 (seed=2): exit status -9, {home}/mine/1"
    ]


def test_an_old_result_in_the_folder_of_a_job_that_fails_now_is_not_shown(sweep, machine):
    sweep(PAIR)
    machine.ends = {0: 1}
    _, out, _ = sweep(PAIR.replace("steps=2", "steps=3"))
    assert sorted(rows(out))[0] == ["0", "seed=1", "-", "-", "failed"]
    assert [run.steps for run in machine.started] == [2, 2, 3, 3]  # what may change in a folder reaches its job


def test_a_job_that_cannot_be_is_refused_before_any_starts(sweep, machine, home):
    code, _, err = sweep(f"-m {TINY} batch=32,0 out=mine")
    assert code == 1
    assert err == "error: job 1 (batch=0): batch=0: must be above 0\n"
    assert machine.started == [] and list(home.iterdir()) == []


def test_another_sweep_in_the_same_folder_is_refused_before_any_job_starts(sweep, machine, home):
    sweep(PAIR)
    before = {path: path.read_bytes() for path in home.rglob("*.yaml")}
    code, _, err = sweep(PAIR.replace("seed=1,2", "seed=1,3"))
    assert code == 1
    assert err.count("\n") == 1
    assert f"out={home}/mine/1: another run lies here (seed was 2 and is 3)" in err
    assert len(machine.started) == 2  # of the first sweep
    assert {path: path.read_bytes() for path in home.rglob("*.yaml")} == before


def test_an_interrupt_ends_the_sweep_and_is_told(sweep, machine):
    machine.ends = {1: KeyboardInterrupt}
    code, out, err = sweep(f"-m {TINY} seed=1,2,3 out=mine")
    assert code == cli.INTERRUPTED != 0
    assert len(machine.started) == 2
    assert [row[4] for row in sorted(rows(out))] == ["finished", "interrupted"]
    assert "interrupted" in err.splitlines()[-1]


# ------------------------------------------------------------------------------------------------------- going on
def test_resume_runs_what_did_not_finish_with_nothing_typed_again(sweep, machine, home):
    machine.ends = {1: 1, 2: KeyboardInterrupt}
    code, out, _ = sweep([*GRID.split(), "out='a=b, [c]'"])
    folder = home / "a=b, [c]"
    assert code == cli.INTERRUPTED
    assert f"python -m resnet.train 'sweep.resume={folder}'" in out
    assert [int(Path(run.out).name) for run in machine.started] == [0, 1, 2]
    machine.ends, machine.started = {}, []
    (home / "elsewhere").mkdir()
    code, out, err = sweep(["-m", f"sweep.resume={folder}"], home / "elsewhere")
    assert (code, err) == (0, "")
    assert [int(Path(run.out).name) for run in machine.started] == [1, 2, 3]
    assert [(run.batch, run.optim.lr) for run in machine.started] == [(32, 0.1), (64, 0.05), (64, 0.1)]
    assert out.count("finished already") == 1 and [row[4] for row in rows(out)] == ["finished"] * 4
    assert list((home / "elsewhere").iterdir()) == []
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2", "3", "summary.md", "sweep.yaml"]


def test_resume_of_a_sweep_that_is_done_shows_its_table(sweep, machine):
    sweep(PAIR)
    machine.started = []
    for line in ("sweep.resume=mine", "-m sweep.resume='mine' seed=1,2"):  # with or without what was typed
        code, out, err = sweep(line)
        assert (code, err, machine.started) == (0, "", [])
        assert sorted(row[1] for row in rows(out)) == ["seed=1", "seed=2"]


def test_resume_goes_on_with_a_sweep_file_in_a_folder_that_was_moved(sweep, machine, home):
    machine.ends = {2: KeyboardInterrupt}
    sweep("sweep=batch_lr track=off model=tiny -m")
    (folder,) = (home / "runs").iterdir()
    folder.rename(home / "moved here")
    machine.ends, machine.started = {}, []
    assert sweep(["sweep.resume=moved here"])[0] == 0
    assert [Path(run.out) for run in machine.started] == [home / "moved here" / "2", home / "moved here" / "3"]


def test_resume_takes_what_does_not_move_the_weights(sweep, machine):
    sweep(PAIR)
    machine.started = []
    assert sweep("sweep.resume=mine steps=3 cluster.threads=1")[0] == 0
    assert [(run.seed, run.steps, run.cluster.threads) for run in machine.started] == [(1, 3, 1), (2, 3, 1)]
    assert sweep("sweep.resume=mine")[0] == 0  # and keeps it
    assert len(machine.started) == 2


@pytest.mark.usefixtures("machine")
def test_resume_refuses_what_would_be_another_sweep_and_what_is_none(sweep, home):
    sweep(PAIR)
    for word in ("optim.lr=1", "seed=1,3", "sweep=batch_lr", "out=x", "resume=mine/0", "+x=1", "--help"):
        code, out, err = sweep(f"-m sweep.resume=mine {word}")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(
            f"error: {word}: sweep.resume=mine goes on with that sweep's own settings (-m model=tiny "
        )
    for line, told in {
        "sweep.resume=": "sweep.resume=: no such folder",
        "sweep.resume=nowhere": "sweep.resume=nowhere: no such folder",
        "sweep.resume=.": "sweep.resume=.: not the folder of a sweep (sweep.yaml is missing); give a sweep's",
        "sweep.resume=mine/0": f"a run lies here; go on with it by resume={home}/mine/0",
        "-m resume=mine/0 seed=1,2": "with a sweep goes on sweep.resume=",
    }.items():
        code, _, err = sweep(line)
        assert (code, err.count("\n")) == (1, 1) and told in err, line


@pytest.mark.parametrize("text", ["", "words: 3", "words: [a]", "folder: /x", "{", "- a", "\xff"])
def test_a_sweep_yaml_that_is_none_is_refused_by_name(sweep, home, text):
    (home / "sweep.yaml").write_bytes(text.encode("latin-1"))
    code, _, err = sweep("sweep.resume=.")
    assert code == 1
    assert err.startswith(f"error: {home}/sweep.yaml: cannot be read (") and err.count("\n") == 1, err


def test_a_sweep_whose_working_folder_is_gone_says_so(sweep, home):
    (home / "sweep.yaml").write_text("folder: /nowhere/at all\nwords: [-m, 'seed=1,2']\n")
    code, _, err = sweep("sweep.resume=.")
    assert code == 1 and "the sweep was started in /nowhere/at all, which is not there" in err


@pytest.mark.usefixtures("machine")
def test_a_password_in_what_was_typed_is_not_kept(sweep, home, monkeypatch):
    monkeypatch.setattr(launch, "ignoring_mlflow_errors", lambda *_words, **_more: None)
    monkeypatch.delenv("RESNET_TRACK_URI", raising=False)
    monkeypatch.setattr(track, "strip_credentials", track.masked)  # which would keep it in the environment
    monkeypatch.setattr(launch, "process", lambda _out: 0)
    assert sweep("-m model=tiny steps=2 eval=false seed=1,2 track.uri=https://me:secret@host:5 out=mine")[0] == 0
    kept = (home / "mine" / "sweep.yaml").read_text()
    assert "track.uri=https://host:5" in kept and "secret" not in kept and "me:" not in kept


# ----------------------------------------------------------------------------------------------------------- searches
SEARCH = "sweep=lr_search model=tiny track=off"


def rates(machine):
    """The learning rates that were tried, and none of them any more."""
    tried = [run.optim.lr for run in machine.started]
    machine.started = []
    return tried


def test_a_search_tries_rates_between_its_bounds_and_ends_in_one_table(sweep, machine):
    pytest.importorskip("optuna")
    machine.top1 = dict(enumerate([0.2, 0.5, 0.3, 0.6, 0.9, 0.1]))
    code, out, err = sweep(f"{SEARCH} out=mine")
    assert (code, err) == (0, "")  # Optuna is quiet
    assert {(run.recipe, run.seed, run.eval) for run in machine.started} == {("quickstart", 1, True)}
    tried = rates(machine)
    assert len(set(tried)) == 6 and all(0.001 <= lr <= 1 for lr in tried)
    assert out.count("| job ") == 1
    assert [(row[0], row[1]) for row in rows(out)] == [(str(n), f"optim.lr={tried[n]}") for n in (4, 3, 1, 2, 0, 5)]


def test_a_search_goes_by_the_top1_and_takes_a_failed_job_for_the_worst(sweep, machine):
    pytest.importorskip("optuna")

    def tried(out, top1=0.9, end=0):
        machine.top1 = {0: top1, **{n: 0.5 + n / 100 for n in range(1, 6)}}
        machine.ends = {0: end}
        code = sweep(f"{SEARCH} out={out}")[0]
        return code, rates(machine)

    code, first = tried("first")
    assert code == 0
    code, failing = tried("failing", end=1)
    assert code == 1 and len(failing) == 6  # to its end all the same
    code, worst = tried("worst", top1=0.0)
    assert worst == failing != first
    assert failing[:3] == first[:3]  # at random


def test_a_search_that_was_stopped_goes_on_to_what_it_would_have_been(sweep, machine):
    pytest.importorskip("optuna")
    machine.top1 = {n: 0.5 + n / 100 for n in range(6)}
    machine.ends = {1: 1}
    assert sweep(f"{SEARCH} out=whole")[0] == 1
    whole = rates(machine)
    machine.ends = {1: 1, 4: KeyboardInterrupt}
    assert sweep(f"{SEARCH} out=parts")[0] == cli.INTERRUPTED
    assert rates(machine) == whole[:5]
    machine.ends = {}
    code, out, err = sweep("sweep.resume=parts")
    assert code == 1 and "job 1 (" in err and "had failed, and those after it were chosen by that" in err
    assert rates(machine) == whole[4:]
    assert [row[4] for row in sorted(rows(out))] == ["finished", "failed", *["finished"] * 4]


@pytest.mark.parametrize("word", ["eval=false", "lr_find=true"])
def test_a_search_without_a_top1_is_refused(sweep, machine, home, word):
    pytest.importorskip("optuna")
    code, _, err = sweep(f"{SEARCH} {word}")
    assert (code, machine.started, list(home.iterdir())) == (1, [], [])
    assert err == f"error: {word}: a search goes by the top-1 of its jobs, and there would be none; leave it out\n"


def test_a_search_without_optuna_is_told_how_to_get_it(sweep, home, monkeypatch):
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["sweeper"], "optuna.yaml", raising=False)
    code, _, err = sweep(SEARCH)
    assert code == 1 and list(home.iterdir()) == []
    assert err == (
        "error: hydra/sweeper=optuna: which sweep=lr_search needs, is not installed; "
        "pip install hydra-optuna-sweeper==1.3.0\n"
    )


def test_a_sweep_of_range_tests_ends_in_their_suggestions(sweep, machine, monkeypatch):
    def process(out):
        result.write(out, {"status": "lr_find", "suggested_lr": 0.0123456 * (1 + int(out.name))})
        return 0

    monkeypatch.setattr(launch, "process", process)
    code, out, _ = sweep(f"-m {TINY} lr_find=true batch=32,64 out=mine")
    assert code == 0 and machine.started == []
    assert [row[1:] for row in rows(out)] == [
        ["batch=32", "-", "-", "suggests lr 0.0123"],
        ["batch=64", "-", "-", "suggests lr 0.0247"],
    ]


# ------------------------------------------------------------------------------------------------------------- MLflow
@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def client(uri):
    return store.connect(uri)


def family(client, out):
    """(parent run, its children by name) of the sweep in `out`."""
    parent = client.get_run(store.run_id(out, client.tracking_uri))
    runs = client.search_runs([parent.info.experiment_id])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, {run.info.run_name.partition("[")[2].rstrip("]"): run for run in children}


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


# ---------------------------------------------------------------------------------------------------------- processes
@pytest.fixture
def python(tmp_path):
    """`python("exit 3")`: a program that stands in for Python and does that, with the job's folder in $out."""

    def make(script):
        path = tmp_path / "python"
        path.write_text(f'#!/bin/bash\nout=$3\necho "$$ $*" >>"{tmp_path}/calls"\n{script}\n')
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9), ("kill -TERM $$", -15)])
def test_a_job_is_a_fresh_process_and_its_end_is_known(python, tmp_path, monkeypatch, script, code):
    monkeypatch.setattr(sys, "executable", python(script))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert launch.process(tmp_path / "a job") == code
    assert launch.process(tmp_path / "another") == code
    first, second = (line.split(maxsplit=1) for line in (tmp_path / "calls").read_text().splitlines())
    assert first[1] == f"-m resnet.rank {tmp_path}/a job" and second[1].endswith("another")
    assert len({first[0], second[0], str(os.getpid())}) == 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


DRIVER = """
import signal, sys
sys.executable = sys.argv.pop(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background would have it ignored
from resnet import train
train.main()
"""


@pytest.mark.parametrize(
    ("number", "to_all", "code", "told"),
    [
        (signal.SIGINT, True, 130, "INT"),  # as a terminal does it
        (signal.SIGTERM, False, 143, "TERM"),
        pytest.param(signal.SIGHUP, True, 129, "TERM", marks=pytest.mark.slow),
    ],
    ids=["Ctrl-C", "terminate", "hang-up"],
)
def test_a_signal_to_the_sweep_reaches_the_job_once_and_ends_the_sweep(python, tmp_path, number, to_all, code, told):
    job = python(
        "for name in INT TERM HUP; do trap \"echo $name >>'$out/heard'\" $name; done\n"
        'touch "$out/up"; while ! [[ -s $out/heard ]]; do sleep 0.05; done; sleep 0.3; exit 143'
    )
    (tmp_path / "here").mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, job, *PAIR.split()],
        cwd=tmp_path / "here",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    first = tmp_path / "here" / "mine" / "0"
    try:
        deadline = time.monotonic() + 60
        while not (first / "up").exists():
            assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()
            time.sleep(0.05)
        (os.killpg if to_all else os.kill)(driver.pid, number)
        out, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode == code, err
    assert (first / "heard").read_text().split() == [told]
    assert not (first.parent / "1").exists() and len((tmp_path / "calls").read_text().splitlines()) == 1
    assert "Traceback" not in err
    assert [row[4] for row in rows(out)] == ["interrupted"]


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_while_a_job_is_being_started_reaches_it(monkeypatch, tmp_path, number, ends):
    start, began = subprocess.Popen, time.monotonic()

    def signalled(_command, **named):
        child = start([sys.executable, "-c", "import time; time.sleep(120)"], **named)
        os.kill(os.getpid(), number)  # before anybody knows of the child
        return child

    monkeypatch.setattr(subprocess, "Popen", signalled)
    with pytest.raises(ends) as ended:
        launch.process(tmp_path)
    assert time.monotonic() - began < 60
    assert number == signal.SIGINT or ended.value.code == 128 + number


# ---------------------------------------------------------------------------------------------------------- for real
@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """`real("-m ...")`: a finished process of the front end, and the (pid, command) of every Python that it started."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "with open(os.environ['PIDS'], 'a') as file:\n"
        "    print(os.getpid(), os.getppid(), ' '.join(sys.orig_argv[1:]), file=file)\n"
    )
    (folder / "here").mkdir()

    def run(line):
        (folder / "pids").write_text("")
        env = {**os.environ, "PYTHONPATH": str(folder / "site"), "PIDS": str(folder / "pids"), "TMPDIR": str(folder)}
        env["XDG_CACHE_HOME"] = str(folder / "cache")
        argv = [sys.executable, "-m", "resnet.train", *line.split()]
        done = subprocess.run(argv, cwd=folder / "here", env=env, capture_output=True, text=True, timeout=280)
        started = [text.split(maxsplit=2) for text in (folder / "pids").read_text().splitlines()]
        return done, started

    run.folder = folder / "here"
    return run


@pytest.fixture(scope="module")
def one_fails(real):
    """A sweep of two, whose second job goes to NaN, and what MLflow had of it when it had ended."""
    done, started = real("-m model=tiny schedule=constant optim.lr=0.05,1e30 steps=3 eval=false out=mine")
    client = store.connect(f"sqlite:///{real.folder}/mlflow.db")
    parent, children = family(client, real.folder / "mine")
    return SimpleNamespace(
        done=done, started=started, client=client, parent=parent, children=children, folder=real.folder / "mine"
    )


def test_every_job_really_trains_in_a_process_of_its_own(one_fails):
    parents = [words for words in one_fails.started if "resnet.train" in words[2]]
    ranks = [words for words in one_fails.started if "resnet.rank" in words[2]]
    assert len(parents) == 1 and len(ranks) == 2
    assert len({pid for pid, _, _ in (*parents, *ranks)}) == 3
    assert {parent for _, parent, _ in ranks} == {parents[0][0]}
    made = result.read(one_fails.folder / "0")
    assert (made["status"], made["steps"]) == ("finished", 3)
    assert result.read(one_fails.folder / "1") is None


def test_a_job_that_goes_to_nan_is_told_by_step_and_lr_and_the_sweep_fails(one_fails):
    done = one_fails.done
    assert done.returncode == 1
    nan, last = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "the loss is nan at lr 1e+30" in nan and "optim.lr=1e+30" in nan
    assert last == done.stderr.splitlines()[-1] and "job 1 (optim.lr=1e+30)" in last
    assert "Traceback" not in done.stderr and "alembic" not in done.stderr.lower()
    assert [row[4] for row in sorted(rows(done.stdout))] == ["finished", "failed"]


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
def test_the_sweep_of_the_readme_ends_well_and_again_at_once(real):
    line = "-m model=tiny batch=32,64 optim.lr=0.05,0.1 steps=2 eval=false out=grid"
    done, started = real(line)
    assert done.returncode == 0, done.stderr
    assert len({pid for pid, _, _ in started}) == len(started) == 5
    assert [row[4] for row in rows(done.stdout)] == ["finished"] * 4
    client = store.connect(f"sqlite:///{real.folder}/mlflow.db")
    parent, children = family(client, real.folder / "grid")
    assert parent.info.status == "FINISHED" and len(children) == 4
    began = time.monotonic()
    done, _ = real(line)
    assert done.returncode == 0 and done.stdout.count("finished already") == 4
    assert time.monotonic() - began < 60
    assert len(family(client, real.folder / "grid")[1]) == 4


@pytest.mark.slow
def test_ctrl_c_saves_the_job_and_the_same_command_goes_on(real):
    """The whole of it: a signal, a checkpoint, a status in MLflow, and the rest of the sweep on the next start."""
    line = (
        "-m model=tiny schedule=constant optim.lr=0.05,0.1 steps=4000 eval=false save_every_steps=4000 out=interrupted"
    )
    folder = real.folder / "interrupted"
    argv = [sys.executable, "-c", DRIVER, sys.executable, *line.split()]
    driver = subprocess.Popen(argv, cwd=real.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
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
    client = store.connect(f"sqlite:///{real.folder}/mlflow.db")
    parent, children = family(client, folder)
    assert parent.info.status == "KILLED"
    assert {name: run.info.status for name, run in children.items()} == {"optim.lr=0.05": "KILLED"}
    (saved,) = (folder / "0" / "checkpoints").iterdir()
    step = int(saved.name.rpartition("-")[2])
    assert 0 < step < 4000
    done, _ = real(line.replace("steps=4000 eval", f"steps={step + 2} eval"))
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {step:,}" in done.stdout
    assert result.read(folder / "0")["steps"] == result.read(folder / "1")["steps"] == step + 2
