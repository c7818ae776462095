"""Runs on two real ranks that are killed, stopped or signalled, and what is left of them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from resnet.training import checkpoint

pytestmark = pytest.mark.timeout(900)  # processes that wait for each other, on a machine that may be busy

WORDS = (
    "model=tiny",
    "data=digits",
    "batch=32",
    "steps=60",
    "save_every_steps=7",
    "log_every_steps=1",
    "eval_every_epochs=9",
    "track=off",
    "cluster=cpu2",
)


class Training:
    """`python -m resnet.train` with these words, under way in `out`."""

    def __init__(self, out, *words):
        self.out = Path(out)
        command = [sys.executable, "-m", "resnet.train", *WORDS, *words, f"out={out}"]
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
        """The checkpoint that a signal to all leaves, within ten seconds and with a status of its own."""
        began = time.monotonic()
        self.process.send_signal(number)
        status, _, errors = self.end()
        assert status == 143 and time.monotonic() - began < 10
        saved = checkpoint.list_checkpoints(self.out)[-1]
        assert checkpoint.verify(saved) is None
        assert f"saved {saved.path.name}; resume with: python -m resnet.train resume=" in errors
        return saved

    def end(self):
        said, errors = self.process.communicate(timeout=600)
        return self.process.returncode, said, errors


def weights(out):
    """Every number of the last checkpoint."""
    import tensorflow as tf

    saved = checkpoint.list_checkpoints(out)[-1]
    assert saved.step == 60 and checkpoint.verify(saved) is None
    reader = tf.train.load_checkpoint(str(saved.path / "weights"))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in n}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The weights of a run that nobody disturbed."""
    training = Training(tmp_path_factory.mktemp("unbroken") / "run")
    assert training.end()[0] == 0
    return weights(training.out)


def assert_same(left, right):
    assert left.keys() == right.keys() and len(left) > 40
    for name, value in left.items():
        assert np.array_equal(value, right[name]), name


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_costs_nothing_but_time_and_a_signal_later_is_answered_by_a_checkpoint(
    tmp_path, unbroken, rank
):
    training = Training(tmp_path / "run", "cluster.max_restarts=1")
    training.wait_for(random.randint(1, 40))
    training.send(rank, signal.SIGKILL)
    status, _, errors = training.end()
    assert status == 0, errors
    assert "restart 1 of 1 from the newest checkpoint" in errors
    assert f"rank {rank} " in next(line for line in errors.splitlines() if "restart 1 of 1" in line)
    assert_same(weights(training.out), unbroken)
    training = Training(tmp_path / "run", "steps=3000", "save_every_steps=100000")
    training.wait_for(70)
    assert training.stop(signal.SIGTERM).step >= 70


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
def test_ranks_that_wait_for_a_stopped_one_end_with_their_stacks_and_start_again(tmp_path, unbroken):
    training = Training(tmp_path / "run", "cluster.max_restarts=1", "cluster.stall_s=10")
    training.wait_for(20)
    training.send(1, signal.SIGSTOP)
    status, _, errors = training.end()
    assert status == 0, errors
    assert "restart 1 of 1" in errors
    log = (training.out / "logs" / "rank-0.log").read_text()
    assert "no step finished for 10 s (cluster.stall_s)" in log
    assert "resnet/training/loop.py" in log[log.index("no step finished") :]
    assert_same(weights(training.out), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "number"), [(("cluster=local",), signal.SIGTERM), ((), signal.SIGINT)])
def test_a_signal_ends_a_run_in_ten_seconds_with_its_step_saved_and_a_status_of_its_own(tmp_path, words, number):
    training = Training(tmp_path / "run", "steps=3000", "save_every_steps=100000", *words)
    training.wait_for(10)
    assert training.stop(number).step >= 10


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
