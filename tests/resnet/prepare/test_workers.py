"""Jobs shared out over processes: in order, never piled up, and no worker left behind."""

import os
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from resnet.prepare.workers import Workers, tick


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
    assert time.monotonic() - began < 15


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
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive
