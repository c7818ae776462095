"""What a long run holds while it trains: memory, open files and threads do not grow with its steps."""

import contextlib
import statistics
import subprocess
import sys
import time

import psutil
import pytest
from run_files import lines, logged

STEPS, PER_EPOCH = 4400, 1437 // 32
WORDS = [
    "model=tiny",
    "data=digits",
    "batch=32",
    f"epochs={STEPS / PER_EPOCH:.0f}",
    f"steps={STEPS}",
    "schedule=constant",
    "optim.lr=0.01",
    f"eval_every_epochs={STEPS / 44 / PER_EPOCH}",
    "track=off",
]


def usage(process):
    """(memory in bytes, open files, threads) of a process and its children."""
    family = [process, *process.children(recursive=True)]
    memory = sum(one.memory_info().rss for one in family)
    return memory, sum(one.num_fds() for one in family), sum(one.num_threads() for one in family)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_files_and_threads_do_not_grow_with_the_steps(tmp_path):
    command = [sys.executable, "-m", "resnet.train", *WORDS, f"out={tmp_path}"]
    samples = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            with contextlib.suppress(psutil.Error, OSError, ValueError):  # not started, or just ended; a torn line
                step = max(step for step, _ in logged(tmp_path, "train/loss"))
                samples.append((step, usage(psutil.Process(process.pid))))
            time.sleep(0.2)
        assert process.returncode == 0, process.stderr.read()
    assert len(logged(tmp_path, "eval/top1")) == 44 and len(lines(tmp_path)) > 44
    early, late = (
        [
            statistics.median(values)
            for values in zip(*(used for step, used in samples if low < step / STEPS <= high), strict=True)
        ]
        for low, high in ((0.2, 0.4), (0.8, 1.0))
    )
    assert len(early) == len(late) == 3, "the training was too short to be sampled"
    for name, before, after in zip(("memory", "open files", "threads"), early, late, strict=True):
        assert after <= 1.02 * before, f"{name}: {before} at 20 to 40 % of the steps, {after} at 80 to 100 %"
