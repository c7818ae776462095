"""A process that makes no progress ends by itself, and says where it stood."""

import signal
import subprocess
import sys
import time

import pytest

from resnet.training.watchdog import STALLED, Watchdog

PROGRAM = """
import sys, time
from resnet.training.watchdog import Watchdog

def stuck_in_a_collective():
    time.sleep(60)

with Watchdog(0.5, 3, lambda line: open(sys.argv[1], "w").write(line)) as watch:
    for _ in range(6):
        time.sleep(0.2)
        watch.reset()
    print("working", flush=True)
    stuck_in_a_collective()
"""


def test_a_process_without_progress_ends_with_its_stacks_in_the_log(tmp_path):
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "line"], capture_output=True, text=True)
    assert done.returncode == STALLED == 75
    assert done.stdout == "working\n"  # 1.2 s of work were not mistaken for a stall
    assert time.monotonic() - start < 30
    assert "rank 3: no step finished for 0.5 s (cluster.stall_s)" in done.stderr
    assert "in stuck_in_a_collective" in done.stderr
    assert (
        (tmp_path / "line")
        .read_text()
        .startswith("rank 3: no step finished for 0.5 s (cluster.stall_s); if the data can be read again")
    )


def test_time_in_which_the_process_did_not_run_is_no_stall(tmp_path):
    """A suspended machine, or SIGSTOP; what was left of the limit is left after it."""
    program = PROGRAM.replace("time.sleep(60)", "time.sleep(0.2)").replace("Watchdog(0.5", "Watchdog(1.5")
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path / "line"], stdout=subprocess.PIPE)
    while not process.stdout.readline():
        pass
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == 0 and not (tmp_path / "line").exists()


def test_a_signal_to_stop_shortens_the_limit_to_some_steps():
    watch = Watchdog(600, 0, print)
    watch.hurry()
    assert (watch.limit_s, watch.reason) == (60, "after a signal to stop")  # the first step compiles
    watch.longest = 15.0
    watch.hurry()
    assert watch.limit_s == 45
    watch.longest = 0.1
    watch.hurry()
    assert watch.limit_s == 20


@pytest.mark.parametrize("failing", [False, True])
def test_what_ended_in_time_is_left_alone(failing):
    lines = []
    try:
        with Watchdog(0.1, 0, lines.append):
            if failing:
                raise KeyError
    except KeyError:
        pass
    time.sleep(0.4)
    assert not lines


def test_every_batch_of_an_evaluation_is_a_sign_of_life():
    watch = Watchdog(600, 0, print)
    watch.since = 0.0
    batches = watch.watching(iter("ab"))
    assert watch.since == 0.0
    assert next(batches) == "a" and watch.since > 0
    assert list(batches) == ["b"]
