"""One training to a folder: locks of real processes that live, end, and are killed."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from resnet import UserError
from resnet.rundir import lock
from resnet.training import checkpoint

HOLD = """
import sys, time
from pathlib import Path
from resnet.rundir import lock
with lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holding(out):
    """Another process that holds the lock."""
    words = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def refused(out):
    with pytest.raises(UserError) as caught, lock.hold(out):
        raise AssertionError("two hold it")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_second_process_is_refused_with_the_first_ones_host_number_and_time(tmp_path):
    out = tmp_path / "a [run] of; mine"
    with holding(out) as process:
        said = refused(out)
    since = time.strftime("%Y-%m-%d ")
    assert said.startswith(f"out={out}: process {process.pid} on {socket.gethostname()} trains here since {since}")
    assert said.endswith(f"end it with `kill {process.pid}`, or give another out=")


def training(out, *words):
    """`python -m resnet.train` there."""
    words = [
        "model=tiny",
        "data=digits",
        "batch=8",
        "track=off",
        "eval=false",
        "log_every_steps=1",
        *words,
        f"out={out}",
    ]
    command = [sys.executable, "-u", "-m", "resnet.train", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_training_in_the_folder_of_another_is_refused_at_once(tmp_path):
    """Before TensorFlow is imported: the holder here is a process that only has the lock."""
    with holding(tmp_path) as process:
        second = training(tmp_path, "steps=1")
        said, errors = second.communicate()
    host = socket.gethostname()
    assert second.returncode == 1 and said == ""
    assert errors.startswith(f"error: out={tmp_path}: process {process.pid} on {host} trains here since ")
    assert errors.count("\n") == 1 and not (tmp_path / "config.yaml").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_two_trainings_the_second_is_refused_and_has_the_folder_once_the_first_is_killed(tmp_path):
    with training(tmp_path, "steps=100000", "save_every_steps=20") as first:
        try:
            for line in first.stdout:
                if line.startswith("step 30/"):
                    break
            second = training(tmp_path, "steps=100000", "save_every_steps=20")
            _, errors = second.communicate()
            assert second.returncode == 1 and f": process {first.pid} on {socket.gethostname()} trains here" in errors
            assert first.poll() is None
        finally:
            first.kill()
    step = max(saved.step for saved in checkpoint.list_checkpoints(tmp_path))
    third = training(tmp_path, f"steps={step + 20}", "save_every_steps=20")
    said, errors = third.communicate()
    assert third.returncode == 0 and f"resuming at step {step:,}," in said, errors


@pytest.mark.parametrize("number", [signal.SIGKILL, None])
def test_the_lock_of_a_process_that_has_ended_is_taken_over_at_once(tmp_path, monkeypatch, number):
    monkeypatch.setattr(lock, "PATIENCE_S", 60)
    with holding(tmp_path) as process:
        if number:
            process.send_signal(number)
        else:
            process.stdin.close()
        process.wait()
        began = time.monotonic()
        with lock.hold(tmp_path):
            assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()
        assert time.monotonic() - began < 30
    with lock.hold(tmp_path):  # and again by the same process
        pass


@pytest.mark.parametrize("start", ["subprocess.Popen(['sleep', '30'])", "os.fork() or (time.sleep(30), os._exit(0))"])
def test_a_child_that_outlives_the_holder_does_not_keep_the_lock(tmp_path, start):
    code = HOLD.replace("    sys.stdin", f"    import os, subprocess, time\n    {start}\n    sys.stdin")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        deadline = time.monotonic() + 30
        while not (children := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
            time.sleep(0.01)
        (child,) = children
        process.kill()
        process.wait()
        with lock.hold(tmp_path):
            assert child.is_running()
        child.kill()


def test_an_error_inside_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path):
        raise ZeroDivisionError
    with lock.hold(tmp_path):
        pass


def test_a_holder_on_another_host_is_named_with_the_way_to_end_it(tmp_path):
    with holding(tmp_path):
        told = json.loads((tmp_path / lock.FILE).read_text())
        (tmp_path / lock.FILE).write_text(json.dumps({**told, "host": "node 7"}))
        assert "on node 7 trains here" in refused(tmp_path) and "`ssh 'node 7' 'kill " in refused(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"host": 3}', "null"])
def test_a_lock_that_does_not_say_whose_it_is_is_refused_too_after_a_while(tmp_path, monkeypatch, text):
    monkeypatch.setattr(lock, "PATIENCE_S", 0.2)
    with holding(tmp_path):
        (tmp_path / lock.FILE).write_text(text)
        assert "another process trains here" in refused(tmp_path)


# ---------------------------------------------------------------------------------------------- file systems without locks
@pytest.fixture
def lockless(monkeypatch):
    def flock(_file, _kind):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("lockless")
def test_without_locks_a_living_process_on_this_host_is_refused(tmp_path):
    with holding(tmp_path) as process:
        assert f"process {process.pid} on" in refused(tmp_path)
        process.kill()
        process.wait()
        with lock.hold(tmp_path):
            pass


@pytest.mark.usefixtures("lockless")
def test_without_locks_a_number_that_now_is_another_process_is_nobody(tmp_path):
    with holding(tmp_path):
        told = json.loads((tmp_path / lock.FILE).read_text())
        (tmp_path / lock.FILE).write_text(json.dumps({**told, "born": told["born"] - 60}))
        with lock.hold(tmp_path):
            pass


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file" / "run").startswith(
        f"out={tmp_path / 'file' / 'run'}: cannot be written to (Not a "
    )
