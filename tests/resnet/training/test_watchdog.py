"""A process that makes no progress ends by itself, and says where it stood."""

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
    assert (tmp_path / "line").read_text().startswith("rank 3: no step finished")


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
