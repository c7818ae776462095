"""Jobs over processes: in order, never piled up, no worker left behind; and the progress that is shown meanwhile."""

import itertools
import os
import pty
import re
import subprocess
import sys
import textwrap
import time
from multiprocessing.context import SpawnContext

import psutil
import pytest

from resnet.prepare import workers as module
from resnet.prepare.workers import Workers, progress, tick


def square(number):
    tick()
    return number * number, os.getpid()


def failing(number):
    if number == 5:
        raise ValueError("five")
    return number


def sleeping(seconds):
    failing(seconds)
    time.sleep(seconds)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_jobs(processes):
    taken = []

    def jobs():
        for number in range(40):
            taken.append(number)
            yield number

    with Workers(processes) as workers:
        results = workers.map(square, jobs())
        next(results)
        assert len(taken) <= 3 * processes  # no more than can be worked on
        found = [square for square, _ in results]
        assert found == [number * number for number in range(1, 40)]
        assert workers.ticks() == 40


def test_one_process_is_this_one_and_two_are_others():
    with Workers(1) as workers:
        assert {pid for _, pid in workers.map(square, range(4))} == {os.getpid()}
    with Workers(2) as workers:
        pids = {pid for _, pid in workers.map(square, range(20))}
    assert os.getpid() not in pids
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_a_job_comes_out_as_it_is(processes):
    with Workers(processes) as workers, pytest.raises(ValueError, match="five"):
        list(workers.map(failing, range(10)))


def test_an_error_ends_workers_in_the_middle_of_their_jobs():
    began = time.monotonic()
    with pytest.raises(ValueError, match="five"), Workers(2) as workers:
        list(workers.map(sleeping, [0, 5, 30, 30, 30]))
    assert time.monotonic() - began < 28


def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
            import os, signal, time
            from resnet.prepare.workers import Workers

            if __name__ == "__main__":
                with Workers(2) as workers:
                    results = workers.map(time.sleep, [0, 0, 60, 60, 60])
                    next(results)
                    print("ready", flush=True)
                    next(results), next(results)
        """)
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


@pytest.mark.parametrize("processes", [1, 2])
def test_without_shared_semaphores_one_process_does_it_and_a_line_says_so(processes, monkeypatch, capsys):
    """As in a container without /dev/shm: sem_open() and multiprocessing's heap fail there."""

    def missing(*_words):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(SpawnContext, "Lock", missing)
    monkeypatch.setattr(SpawnContext, "RawValue", missing)
    with Workers(processes) as workers:
        assert list(workers.map(square, [2, 3])) == [(4, os.getpid()), (9, os.getpid())]
        assert (workers.ticks(), workers.processes) == (2, 1)
    line = capsys.readouterr().err
    assert line.startswith("processes=2: ") and "/dev/shm" in line if processes == 2 else not line


# ---------------------------------------------------------------------------------------------------------------- progress
def printed(capsys, number):
    """So many lines of stdout, once they are there."""
    text, deadline = "", time.monotonic() + 60
    while text.count("\n") < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        text += capsys.readouterr().out
    return text.splitlines()


def test_lines_say_how_far_and_how_long(capsys, monkeypatch):
    monkeypatch.setattr(module, "LINE_S", 0.05)
    count = itertools.count(10, 10)
    with progress("images", 1000, lambda: next(count), already=100):
        lines = printed(capsys, 2)
    assert all(re.fullmatch(r"\d+ of 1,000 images, [\d,]+ a second, left \d:\d\d:\d\d", line) for line in lines)
    assert int(lines[0].split()[0]) > 100


def test_nothing_done_yet_is_no_division_by_zero(capsys, monkeypatch):
    monkeypatch.setattr(module, "LINE_S", 0.02)
    with progress("images", 10, lambda: 0):
        assert "0 of 10 images, 0 a second, left ?" in printed(capsys, 1)[0]


def test_what_is_quick_says_nothing(capsys):
    with progress("images", 10, lambda: 10):
        pass
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar():
    code = (
        "import itertools, time; from resnet.prepare.workers import progress; count = itertools.count()\n"
        "with progress('images', 50, lambda: next(count)): time.sleep(1)"
    )
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=environment)
    assert process.wait(30) == 0
    os.close(slave)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert "━" in shown
    assert "/50" in shown
    assert "images" in shown
