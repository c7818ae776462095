"""A job's process on this machine: forked from one that has imported what all jobs need, or a fresh interpreter for Gaudi.

The imports take 5 s. Habana's plug-in reads its environment when it is imported; so it is imported by each job.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver, util

from resnet.config.cluster import Device
from resnet.launch import forked, launchers
from resnet.launch.forked import Forked
from resnet.sweep.job import Job
from resnet.sweep.places import Place

PROGRAM = "resnet.rank"
PRELOAD = "resnet.launch.supervisor", "resnet.training.loop", "rich.progress", "matplotlib.backends.backend_agg"
TRACKING = "mlflow", "matplotlib.pyplot"
LONGEST = 70  # characters of a temporary folder: a socket has 108 for its path
LAST = "resnet.sweep.server"


def start_server(*, tracks: bool) -> None:
    """Start the process that jobs are forked from, which imports what they need meanwhile; MLflow if one of them `tracks`."""
    folder = tempfile.tempdir
    if len(tempfile.gettempdir()) > LONGEST:
        tempfile.tempdir = "/tmp"
    util.get_temp_dir()  # for the server's socket; multiprocessing keeps to its first answer
    tempfile.tempdir = folder
    forkserver.set_forkserver_preload([*PRELOAD, *(TRACKING if tracks else ()), LAST])
    forkserver.ensure_running()


def start(job: Job, place: Place, *, quiet: bool) -> Forked:
    """Train a job in a process of its own. `quiet`: what it prints goes to its log instead of the terminal.

    It has a session of its own, so that a terminal's Ctrl-C reaches it through the sweep; it saves and ends when this
    process dies.
    """
    fork = job.run.cluster.device is not Device.hpu
    context = multiprocessing.get_context("forkserver") if fork else multiprocessing.get_context("spawn")
    environment = {**os.environ, **launchers.python_environment(), **place.environment}
    arguments = (PROGRAM, str(job.out), environment, place.cores, str(job.log) if quiet else None)
    return Forked(context.Process(target=train, args=arguments))


def train(
    program: str, out: str, environment: Mapping[str, str], cores: frozenset[int] | None, log: str | None
) -> None:
    """In the job's process: `python -m <program> <out>` on these cores."""
    if cores:
        os.sched_setaffinity(0, cores)
    file = None if log is None else os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    forked.run_module(program, [out], environment, file)
