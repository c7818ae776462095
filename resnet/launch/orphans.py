"""Ranks that an earlier start has left running on this machine, and the processes of ranks at all."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

import psutil

from resnet.launch import rank_status
from resnet.launch.rank_status import RankStatus

LINGER_S = 20.0  # how long they may take to save and end


def kill_stale_ranks(out: Path) -> None:
    """End the ranks that an earlier start has left on this machine: two would write the same checkpoints.

    This process holds the lock of `out`; so who started them has died, by SIGKILL for example, and nobody watches them.
    """
    left = [
        process
        for record in rank_status.records(out)
        if not record.ended and (process := process_of(record, out)) and process.create_time() < record.time + 1
    ]  # else the number has gone to another process; us, perhaps
    for process in left:
        print(
            f"out={out}: a rank of an earlier start still runs (pid {process.pid}); it is told to save and end",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(left, LINGER_S)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()
            process.wait(LINGER_S)


def process_of(record: RankStatus, out: Path) -> psutil.Process | None:
    """The process of a rank that runs on this machine."""
    if record.machine == socket.gethostname():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(record.pid)
            if str(out) in process.cmdline():
                return process
    return None


def is_alive(process: psutil.Process) -> bool:
    """Whether it has not ended yet; a zombie has."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
