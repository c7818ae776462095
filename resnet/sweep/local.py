"""A job's process on this machine: forked from one that has imported what all jobs need, or a fresh interpreter for Gaudi.

The imports take 5 s. The process that jobs are forked from has touched no device and run no operation of TensorFlow, so that
nothing of one job reaches another. Habana's plug-in reads its environment when it is imported; so it is imported by each job.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from multiprocessing.process import BaseProcess

import psutil

from resnet.config.cluster import Device
from resnet.launch import launchers
from resnet.sweep.job import Job
from resnet.sweep.places import Place

PROGRAM = "resnet.rank"
PRELOAD = [
    "tensorflow",
    "mlflow",
    "matplotlib.pyplot",
    "rich.progress",
    "resnet.launch.supervisor",
    "resnet.training.loop",
]
PDEATHSIG = 1  # of prctl(2), on Linux
LOST = 255  # exit status of a process whose parent, which knew it, is gone


class Forked:
    """A job forked from the server of multiprocessing, which has imported PRELOAD."""

    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        process.start()
        assert process.pid is not None
        self.pid = process.pid

    def poll(self) -> int | None:
        """As of subprocess.Popen. A job that outlives the server saves and ends by itself; until then it counts as running."""
        code = self.process.exitcode
        return None if code == LOST and psutil.pid_exists(self.pid) else code

    def send(self, number: int) -> None:
        """The job passes a signal on to its ranks; SIGKILL reaches all that it has started in its own session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number) if number == signal.SIGKILL else os.kill(self.pid, number)


def start(job: Job, place: Place, *, quiet: bool) -> Forked:
    """Train a job in a process of its own. `quiet`: what it prints goes to its log instead of the terminal.

    It has a session of its own, so that a terminal's Ctrl-C reaches it through the sweep; it saves and ends when this
    process dies.
    """
    fork = job.run.cluster.device is not Device.hpu
    context = multiprocessing.get_context("forkserver") if fork else multiprocessing.get_context("spawn")
    if fork:
        context.set_forkserver_preload(PRELOAD)
    environment = {**os.environ, **launchers.python_environment(), **place.environment}
    arguments = (PROGRAM, str(job.out), environment, place.cores, str(job.log) if quiet else None)
    return Forked(context.Process(target=train, args=arguments))


def train(program: str, out: str, environment: dict[str, str], cores: frozenset[int] | None, log: str | None) -> None:
    """In the job's process: `python -m <program> <out>`."""
    os.setsid()
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl:
        prctl(PDEATHSIG, int(signal.SIGTERM))
    if cores:
        os.sched_setaffinity(0, cores)
    if log:
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        for number in (1, 2):
            os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [program, out]
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
