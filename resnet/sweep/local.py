"""A job's process on this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import ExitStack

from resnet import files
from resnet.launch import launchers
from resnet.sweep.job import Job
from resnet.sweep.places import Place

PDEATHSIG = 1  # of prctl(2), on Linux


def start(job: Job, place: Place, *, quiet: bool) -> subprocess.Popen[bytes]:
    """Train a job in a fresh interpreter. `quiet`: what it prints goes to its log instead of the terminal.

    It has a session of its own, so that a terminal's Ctrl-C reaches it through the sweep; it saves and ends when
    this process dies.
    """
    env = {**os.environ, **launchers.python_environment(), **place.environment}
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def prepare() -> None:
        if prctl:
            prctl(PDEATHSIG, int(signal.SIGTERM))
        if place.cores:
            os.sched_setaffinity(0, place.cores)

    words = [sys.executable, *launchers.PROGRAM, str(job.out)]
    with ExitStack() as stack:
        log = stack.enter_context(open(job.log, "ab", opener=files.regular)) if quiet else None
        return subprocess.Popen(
            words,
            env=env,
            start_new_session=True,
            preexec_fn=prepare,
            stdin=subprocess.DEVNULL if quiet else None,
            stdout=log,
            stderr=log,
        )
