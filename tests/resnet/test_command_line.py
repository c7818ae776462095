"""`python -m resnet.train` as it is typed: what is refused, what is printed, and what is left behind."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig

from resnet import rundir, train
from resnet.config import help, run
from resnet.launch import launchers, supervisor
from resnet.sweep import execution, local
from resnet.training import progress

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = sorted(
    (path.parent.name, path.stem) for top in ("conf", "experiments") for path in (ROOT / top).glob("*/*.yaml")
)

# What is typed, and what the one line must say: the knob, its value, the way out.
REFUSED = {
    # typing errors
    "optim.momentm=1": ["optim.momentm", "did you mean optim.momentum?", "optim.nesterov"],
    "+optim.momentm=1": ["optim.momentm", "did you mean optim.momentum?", "optim.nesterov"],
    "bacth=3": ["bacth", "did you mean batch?"],
    "momentum=3": ["momentum", "did you mean optim.momentum?"],
    "+foo=1": ["foo: no such knob", "there are: model, optim,"],
    "optim=lars +optim.rows.0.foo=1": ["optim.rows.0.foo: no such knob"],
    # groups and options
    "model=tiny --foo": ["model=tiny --foo: unrecognized arguments: --foo; write knob=value"],
    "--cfg nope": ["--cfg nope: argument --cfg/-c: invalid choice: 'nope'"],
    "modle=tiny": ["modle", "did you mean model?"],
    "optim=adm": ["optim=adm: no such option", "lars, sgd"],
    "model=resnet5": ["model=resnet5: no such option", "did you mean resnet50?", "tiny"],
    "model=": ["model=", "no such option", "resnet50"],
    "model=null": ["model=null: no such option", "leave it out", "resnet50"],
    "profile_steps.x=1": ["profile_steps.x=1: there are no settings below that"],
    "recipe=null": ["recipe=null: no such option", "leave it out", "quickstart"],
    "+optim=lars": ["optim", "without +"],
    "optim@foo=lars": ["optim@foo: no such group", "--help"],
    "optim.name=lars": ["optim.name=lars", "use optim=lars instead"],
    # left out
    "~optim": ["optim: must be given", "optim=..."],
    "~optim.lr": ["optim.lr: cannot be left out"],
    "batch=???": ["batch: must be given", "batch=..."],
    "data=imagenet": ["data.dir: must be given", "data.dir=..."],
    # types
    "batch=many": ["batch=many: must be a whole number"],
    "batch=null": ["batch=null: must have a value"],
    "optim.lr=fast": ["optim.lr=fast: must be a number"],
    "eval=maybe": ["eval=maybe: must be true or false"],
    "model.block=wide": ["model.block=wide: must be one of basic, bottleneck"],
    "model.depths=3": ["model.depths: must be a list"],
    "model.depths=[3,x,6,3]": ["model.depths[1]=x: must be a whole number"],
    "model.depths=[3,4]": ["model.depths=[3, 4]: give four numbers above 0"],
    "optim.lr=${lr}": ["optim.lr=${lr}: there is no such knob"],
    "optim.lr=${oc.env:NOT_SET}": ["optim.lr", "NOT_SET is not set"],
    # values and combinations
    "batch=0": ["batch=0: must be above 0"],
    "batch=2000": ["batch=2000: more than the 1437 training images of data=digits", "batch=1437"],
    "optim.lr=-1": ["optim.lr=-1.0: must be at least 0"],
    "schedule=cosine epochs=3": ["epochs=3.0", "schedule.warmup_epochs=0.6", "more than 8 epochs"],
    "optim=lars batch=4096 epochs=60": ["epochs=60.0", "schedule.horizon_epochs=41"],
    "stop_at_top1=0.9 eval=false": ["stop_at_top1=0.9", "use eval=true"],
    "cluster.ranks=0": ["cluster.ranks=0", "must be above 0"],
    "out=": ["out=''", "give a folder"],
    "track.uri=runs.db": ["track.uri=runs.db", "sqlite:////"],
    "resume=nowhere": ["nowhere: no run here", "give the folder of a run"],
    "data=imagenet data.dir=nowhere": ["nowhere", "python -m resnet.prepare"],
    # knobs of another variant
    "optim.trust_coefficient=1": ["optim.trust_coefficient: only optim=lars has this knob", "choose that"],
    "optim=lars optim.nesterov=true": ["optim.nesterov: only optim=sgd has this knob", "choose that"],
    "schedule.end_lr=3": [
        "schedule.end_lr: only schedule=polynomial, schedule=linear and schedule=cosine have this knob"
    ],
    "data=synthetic data.dir=x": ["data.dir: only data=digits", "have this knob; choose that"],
    # not overrides
    "batch": ["batch: not an override", "knob=value"],
    "=3": ["=3: write knob=value"],
    "model.depths=[3,4": ["model.depths=[3,4: not an override"],
    "out=a=b": ["out=a=b: not an override", """'out="a=b"'"""],
    "data.dir=~/shards": ["data.dir=~/shards: not an override", """'data.dir="~/shards"'"""],
    "batch=32,64": ["batch=32,64: several values", "-m tries each"],
    # sweeps: nothing starts if one job cannot
    "-m +optim.momentm=1,2": ["optim.momentm", "did you mean optim.momentum?"],
    "-m optim=sgd,adm": ["optim=adm: no such option", "lars, sgd"],
    "-m batch=32,many": ["batch=many: must be a whole number"],
    "-m batch=32,0": ["job 1 (batch=0)", "batch=0: must be above 0"],
    "-m optim=lars,sgd optim.nesterov=true": ["optim.nesterov: only optim=sgd has this knob"],
    "-m seed=range(1,1000000000) batch=32,64": ["seed=range(1,1000000000): more than 10,000 jobs"],
    "-m schedule=cosine,piecewise epochs=3": ["job 0 (schedule=cosine)", "schedule.warmup_epochs=0.6"],
    "-m resume=x batch=1,2": ["resume=x", "leave it out of a sweep"],
    "-m --cfg job batch=32,64": ["-m --cfg job", "Only one of"],
    "-m seed=1,2 out=/dev/null/x": ["out=/dev/null/x: cannot be written to", "give another folder"],
    "sweep=asha sweep.job=2": ["sweep.job: no such knob; did you mean sweep.jobs?"],
    "sweep=asha sweep.jobs=0": ["sweep.jobs=0: must be auto, or a number above 0"],
    "sweep.sampler=tp sweep=asha": ["sweep.sampler=tp: must be one of tpe, gp, cmaes,"],
    "sweep.jobs=2": ["sweep.jobs=2: is of sweeps, and this is one run; add -m"],
    "swep=asha": ["swep: no such knob; did you mean sweep?"],
    "-m sweep.jobs=1,2 seed=1,2": ["sweep.jobs=1,2: is of the sweep, not of its jobs"],
    "-m seed=1,2 sweep.study=x": ["sweep.study=x: belongs to a search; add sweep.sampler=tpe"],
    "-m model=null,tiny": ["model=null,tiny: no such option"],
}
HEAD = "# @package _global_\n# mine\n"
# A recipe file of the user's own, and what the line must say beside its name.
BAD_FILES = {
    "optim: {momentm: 1}": ["recipe=mine", "optim.momentm", "did you mean optim.momentum?"],
    "bacth: 1": ["recipe=mine", "bacth", "did you mean batch?"],
    "batch: many": ["recipe=mine", "batch=many: must be a whole number"],
    "optim: {lr: fast}": ["recipe=mine", "optim.lr=fast: must be a number"],
    "model: {depths: [1, 2, x, 4]}": ["recipe=mine", "model.depths[2]=x: must be a whole number"],
    "schedule: {power: 3}": ["recipe=mine", "schedule.power: only schedule=polynomial has this knob"],
    "optim: lars": ["recipe=mine", "lars: ", "defaults list"],
    "optim: {lr: -1}": ["optim.lr=-1.0: must be at least 0"],
    "defaults: [override /modle: tiny, _self_]": ["recipe=mine", "modle: no such group", "--help"],
    "defaults: [override /model: resnet5, _self_]": ["model=resnet5: no such option", "did you mean resnet50?"],
    "batch: [1": ["mine.yaml, line", "not YAML"],
    "optim:\n\tlr: 1": ["mine.yaml, line 4", "not YAML"],
    "batch: 1\nbatch: 2": ["mine.yaml, line 4", "not YAML (found duplicate key batch)"],
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder to type in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def typed(home, monkeypatch, capfd, exit_status):
    """`typed("model=tiny steps=3")`: (exit status, stdout, stderr, the run that would have been trained)."""
    assert home.is_dir()
    went = []
    monkeypatch.setattr(launchers, "needed", lambda _cluster: True)
    monkeypatch.setattr(supervisor, "run", lambda run, _out: went.append(run))
    monkeypatch.setattr(progress, "report", lambda *_: None)
    monkeypatch.setattr(local, "start", lambda job, *_, **_more: went.append(job.run))

    def type_in(line):
        monkeypatch.setattr(sys, "argv", ["resnet.train", *(line if isinstance(line, list) else line.split())])
        monkeypatch.setattr(execution, "open_sweeps", [])
        try:
            code = exit_status(train.main)
        finally:
            HydraConfig.instance().cfg = None
        printed = capfd.readouterr()
        return code, printed.out, printed.err, went[0] if went else None

    return type_in


def assert_refused(code, out, err, said, folder):
    """One line on stderr that says all of `said`, status 1, and nothing left behind."""
    assert code == 1
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    for part in said:
        assert part in err
    assert len(err) < 1000
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("line", REFUSED)
def test_a_command_that_cannot_be_is_refused_in_one_line(typed, home, line):
    code, out, err, run = typed(line)
    assert run is None
    assert_refused(code, out, err, REFUSED[line], home)


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_recipe_file_that_cannot_be_is_refused_in_one_line(typed, home, tmp_path, text):
    (tmp_path / "own" / "recipe").mkdir(parents=True)
    (tmp_path / "own" / "recipe" / "mine.yaml").write_text(HEAD + text + "\n")
    code, out, err, run = typed(["--config-dir", str(tmp_path / "own"), "recipe=mine"])
    assert run is None
    assert_refused(code, out, err, BAD_FILES[text], home)


def test_a_recipe_file_without_its_package_line_is_refused_with_the_line_it_lacks(typed, home, tmp_path):
    (tmp_path / "own" / "recipe").mkdir(parents=True)
    (tmp_path / "own" / "recipe" / "mine.yaml").write_text("# mine\nbatch: 3\n")
    code, out, err, _ = typed(["--config-dir", str(tmp_path / "own"), "recipe=mine"])
    assert_refused(code, out, err, ["recipe=mine", "# @package _global_"], home)


def test_a_recipe_file_of_ones_own_is_taken(typed, tmp_path):
    (tmp_path / "own" / "recipe").mkdir(parents=True)
    (tmp_path / "own" / "recipe" / "mine.yaml").write_text(HEAD + "batch: 48\n")
    code, _, err, run = typed(["--config-dir", str(tmp_path / "own"), "recipe=mine", "steps=2"])
    assert (code, err) == (0, "")
    assert (run.recipe, run.batch, run.steps) == ("mine", 48, 2)


def test_a_folder_with_another_run_is_refused_before_anything_starts(typed, home):
    _, _, _, run = typed("model=tiny out=mine")
    rundir.claim(run, Path(run.out))
    (Path(run.out) / "checkpoints" / "step-00000001").mkdir(parents=True)
    before = sorted(home.rglob("*"))
    code, _, err, _ = typed("model=tiny out=mine optim.lr=0.3")
    assert code == 1
    assert err.count("\n") == 1
    assert "another run is here (optim.lr was 0.128 and is 0.3)" in err and "give another out=" in err
    assert sorted(home.rglob("*")) == before


def test_the_command_of_the_readme_composes_as_typed(typed):
    code, _, err, run = typed("model=resnext101 optim=lars steps=3 eval=false")
    assert (code, err) == (0, "")
    assert (run.model.name, run.optim.name, run.schedule.name, run.data.name) == (
        "resnext101",
        "lars",
        "polynomial",
        "digits",
    )
    assert (run.steps, run.eval, run.optim.lr) == (3, False, 2.5)


# -------------------------------------------------------------------------------------------------- as a real process
@pytest.fixture
def command(tmp_path):
    """`command("batch=0")`: the finished process of `python <flags> -m resnet.train batch=0` in an empty folder."""
    (tmp_path / "here").mkdir()
    (tmp_path / "tmp").mkdir()
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp")}

    def run(*words, flags=(), cwd=tmp_path / "here", program=("-m", "resnet.train"), **more):
        argv = [sys.executable, *flags, *program, *words]
        return subprocess.run(argv, cwd=cwd, env={**env, **more}, capture_output=True, text=True, timeout=120)

    return run


@pytest.mark.parametrize(
    "line",
    [
        "optim.momentm=1",
        "data=imagenet data.dir=nowhere",
        "-m batch=32,0",
        *(
            pytest.param(line, marks=pytest.mark.slow)
            for line in ("+optim.momentm=1", "model=null", "-m optim=sgd,adm")
        ),
    ],
)
def test_a_refused_command_imports_no_tensorflow_and_leaves_nothing(command, tmp_path, line):
    done = command(*line.split(), flags=["-X", "importtime"])
    imports = [text for text in done.stderr.splitlines() if text.startswith("import time:")]
    said = [text for text in done.stderr.splitlines() if not text.startswith("import time:")]
    assert_refused(done.returncode, done.stdout, "\n".join(said) + "\n", REFUSED[line], tmp_path / "here")
    assert len(imports) > 100
    heavy = {"tensorflow", "mlflow", "keras", "sklearn", "pandas"}
    assert not heavy & {text.rpartition("|")[2].strip().split(".")[0] for text in imports}
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "cache").exists()


def test_help_lists_every_group_and_option_with_a_line_of_its_own(command, tmp_path):
    done = command("--help", flags=["-X", "importtime"])
    assert done.returncode == 0
    assert not [text for text in done.stderr.splitlines() if not text.startswith("import time:")]
    assert "tensorflow" not in done.stderr
    lines = done.stdout.splitlines()
    for group, option in OPTIONS:
        mine = [line for line in lines if line.strip().startswith(f"{group}={option} ")]
        assert len(mine) == 1, f"{group}={option}"
        assert len(mine[0].split(maxsplit=1)[1]) > 10  # and what it is
        assert lines.index(group) < lines.index(mine[0])
    assert "optim=" in done.stdout and "${linear_lr:" in done.stdout
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("words", [["recipe=quickstart", "seed=7"], ["optim=lars", "batch=4096", "track=off"]])
def test_cfg_job_resolve_prints_the_run_whole(command, tmp_path, words):
    done = command("--cfg", "job", "--resolve", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "${" not in done.stdout and "???" not in done.stdout
    printed = yaml.safe_load(done.stdout)
    assert printed.pop("sweep") and set(printed) == set(help.knobs(run.Run))
    for word in words:
        knob, _, value = word.partition("=")
        shown = printed[knob]["name"] if isinstance(printed[knob], dict) else printed[knob]
        assert str(shown) == value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(printed))
    assert rundir.load(tmp_path).batch == printed["batch"]
    assert list((tmp_path / "here").iterdir()) == []


def test_from_another_folder_paths_are_taken_from_there(command, tmp_path):
    folder = tmp_path / "it's a; folder=[with] 'signs'"
    folder.mkdir()
    done = command("--cfg", "job", "--resolve", cwd=folder)
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["track"]["uri"] == f"sqlite:///{folder}/mlflow.db"
    (folder / "shards").mkdir()
    done = command("data=imagenet", "data.dir=shards", cwd=folder)
    assert done.returncode == 1
    assert f"{folder}/shards" in done.stderr and done.stderr.count("\n") == 1


def test_the_console_script_is_the_same_program(command):
    script = Path(sys.executable).with_name("resnet-train")
    if not script.exists():
        pytest.skip("the package is not installed (pip install -e .)")
    done = command("optim.momentm=1", program=[str(script)])
    assert done.returncode == 1
    assert all(part in done.stderr for part in REFUSED["optim.momentm=1"])


def completions(command, line):
    """What Hydra offers at the end of `line`."""
    done = command("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_tab_completes_groups_options_and_knobs(command):
    assert completions(command, "resnet-train optim=") == ["optim=adamw", "optim=lamb", "optim=lars", "optim=sgd"]
    assert completions(command, "resnet-train model=resnext") == [
        "model=resnext101",
        "model=resnext101_32x8d",
        "model=resnext101_64x4d",
        "model=resnext152",
        "model=resnext50",
    ]
    assert completions(command, "resnet-train recipe=q") == ["recipe=quickstart", "recipe=quickstart_fast"]
    assert "optim.trust_coefficient=" in completions(command, "resnet-train optim=lars optim.t")


def test_the_bash_function_completes(command, tmp_path):
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "resnet-train"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m resnet.train "$@"\n')
    script.chmod(0o755)
    done = command("-sc", "install=bash")
    assert (done.returncode, done.stderr) == (0, "")
    # Installed under the name of the program it was asked of; here, the module.
    function = done.stdout[done.stdout.index("hydra_bash_completion()") : done.stdout.index("COMP_WORDBREAKS")]
    typing = (
        'COMP_LINE="resnet-train sweep=" COMP_POINT=19 COMP_WORDS=(resnet-train sweep=) COMP_CWORD=1\n'
        'hydra_bash_completion\necho "${COMPREPLY[@]}"\n'
    )
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    shell = subprocess.run(["bash", "-c", function + typing], env=env, cwd=tmp_path, capture_output=True, text=True)
    sweeps = ["asha", "batch_lr", "dtype", "lr_search", "optim_model"]
    assert sorted(shell.stdout.split()) == [f"sweep={name}" for name in sweeps], shell.stderr
