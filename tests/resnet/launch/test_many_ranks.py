"""Real ranks: the same answer as one rank's, and what is left of those that are killed or stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_network
from rank_runs import listeners, run_program

from resnet import rundir
from resnet.model import resnet
from resnet.training import checkpoint
from resnet.training.loop import train

pytestmark = pytest.mark.timeout(900)  # processes that wait for each other, on a machine that may be busy

FAKES = f"import sys; sys.path.insert(0, {str(Path(small_network.__file__).parent)!r})"
# Rank processes train one run after the other: starting them costs more than training. All but one train the small network.
PROGRAM = f"""
{FAKES}
from pathlib import Path
import small_network
from resnet import rundir
from resnet.model import resnet
from resnet.training import loop
build = resnet.build
for out in map(Path, sys.argv[1:]):
    resnet.build = build if out.parent.name == "resumed" else small_network.build
    loop.train(rundir.load(out), out)
"""
COMMON = (
    "model=tiny",
    "data=digits",
    "batch=24",
    "track=off",
    "log_every_steps=1",
    "cluster.sync_batch_norm=true",
    "save_every_steps=5",
    "model.zero_init_residual=false",
    "model.batch_norm_epsilon=0.1",
    "eval_every_epochs=10",
)
RUNS = {
    "lars": (
        *("optim=lars", "optim.lr=2", "schedule.warmup_epochs=0.02", "steps=5"),
        *("ema.decay=0.5", "ema.every_steps=2"),
    ),
    "resumed": ("optim=sgd", "optim.lr=0.01", "schedule.warmup_epochs=0.02", "steps=10"),
}
# A float32 sum taken in another order differs by about 1e-7 of its terms, and Horovod takes the variance as E[x^2] - E[x]^2,
# which cancels where a channel hardly varies: batch norm would divide by what is left, hence the large epsilon. Five steps feed
# the difference back. Seen: 8e-6 of a variable's largest value.
TOLERANCE = 5e-5


NUMBERS = pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.slow)])


def weights(out, step=None):
    """Every number of a checkpoint, the newest unless `step` is named."""
    import tensorflow as tf

    path = checkpoint.path_of(out, step) if step else checkpoint.list_checkpoints(out)[-1].path
    reader = tf.train.load_checkpoint(str(path / "weights"))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in n}


def assert_close(left, right):
    assert left.keys() == right.keys() and len(left) > 12
    for name, value in left.items():
        assert np.abs(value - right[name]).max() <= TOLERANCE * max(np.abs(value).max(), 1e-3), name


def evaluation(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: line[name] for name in line if name.startswith(("eval/", "ema/"))}
        for line in lines
        if "eval/top1" in line
    ]


@pytest.fixture(scope="module")
def trained(shared, run_at):
    """`trained(number of ranks, name)`: the folder of that run; of `resumed` several ranks train the second half.

    All runs of a number are trained in one start, by the first worker that needs one; two ranks train one more, `unbroken`.
    """

    def train_all(number, folder):
        runs = {name: (*COMMON, *words, f"cluster.ranks={number}") for name, words in RUNS.items()}
        outs = []
        for name, words in (runs | ({"unbroken": WORDS} if number == 2 else {})).items():
            run = run_at(folder / name, *words)
            outs.append(Path(run.out))
            if name == "resumed" and number > 1:
                later = ("result.json", "metrics.jsonl", "step-00000010", "step-00000010.*")
                shutil.copytree(of(1, "resumed"), run.out, ignore=shutil.ignore_patterns(*later))
            rundir.save(run, Path(run.out))
            if number == 1:
                with pytest.MonkeyPatch.context() as patch:
                    if name == "lars":
                        patch.setattr(resnet, "build", small_network.build)
                    train(run, Path(run.out))
        if number > 1:
            run_program(number, PROGRAM, *outs)

    def of(number, name):
        with shared(f"ranks-{number}") as folder:
            if not (folder / "trained").exists():
                train_all(number, folder)
                (folder / "trained").touch()
        return folder / name / "run"

    return of


@NUMBERS
@pytest.mark.parametrize("name", RUNS)
def test_weights_are_those_of_one_rank_at_the_same_global_batch_with_the_same_counts(trained, name, number):
    """`resumed`: with the same images too, from the middle of one rank's epoch."""
    one, many = trained(1, name), trained(number, name)
    assert_close(weights(one), weights(many))
    start = np.concatenate([w.ravel() for n, w in weights(one).items() if "velocity" in n])
    assert np.abs(start).max() > 1e-3  # something was learnt
    steps = 5 if name == "lars" else 10
    assert json.loads((many / "result.json").read_text())["steps"] == steps
    (left,), (right,) = evaluation(one), evaluation(many)
    assert left.keys() == right.keys() and ("ema/top1" in left) == (name == "lars")
    for key, value in left.items():
        assert right[key] == (pytest.approx(value, rel=1e-4) if key.endswith("loss") else value), key


@NUMBERS
def test_rank_0_alone_writes_and_the_loss_that_it_logs_is_of_all_ranks_images(trained, number):
    def losses(out):
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}

    one, many = trained(1, "lars"), trained(number, "lars")
    assert list(losses(many)) == [1, 2, 3, 4, 5]
    assert [path.name for path in sorted((many / "checkpoints").iterdir())] == ["step-00000005"]
    np.testing.assert_allclose(list(losses(many).values()), list(losses(one).values()), rtol=1e-4)


# ------------------------------------------------------------------------------------------- killed, stopped and signalled
WORDS = (
    *("model=tiny", "data=digits", "batch=32", "steps=60", "save_every_steps=20", "keep_checkpoints=100"),
    *("log_every_steps=1", "eval_every_epochs=9", "track=off", "cluster=cpu2"),
)


