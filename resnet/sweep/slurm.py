"""A job of a sweep as a job of Slurm: sbatch starts it, squeue says how it goes, and its folder how it ended.

Jobs do not need the sweep: it may die, and `sweep.resume=` finds them by <job>/slurm.json. Slurm's warning of the time limit has
a job saved and queued again, as launch/slurm/train.sh does; a preempted one is queued again by Slurm.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from resnet import UserError, cli, files
from resnet.config import topology
from resnet.config.cluster import Device
from resnet.config.sweep import Slurm
from resnet.launch import launchers
from resnet.rundir import result
from resnet.sweep.job import Job

FILE, EXIT = "slurm.json", "exit"  # in a job's folder: its number in Slurm, and its exit status
POLL_S = 2.0
WARN_S = 120  # before the time limit
ANSWER_S = 60.0  # for Slurm's commands
SCRIPT = """#!/bin/bash
# A job of a sweep: {script} <folder of the job>. Slurm's warning (USR1) has it saved and queued again, SIGTERM saved only.
out=$1
newest() {{ printf '%s\\n' "$out"/checkpoints/step-* | tail -n 1; }}
before=$(newest) again='' heard=''
rm -f "$out/{exit}"
trap 'again=yes heard=yes; kill -TERM "$run"' USR1
trap 'heard=yes; kill -TERM "$run"' TERM
{program} "$out" &
run=$!
until heard=''; wait "$run"; status=$?; [[ -z $heard ]]; do :; done
if ((status == {stopped})) && [[ -n $again && $(newest) != "$before" ]]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
echo "$status" >"$out/{exit}.part" && mv "$out/{exit}.part" "$out/{exit}"
exit "$status"
"""


def check() -> None:
    """Raise UserError without Slurm's commands."""
    if missing := [name for name in ("sbatch", "squeue", "scancel", "scontrol") if not shutil.which(name)]:
        raise UserError(
            f"sweep.on=slurm: {', '.join(missing)} not found; run it on a login node of Slurm, or use sweep.on=here"
        )


def options(job: Job, settings: Slurm) -> list[str]:
    """sbatch's options for a job's resources: a task for each rank."""
    cluster = job.run.cluster
    nodes = topology.host_count(cluster) if cluster.hosts else 1
    words = [f"--nodes={nodes}", f"--ntasks={cluster.ranks}"]
    gpus = settings.gpus or (math.ceil(cluster.ranks / nodes) if cluster.device is Device.gpu else None)
    named = {
        "partition": settings.partition,
        "time": settings.time_min,
        "gpus-per-node": gpus,
        "cpus-per-task": settings.cpus,
        "mem": None if settings.mem_gb is None else f"{math.ceil(settings.mem_gb * 1024)}M",
    }
    return [*words, *(f"--{name}={value}" for name, value in named.items() if value is not None), *settings.extra]


def run(words: list[str]) -> str:
    """The output of a command of Slurm. Raises UserError with the last line of its error."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{words[0]}: {error}; is Slurm's controller up?") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"{shlex.join(words)}: {last}")
    return done.stdout.strip()


def write_script(out: Path) -> Path:
    """<out>/job.sh, which runs every job of the sweep in `out`."""
    program = shlex.join(
        ["env", *(f"{k}={v}" for k, v in launchers.python_environment().items()), sys.executable, *launchers.PROGRAM]
    )
    text = SCRIPT.format(script="job.sh", exit=EXIT, program=program, stopped=cli.STOPPED)
    return files.write_text(out / "job.sh", text)


class Queue:
    """Slurm's queue, asked once for all jobs of a sweep."""

    def __init__(self, settings: Slurm) -> None:
        self.settings = settings
        self.states: dict[str, str] = {}
        self.queried_at = -math.inf
        self.ids: set[str] = set()

    def start(self, job: Job) -> SlurmJob:
        """Submit a job, unless one of an earlier sweep's process is still in the queue."""
        number = self.known(job.out)
        if number is None:
            (job.out / EXIT).unlink(missing_ok=True)
            words = ["sbatch", "--parsable", "--requeue", "--open-mode=append", f"--signal=B:USR1@{WARN_S}"]
            words += [
                f"--job-name={job.out.parent.name}-{job.number}",
                f"--output={job.log}",
                *options(job, self.settings),
            ]
            number = run([*words, str(job.out.parent / "job.sh"), str(job.out)]).partition(";")[0]
            files.write_text(job.out / FILE, json.dumps({"job": number}) + "\n")
        self.ids.add(number)
        self.states.setdefault(number, "PENDING")
        return SlurmJob(self, number, job.out)

    def known(self, out: Path) -> str | None:
        """The number of the job that the folder has in the queue."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, UserError):
            number = str(files.read_json(out / FILE)["job"])
            if number.isdecimal() and run(["squeue", "--noheader", "--format=%T", f"--jobs={number}"]):
                return number
        return None

    def state(self, number: str) -> str | None:
        """PENDING, RUNNING, ...; None for a job that has left the queue. An answer is used for POLL_S seconds."""
        if time.monotonic() - self.queried_at > POLL_S:
            with contextlib.suppress(UserError):  # the controller may be away for a while
                lines = run(["squeue", "--noheader", "--format=%A %T", "--me"]).splitlines()
                self.states = {
                    key: state for key, _, state in (line.partition(" ") for line in lines) if key in self.ids
                }
            self.queried_at = time.monotonic()
        return self.states.get(number)


class SlurmJob:
    """A job in Slurm's queue, as the pool sees it."""

    def __init__(self, queue: Queue, number: str, out: Path) -> None:
        self.queue, self.number, self.out = queue, number, out

    def poll(self) -> int | None:
        """Its exit status once it has left the queue; FAILED if it left none: it was cancelled, or its node died."""
        state = self.queue.state(self.number)
        if state in (
            "PENDING",
            "RUNNING",
            "COMPLETING",
            "CONFIGURING",
            "REQUEUED",
            "REQUEUE_HOLD",
            "SUSPENDED",
            "RESIZING",
            "STOPPED",
        ):
            return None
        with contextlib.suppress(OSError, ValueError):
            return int((self.out / EXIT).read_text())
        return cli.DONE if result.read(self.out) else cli.FAILED

    def send(self, number: int) -> None:
        """SIGTERM: the job saves and ends, or leaves the queue if it waits there. Anything else: it ends."""
        running = self.queue.state(self.number) == "RUNNING"
        signals = ["--batch", "--signal=TERM"] if running and number == signal.SIGTERM else []
        with contextlib.suppress(UserError):
            run(["scancel", *signals, self.number])
