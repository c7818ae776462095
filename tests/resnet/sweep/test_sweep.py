"""Sweeps: what runs, what is refused, what is reported, and how a sweep is resumed; a stand-in for the jobs' processes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sweep_runs import GRID, PAIR, TINY, rows

from resnet import cli, files
from resnet.launch import launchers
from resnet.rundir import lock, result
from resnet.sweep import argv, execution

FILES = [".lock", "0", "1", "2", "3", "best.yaml", "parallel.png", "summary.md", "sweep.yaml"]


# ------------------------------------------------------------------------------------------------------------- what runs
def test_a_grid_runs_a_job_for_every_combination_in_one_folder_and_ends_in_a_table(sweep, machine, home):
    machine.top1 = {0: 0.5, 1: 0.75, 3: 0.625}
    code, out, err = sweep(GRID)
    assert (code, err) == (0, "")
    grid = [(32, 0.05), (32, 0.1), (64, 0.05), (64, 0.1)]
    assert [(run.batch, run.optim.lr) for run in machine.started] == grid
    assert all((run.model.name, run.steps, run.eval) == ("tiny", 2, False) for run in machine.started)
    (folder,) = (home / "runs").iterdir()  # the time in its name is that of the sweep, not of each job
    assert [Path(run.out) for run in machine.started] == [folder / str(number) for number in range(4)]
    assert sorted(path.name for path in folder.iterdir()) == FILES
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


def test_a_sweep_of_one_is_a_sweep_and_its_words_stand_in_any_order(sweep, machine, home):
    code, out, _ = sweep(f"out=mine -m {TINY}")
    assert code == 0
    assert [run.out for run in machine.started] == [str(home / "mine" / "0")]
    assert "model=tiny" in rows(out)[0][1]


# ------------------------------------------------------------------------------------------------------------ what fails
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
    assert f"out={home}/mine/1: another run is here (seed was 2 and is 3)" in err
    assert len(machine.started) == 2  # of the first sweep
    assert {path: path.read_bytes() for path in home.rglob("*.yaml")} == before


def test_an_interrupt_ends_the_sweep_and_is_told(sweep, machine):
    machine.ends = {1: KeyboardInterrupt}
    code, out, err = sweep(f"-m {TINY} seed=1,2,3 out=mine")
    assert code == cli.INTERRUPTED != 0
    assert len(machine.started) == 2
    assert [row[4] for row in sorted(rows(out))] == ["finished", "interrupted"]
    assert "interrupted" in err.splitlines()[-1]


# -------------------------------------------------------------------------------------------------------------- going on
def test_resume_runs_what_did_not_finish_with_nothing_typed_again(sweep, machine, home):
    machine.ends, machine.top1 = {1: 1, 2: KeyboardInterrupt}, {0: 0.5, 1: 0.25, 2: 0.25, 3: 0.25}
    code, out, _ = sweep([*GRID.split(), "out='a=b, [c]'"])
    folder = home / "a=b, [c]"
    assert code == cli.INTERRUPTED
    [command] = [line for line in out.splitlines() if line.startswith("resume, without")]
    printed = shlex.split(command.partition("python -m resnet.train ")[2])
    assert [int(Path(run.out).name) for run in machine.started] == [0, 1, 2]
    machine.ends, machine.started = {}, []
    (home / "elsewhere").mkdir()
    code, out, err = sweep(printed, home / "elsewhere")
    assert (code, err) == (0, "")
    assert [int(Path(run.out).name) for run in machine.started] == [1, 2, 3]
    assert [(run.batch, run.optim.lr) for run in machine.started] == [(32, 0.1), (64, 0.05), (64, 0.1)]
    assert out.count("finished already") == 1 and [row[4] for row in rows(out)] == ["finished"] * 4
    assert list((home / "elsewhere").iterdir()) == []
    assert sorted(path.name for path in folder.iterdir()) == FILES


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
        assert err.startswith(f"error: {word}: sweep.resume=mine uses that sweep's own settings (-m model=tiny ")
    for line, told in {
        "sweep.resume=": "sweep.resume=: no such folder",
        "sweep.resume=nowhere": "sweep.resume=nowhere: no such folder",
        "sweep.resume=.": "sweep.resume=.: not the folder of a sweep (sweep.yaml is missing); give the folder of a sweep",
        "sweep.resume=mine/0": f"this is a run; resume it with resume={home}/mine/0",
        "-m resume=mine/0 seed=1,2": "sweep.resume= resumes a sweep",
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


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("+hydra.callbacks.x._target_=psutil.Popen", "no group or knob of a run"),
        ("hydra.sweeper._target_=psutil.Popen", "no group or knob of a run"),
        ("hydra.sweeper.custom_search_space=os.system", "no group or knob of a run"),
        ("hydra.searchpath=[file:///x]", "no group or knob of a run"),
        ("+hydra/callbacks=x", "no group or knob of a run"),
        ("model@hydra=tiny", "no group or knob of a run"),
        ("recipe/../../x=y", "not an override"),
        ("+x=1", "no group or knob of a run"),
        ("--config-dir", "an option of Hydra"),
        ("track.run_name=${oc.env:HOME}", "which takes its value from elsewhere"),
        ("track.run_name=a,'x${oc.env:HOME}'", "which takes its value from elsewhere"),
        (r"track.run_name=$\{oc.env:HOME\}", "which takes its value from elsewhere"),  # Hydra removes these backslashes
        (r"track.tags={a: [str('\\${batch}')]}", "which takes its value from elsewhere"),
        ("recipe=quickstart,../../x", "no name of an option"),
        ("recipe=/tmp/x", "no name of an option"),
        ("optim.lr=tag(log,interval(0.01,0.1))", None),
        ("model=glob(resnet*),tiny", None),
        ("sweep.jobs=2", None),
        ("sweep.sampler=tpe", None),
        ("hydra/sweeper=optuna", "no group or knob of a run"),
        ("hydra.sweeper.n_trials=12", "no group or knob of a run"),
        ("sweep.study=/x/y", "no group or knob of a run"),
        ('sweep.slurm.extra="--wrap=x"', "no group or knob of a run"),
        ("++finetune.lr_multipliers={stem: 0.1}", None),
        (r"data.dir='/a b/\${c}/d=e'", None),
        ("track.tags={a: b}", None),
    ],
)
def test_words_of_a_sweeps_file_are_groups_knobs_and_plain_values(word, reason):
    assert argv.not_data(word) == reason


def test_a_word_that_could_call_code_is_taken_only_if_it_is_typed(sweep, machine, home, monkeypatch):
    monkeypatch.setenv("LR", "0.25")
    word = "optim.lr=${oc.env:LR}"
    (home / "sweep.yaml").write_text(yaml.safe_dump({"folder": str(home), "words": [*PAIR.split(), word]}))
    code, _, err = sweep("sweep.resume=.")
    assert (code, err.count("\n"), machine.started) == (1, 1, [])
    assert "which takes its value from elsewhere; if you trust it, type it too: python -m " in err
    assert sweep(f"sweep.resume=. {word}")[0] == 0
    assert [run.optim.lr for run in machine.started] == [0.25, 0.25]


def test_a_package_in_the_working_folder_does_not_stand_in_for_ours(home, monkeypatch, capfd):
    """Nor in the folder of a relative PYTHONPATH, which is taken from where the sweep is resumed."""
    for name in ("resnet", "yaml"):
        (home / "bad" / name).mkdir(parents=True)
        (home / "bad" / name / "__init__.py").write_text("import os; os._exit(99)")
    (home / "bad" / "sweep.yaml").write_text(yaml.safe_dump({"folder": str(home / "bad"), "words": PAIR.split()}))
    monkeypatch.setenv("PYTHONPATH", f".{os.pathsep}lib")
    argv.resume_argv(["sweep.resume=bad"])
    assert Path.cwd() == home / "bad" and os.environ["PYTHONPATH"] == f"{home}{os.pathsep}{home}/lib"
    for program in (launchers.PROGRAM, ("-c", launchers.SAFE_PATH.format("resnet.rank"))):
        environment = {**os.environ, **launchers.python_environment()}
        assert subprocess.run([sys.executable, *program, home / "x"], env=environment, check=False).returncode == 1
        assert "no run here" in capfd.readouterr().err


def test_a_sweep_whose_job_still_trains_is_refused(sweep, machine, home, monkeypatch):
    """The first process of a sweep may have been killed: its job goes on."""
    machine.ends = {0: KeyboardInterrupt}
    sweep(PAIR)
    machine.ends, machine.started = {}, []
    monkeypatch.setattr(lock, "PATIENCE_S", 0)
    with lock.hold(home / "mine" / "0"):
        code, out, err = sweep("sweep.resume=mine")
    assert (code, out, machine.started) == (1, "", [])
    assert err.startswith(f"error: out={home}/mine/0: another process trains here") and err.count("\n") == 1
    assert sweep("sweep.resume=mine")[0] == 0


def test_a_password_in_what_was_typed_is_not_kept(sweep, machine, home, monkeypatch):
    monkeypatch.setattr(execution, "ignoring_mlflow_errors", lambda *_words, **_more: None)
    monkeypatch.setenv("RESNET_TRACK_URI", "")  # so that what the command puts there goes with the test
    monkeypatch.setattr(machine, "train", lambda _out: 0)
    assert sweep("-m model=tiny steps=2 eval=false seed=1,2 track.uri=https://me:se@cret@host:5 out=mine")[0] == 0
    kept = (home / "mine" / "sweep.yaml").read_text()
    assert "track.uri=https://host:5" in kept and "cret" not in kept and "me:" not in kept


def test_a_sweep_of_range_tests_ends_in_their_suggestions(sweep, machine, monkeypatch):
    def process(out):
        result.write(out, {"status": "lr_find", "suggested_lr": 0.0123456 * (1 + int(out.name))})
        return 0

    monkeypatch.setattr(machine, "train", process)
    code, out, _ = sweep(f"-m {TINY} lr_find=true batch=32,64 out=mine")
    assert code == 0 and machine.started == []
    assert [row[1:] for row in rows(out)] == [
        ["batch=32", "-", "-", "suggests lr 0.0123"],
        ["batch=64", "-", "-", "suggests lr 0.0247"],
    ]
