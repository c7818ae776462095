"""The batch files of launch/slurm, with stand-ins for the training and scontrol; launch/slurm/try.sh has a real Slurm."""

import ast
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "launch" / "slurm"
BATCHES = sorted(SLURM.glob("*.sbatch"))
SCRIPTS = [*BATCHES, SLURM / "train.sh", SLURM / "try.sh"]

# A training that notes its words, then does what $DEED says; SIGTERM has it save for a while, and end with 143.
PYTHON = """#!/bin/bash
printf '%s\\n' "$@" >words
trap 'echo asked >>asked; sleep 0.3; [[ $DEED = vain ]] || mkdir -p "$SAVES/checkpoints/step-00000009"; exit 143' TERM
touch ready
case $DEED in
exit*) exit "${DEED#exit }" ;;
*) for ((i = 0; i < 300; i++)); do sleep 0.1; done ;;
esac
"""


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """`batch("work", "seed=2")`: train.sh with these words in a folder of its own, as Slurm would run it."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "a folder"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for path, text in ((".venv/bin/python", PYTHON), ("scontrol", '#!/bin/bash\necho "$@" >requeued\n')):
        (folder / path).write_text(text)
        (folder / path).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SAVES", "runs/slurm-17")
    monkeypatch.chdir(folder)

    def start(deed, *words):
        monkeypatch.setenv("DEED", deed)
        return subprocess.Popen(["bash", SLURM / "train.sh", *words])

    return start


def wait_for(path):
    deadline = time.monotonic() + 30
    while not Path(path).exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)


def options(batch):
    """{name: value} of the lines that sbatch reads."""
    lines = [line.removeprefix("#SBATCH --") for line in batch.read_text().splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, "-x", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("batch", BATCHES, ids=lambda path: path.stem)
def test_what_sbatch_is_told(batch):
    told = options(batch)
    assert "requeue" in told
    assert told["signal"].startswith("B:USR1@")  # to the batch shell alone, by the signal that train.sh traps
    assert told["open-mode"] == "append"  # or a requeue would empty the log
    assert int(told["ntasks"]) == 8 * int(told["nodes"])
    assert (told["nodes"] == "1") == (batch.stem == "one_node")
    # Slurm keeps a copy of the batch file elsewhere: only the working folder leads to the checkout.
    assert batch.read_text().splitlines()[-1] == 'exec bash launch/slurm/train.sh "$@"'


@pytest.mark.parametrize("batch", BATCHES, ids=lambda path: path.stem)
def test_the_example_of_each_file_is_a_run_of_its_ranks(batch, run_of, monkeypatch):
    example = batch.read_text().splitlines()[1].partition(batch.name)[2].split()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_NTASKS", options(batch)["ntasks"])
    run = run_of("cluster=slurm", *example)
    assert run.cluster.ranks == int(options(batch)["ntasks"])
    assert run.batch % run.cluster.ranks == 0


def test_the_words_and_the_folder(batch):
    assert batch("exit 0", "seed=2", "data.dir=a b").wait(30) == 0
    words = ["-m", "resnet.train", "cluster=slurm", "out=runs/slurm-17", "seed=2", "data.dir=a b"]
    assert Path("words").read_text().splitlines() == words
    for given in ("out=mine", "resume=runs/x"):
        assert batch("exit 0", "seed=2", given).wait(30) == 0
        assert Path("words").read_text().splitlines() == [*words[:3], "seed=2", given]


def test_another_interpreter(batch, monkeypatch, tmp_path):
    (Path.cwd() / ".venv" / "bin" / "python").rename(tmp_path / "other")
    monkeypatch.setenv("PYTHON", str(tmp_path / "other"))
    assert batch("exit 0").wait(30) == 0
    assert Path("words").exists()


@pytest.mark.parametrize("status", [1, 75, 143])
def test_the_exit_status_is_the_trainings_and_nothing_is_tried_again_unasked(batch, status):
    assert batch(f"exit {status}").wait(30) == status
    assert not Path("requeued").exists()


@pytest.mark.parametrize("words", [[], ["out=a run"], ["resume=a run", "batch=8"]], ids=" ".join)
def test_a_warning_of_the_time_limit_has_it_saved_and_requeued(batch, words, monkeypatch):
    if words:
        monkeypatch.setenv("SAVES", "a run")
        Path("a run/checkpoints/step-00000008").mkdir(parents=True)
    job = batch("work", *words)
    wait_for("ready")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0  # scontrol's
    assert Path("asked").read_text() == "asked\n"
    assert Path("requeued").read_text() == "requeue 17\n"


@pytest.mark.parametrize("task", ["3", None])
def test_one_job_of_a_sweep_has_its_checkpoints_in_a_folder_of_its_own(batch, monkeypatch, task):
    if task:  # of a job array
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
    monkeypatch.setenv("SAVES", "a sweep/3")
    job = batch(
        "work",
        "-m",
        "seed=1,2,3,4",
        "out=a sweep",
        "sweep.only=${oc.env:SLURM_ARRAY_TASK_ID}" if task else "sweep.only=3",
    )
    wait_for("ready")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0 and Path("requeued").read_text() == "requeue 17\n"


def test_a_job_that_got_no_further_is_not_requeued_or_it_would_start_for_ever(batch):
    Path("runs/slurm-17/checkpoints/step-00000009").mkdir(parents=True)  # of the time before
    job = batch("vain")
    wait_for("ready")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 143
    assert Path("asked").exists() and not Path("requeued").exists()


def test_a_warning_that_comes_when_all_is_done_requeues_nothing(batch):
    job = batch("exit 0")
    wait_for("ready")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) in (0, -signal.SIGUSR1)  # not heard any more
    assert not Path("requeued").exists()


def test_what_cancels_or_preempts_has_it_saved_and_leaves_the_rest_to_slurm(batch):
    job = batch("work")
    wait_for("ready")
    job.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    job.send_signal(signal.SIGTERM)  # twice, as scancel's and srun's
    assert job.wait(30) == 143
    assert Path("asked").exists() and not Path("requeued").exists()


def test_the_real_training_takes_the_words(tmp_path):
    """train.sh as it is, but for the allocation: one task, which needs no srun."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    environment = {**os.environ, "PYTHON": sys.executable, "SLURM_JOB_ID": "17", "SLURM_NTASKS": "1"}
    words = ["model=tiny", "data=digits", "batch=32", "steps=2", "eval=false", "track=off"]
    command = ["bash", "launch/slurm/train.sh", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs" / "slurm-17" / "result.json").read_text())["steps"] == 2


def test_what_the_trial_calls_of_the_package_is_there():
    program = ast.parse(re.search(r"<<'PYTHON'.*?\n(.*?)\nPYTHON\n", (SLURM / "try.sh").read_text(), re.DOTALL)[1])
    modules = {
        alias.name: importlib.import_module(f"{node.module}.{alias.name}")
        for node in ast.walk(program)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnet")
        for alias in node.names
    }
    assert set(modules) == {"checkpoint", "result"}
    for node in ast.walk(program):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), node.attr