# Ranks with the small network, and at most 50 steps a second: most of their time would go into building a larger one's graph.
RANK = f"""
{FAKES}
import time
{small_network.BEFORE}
from resnet import rank
from resnet.training.watchdog import Watchdog
reset = Watchdog.reset
Watchdog.reset = lambda watchdog: (time.sleep(0.02), reset(watchdog))
sys.exit(rank.main())
"""
FRONT = """
import sys
from resnet import train
from resnet.launch import launchers
launchers.PROGRAM = ("-c", sys.argv.pop(1))
train.main()
"""


class Training:
    """`python -m resnet.train` with these words, under way in `out`."""

    def __init__(self, out, *words):
        self.out = Path(out)
        command = [sys.executable, "-c", FRONT, RANK, *WORDS, *words, f"out={out}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def step(self):
        """The newest step in metrics.jsonl."""
        try:
            steps = [json.loads(line)["step"] for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        except (OSError, ValueError):
            return 0
        return max(steps, default=0)

    def wait_for(self, step):
        until = time.monotonic() + 120
        while self.step() < step:
            assert self.process.poll() is None and time.monotonic() < until, self.process.communicate()
            time.sleep(0.02)

    def send(self, rank, number):
        """A signal to one rank; its pid as its record has it."""
        os.kill(json.loads((self.out / "logs" / f"rank-{rank}.json").read_text())["pid"], number)

    def stop(self, number):
        """The checkpoint that a signal leaves, within ten seconds and with a status of its own, and stderr."""
        began = time.monotonic()
        self.process.send_signal(number)
        status, _, errors = self.end()
        assert status == 143 and time.monotonic() - began < 10
        saved = checkpoint.list_checkpoints(self.out)[-1]
        assert checkpoint.verify(saved) is None
        assert f"saved {saved.path.name}; resume with: python -m resnet.train resume=" in errors
        return saved, errors

    def end(self):
        said, errors = self.process.communicate(timeout=600)
        return self.process.returncode, said, errors


def assert_same(left, right):
    assert left.keys() == right.keys() and len(left) >= 12
    for name, value in left.items():
        assert np.array_equal(value, right[name]), name


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_costs_nothing_but_time(tmp_path, trained, rank):
    training = Training(tmp_path / "run", "cluster.max_restarts=1")
    training.wait_for(random.randint(1, 40))
    assert listeners(training.process.pid) == {"127.0.0.1"}
    training.send(rank, signal.SIGKILL)
    status, _, errors = training.end()
    assert status == 0, errors
    restart = next(line for line in errors.splitlines() if "restart 1 of 1 from the newest checkpoint" in line)
    assert f"rank {rank} " in restart
    assert_same(weights(training.out), weights(trained(2, "unbroken")))


@pytest.mark.slow
def test_ranks_that_are_stopped_and_started_again_end_with_the_weights_of_undisturbed_ones(tmp_path, trained):
    training = Training(tmp_path / "run")
    training.wait_for(random.randint(3, 12))
    saved, _ = training.stop(signal.SIGTERM)
    assert saved.step % 20 == 0 or (saved.path / checkpoint.STATISTICS).exists()
    again = Training(tmp_path / "run")
    assert again.end()[0] == 0
    assert_same(weights(again.out), weights(trained(2, "unbroken")))


@pytest.mark.slow
def test_without_restarts_the_run_fails_in_seconds_and_names_the_rank(tmp_path):
    training = Training(tmp_path / "run", "cluster.max_restarts=0")
    training.wait_for(10)
    training.send(1, signal.SIGKILL)
    began = time.monotonic()
    status, _, errors = training.end()
    assert status == 1 and time.monotonic() - began < 30
    assert errors.splitlines()[-1].startswith("error: rank 1 ") and "logs/rank-1.log" in errors.splitlines()[-1]
    assert not (training.out / "result.json").exists()


@pytest.mark.slow
def test_ranks_that_wait_for_a_stopped_one_end_with_their_stacks_and_start_again(tmp_path, trained):
    training = Training(tmp_path / "run", "cluster.max_restarts=1", "cluster.stall_s=10")
    training.wait_for(20)
    training.send(1, signal.SIGSTOP)
    status, _, errors = training.end()
    assert status == 0, errors
    assert "restart 1 of 1" in errors
    log = (training.out / "logs" / "rank-0.log").read_text()
    assert "no step finished for 10 s (cluster.stall_s)" in log
    assert "resnet/training/loop.py" in log[log.index("no step finished") :]
    assert_same(weights(training.out), weights(trained(2, "unbroken")))


@pytest.mark.slow
@pytest.mark.parametrize(("words", "number"), [(("cluster=local",), signal.SIGTERM), ((), signal.SIGINT)])
def test_a_signal_ends_a_run_in_ten_seconds_with_its_step_saved_and_a_status_of_its_own(tmp_path, words, number):
    training = Training(tmp_path / "run", "steps=3000", "save_every_steps=100000", *words)
    training.wait_for(10)
    assert training.stop(number)[0].step >= 10


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(tmp_path):
    training = Training(tmp_path / "run", "steps=3000", "save_every_steps=100000")
    training.wait_for(10)
    training.send(1, signal.SIGSTOP)  # so that saving takes for ever
    training.process.send_signal(signal.SIGINT)
    time.sleep(1)
    training.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert training.end()[0] == 130 and time.monotonic() - began < 10
    for rank in range(2):
        pid = json.loads((training.out / "logs" / f"rank-{rank}.json").read_text())["pid"]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
