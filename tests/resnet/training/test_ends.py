"""A run ends within seconds, however it ends and however slowly its data is read."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_network
import tensorflow as tf

from resnet import UserError, cli
from resnet.config.data import Records
from resnet.data import digits, pipeline, reading, shards, source
from resnet.training import step
from resnet.training.watchdog import STALLED

# Each read takes 30 ms, and none returns any more once the loss has been read so often: a busy network disk, or one that is gone.
PROGRAM = f"""
import runpy, sys, time
sys.path.insert(0, {str(Path(small_network.__file__).parent)!r})
{small_network.BEFORE}
from resnet.data import shards
from resnet.training.meter import Meter
read_record, read_loss, after, count = shards.read, Meter.read, int(sys.argv.pop(1)), 0
def slow(records, number):
    time.sleep(0.03 if count < after else 1e6)
    return read_record(records, number)
def counted(meter, *waited):
    global count
    count += 1
    time.sleep(0.1)  # the next reads begin
    return read_loss(meter, *waited)
shards.read, Meter.read = slow, counted
runpy.run_module("resnet.train", run_name="__main__", alter_sys=True)
"""
WORDS = (
    "model=tiny",
    "data=digits",
    "batch=32",
    "eval=false",
    "track=off",
    "schedule.warmup_epochs=0",
    "log_every_steps=1",
)


def train(out, after, *words, signal_at=""):
    """A training in an interpreter of its own, which a forked process does not end as. SIGTERM once stdout has a text."""
    command = [sys.executable, "-c", PROGRAM, str(after), *WORDS, f"out={out}", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines, limit = [], threading.Timer(100, process.kill)
    limit.start()
    for line in process.stdout:
        lines.append(line)
        if signal_at and signal_at in line:
            process.terminate()
        if line.startswith(("error", "stopped")):  # from here on it has seconds
            limit.cancel()
            limit = threading.Timer(40, process.kill)
            limit.start()
    limit.cancel()
    return process.wait(), "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("after", [10**9, 2], ids=["slow", "gone"])
def test_an_error_while_reads_are_in_flight_ends_the_process(tmp_path, after):
    status, text = train(tmp_path / "run", after, "optim.lr=1e38", "steps=9")
    assert status == cli.FAILED and "the loss is nan" in text, text
    assert ("a read has not ended within 5 s" in text) == (after == 2)


@pytest.mark.slow
@pytest.mark.parametrize(("after", "expected"), [(10**9, cli.STOPPED), (3, STALLED)])
def test_a_signal_while_reads_are_in_flight_ends_the_process(tmp_path, after, expected):
    status, text = train(tmp_path / "run", after, "steps=900", signal_at="step 3/")
    assert status == expected, text
    assert ("no step finished for 20 s (after a signal to stop)" in text) == (expected == STALLED)


@pytest.fixture
def records(tmp_path, monkeypatch):
    """The digits, whose reads wait for `go`, and a list of those that began."""
    digits.write(tmp_path)
    go, began, read = threading.Event(), [], shards.read

    def waiting(index, number):
        began.append(number)
        go.wait(60)
        return read(index, number)

    opened = source.open_source(Records(name="digits", dir=str(tmp_path), classes=10))
    monkeypatch.setattr(shards, "read", waiting)
    monkeypatch.setattr(cli, "unfinished", [])
    yield opened, go, began
    go.set()


def start_reading(records, began):
    """Have batches read in another thread; the thread."""

    def read():
        with contextlib.suppress(tf.errors.OpError):
            next(iter(pipeline.train(records, 32, 1, 0)))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    while not began:
        time.sleep(0.01)
    return thread


def test_reads_that_end_are_waited_for_and_none_begins_after_them(records):
    opened, go, began = records
    with contextlib.suppress(UserError), reading.reading(opened, 1, 32):
        start_reading(opened, began)
        threading.Timer(0.2, go.set).start()
        raise UserError("the loss is nan")
    assert opened.reads.count == 0 and not cli.unfinished
    count = len(began)
    with pytest.raises(Exception, match="ReadsClosed"):
        next(iter(pipeline.train(opened, 32, 1, 0)))
    assert len(began) == count


def test_reads_that_never_end_are_left_behind_by_name(records, monkeypatch, exit_status):
    opened, _go, began = records
    monkeypatch.setattr(reading, "READS_END_S", 0.1)
    at_once = []
    monkeypatch.setattr(cli.os, "_exit", lambda status: at_once.append(status) or sys.exit(status))

    def command():
        with cli.reported(), reading.reading(opened, 1, 32):
            start_reading(opened, began)
            raise UserError("the loss is nan")

    assert exit_status(command) == cli.FAILED and at_once == [cli.FAILED]
    assert [line for _, line in cli.unfinished] == [
        f"data.dir={opened.settings.dir}: a read has not ended within 0.1 s"
    ]


def test_an_iterator_that_does_not_end_is_left_behind_without_a_word(monkeypatch, capfd):
    go = threading.Event()
    monkeypatch.setattr(cli, "unfinished", [])
    monkeypatch.setattr(step, "ITERATOR_END_S", 0.1)
    at_once: list[int] = []
    monkeypatch.setattr(cli.os, "_exit", at_once.append)
    stuck = SimpleNamespace(source=SimpleNamespace(reads=SimpleNamespace(count=0)), destroy=go.wait)
    step.TrainStep.close(stuck)
    ((running, _),) = cli.unfinished
    cli.leave(cli.DONE)
    assert at_once == [cli.DONE] and capfd.readouterr().err == ""
    go.set()
    while running():
        time.sleep(0.01)
    cli.leave(cli.DONE)  # nothing is left to end the process for
    assert len(at_once) == 1


PRINTING = """
from resnet import cli
with cli.reported():
    for number in range(9999):
        print("line", number)
    open("end", "w").write(str(number))
"""


def test_a_command_needs_no_stdout_and_no_stderr(tmp_path):
    program = f"import os, sys\nsys.stdout = sys.stderr = None\n{PRINTING}"
    environment = {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment).returncode == 0
    assert (tmp_path / "end").read_text() == "9998"


@pytest.mark.parametrize("full", [False, True])
def test_what_is_printed_never_ends_a_command(tmp_path, full):
    """Neither a pipe that nobody reads any more, nor a full disk."""
    environment = {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    with Path("/dev/full" if full else os.devnull).open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", PRINTING],
            cwd=tmp_path,
            env=environment,
            stdout=file if full else subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    if process.stdout:
        process.stdout.readline()
        process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    assert (tmp_path / "end").read_text() == "9998"
