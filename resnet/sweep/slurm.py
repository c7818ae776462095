"""A job of a sweep as a job of Slurm: sbatch starts it, squeue says whether it is in the queue, and its folder how it ended.

Jobs do not need the sweep's process. If it dies, `sweep.resume=` finds them again by <job>/slurm.json, which is there until a
sweep has taken note of the job's end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from resnet import UserError, cli, files
from resnet.config import topology
from resnet.config.cluster import Device, Starter
from resnet.config.sweep import Slurm
from resnet.launch import launchers
from resnet.rundir import result
from resnet.sweep.job import Job

FILE, EXIT = "slurm.json", "exit"  # in a job's folder: its number in Slurm, and its exit status
POLL_S = 5.0
RETRY_S = 30.0  # until sbatch, which was refused, is tried again
WARN_S = 120  # before the time limit
ANSWER_S = 60.0  # for Slurm's commands
# Of the user's variables those that would hide jobs from squeue, or have scancel ask; of an allocation that the sweep itself
# runs in all that describe it, which a job would take for its own.
ALIEN, ALLOCATION = ("SQUEUE_", "SCANCEL_"), ("SLURM_", "SLURMD_")
NEEDED = ("SLURM_CONF", "SLURM_MPI_TYPE")
SCRIPT = r"""#!/bin/bash
# A job of a sweep: job.sh <its folder>. Slurm's warning of the time limit (USR1) has it saved and queued again. SIGTERM has it
# saved only: scancel and preemption bring it, and Slurm itself queues a preempted job again.
out=$1 run='' again='' heard=''
[[ -e $out/slurm.json ]] || echo "{\"job\": \"$SLURM_JOB_ID\"}" >"$out/slurm.json"
grep -q "\"$SLURM_JOB_ID\"" "$out/slurm.json" || exit 0 # the sweep died while it submitted this one, and has submitted another
rm -f "$out/exit"
newest() { printf '%s\n' "$out"/checkpoints/step-* | tail -n 1; }
before=$(newest)
stop() { heard=yes && [[ -z $run ]] || kill -TERM "$run"; }
trap 'again=yes && stop' USR1
trap stop TERM
PROGRAM "$out" &
run=$!
[[ -z $heard ]] || stop
until heard='' && wait "$run"; status=$? && [[ -z $heard ]]; do :; done # a trap ends `wait` early
# A time limit too short to get any further would have it start for ever.
if ((status == 143)) && [[ -n $again && $(newest) != "$before" ]]; then
  trap '' TERM
  for _ in {1..12}; do
    scontrol requeue "$SLURM_JOB_ID" && exit
    sleep 5
  done
fi
echo "$status" >"$out/exit.part" && mv "$out/exit.part" "$out/exit"
exit "$status"
"""


def submission(job: Job, settings: Slurm) -> list[str]:
    """The command that submits a job: a task for each rank. Of jobs with one name `singleton` lets one run at a time."""
    cluster, nodes, sweep = job.run.cluster, settings.nodes, job.out.parent
    name, dependency, warn_s = f"{sweep.name}-{job.number}", None, WARN_S
    if settings.array_limit:
        digest = hashlib.sha256(os.fsencode(sweep)).hexdigest()[:6]  # for two sweeps of the same name elsewhere
        name, dependency = f"{sweep.name}-{digest}-{job.number % settings.array_limit}", "singleton"
    if settings.time_min:
        warn_s = min(WARN_S, 15 * settings.time_min)
    each = math.ceil(cluster.ranks / nodes)
    options = {
        "job-name": name,
        "output": str(job.log).replace("%", "%%"),
        "open-mode": "append",
        "export": "ALL",
        "signal": f"B:USR1@{warn_s}",
        "dependency": dependency,
        "nodes": nodes,
        "ntasks": cluster.ranks,
        "ntasks-per-node": each if nodes > 1 and cluster.ranks % nodes == 0 else None,
        "partition": settings.partition,
        "time": settings.time_min,
        "gpus-per-node": settings.gpus or (each if cluster.device is Device.gpu else None),
        "cpus-per-task": settings.cpus,
        "mem": None if settings.mem_gb is None else f"{math.ceil(settings.mem_gb * 1024)}M",
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return [
        "sbatch",
        "--parsable",
        "--requeue",
        *words,
        *shlex.split(settings.extra),
        str(sweep / "job.sh"),
        str(job.out),
    ]


def run(words: list[str]) -> str:
    """The output of a command of Slurm. Raises UserError with the last line of its error."""
    alien = (*ALIEN, *(ALLOCATION if topology.in_allocation() else ()))
    env = {name: value for name, value in os.environ.items() if name in NEEDED or not name.startswith(alien)}
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_S, check=False, env=env
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{words[0]}: {error}; is Slurm's controller up?") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"{shlex.join(words)}: {last}")
    return done.stdout.strip()


def write_script(out: Path) -> Path:
    """<out>/job.sh, which runs every job of the sweep in `out`."""
    environment = [f"{name}={value}" for name, value in launchers.python_environment().items()]
    program = shlex.join(["env", *environment, sys.executable, *launchers.PROGRAM])
    return files.write_text(out / "job.sh", SCRIPT.replace("PROGRAM", program))


def number_of(out: Path) -> str | None:
    """Slurm's number of the job in `out`, as far as a sweep has not taken note of its end."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, UserError):
        number = str(files.read_json(out / FILE)["job"])
        return number if number.isdecimal() else None
    return None


def exit_status(out: Path) -> int | None:
    """What job.sh has written in `out` at its end."""
    with contextlib.suppress(OSError, ValueError):
        return int((out / EXIT).read_text())
    return None


class Queue:
    """Slurm's queue, asked once for all jobs of a sweep. Raises UserError without Slurm's commands."""

    def __init__(self, settings: Slurm, *, dry_run: bool = False) -> None:
        missing = [name for name in ("sbatch", "squeue", "scancel", "scontrol") if not shutil.which(name)]
        if missing and not dry_run:
            raise UserError(
                f"sweep.on=slurm: {', '.join(missing)} not found; run it on a login node of Slurm, or use sweep.on=here"
            )
        self.settings = settings
        self.states: dict[str, str] = {}  # of all jobs of this user: PENDING, RUNNING, ...
        self.answers = 0
        self.queried_at = self.retry_at = -math.inf
        self.live: set[str] = set()  # numbers of the sweep's jobs

    def check(self, job: Job) -> None:
        """Raise UserError for a job that could not start in an allocation of these nodes."""
        cluster, nodes = job.run.cluster, self.settings.nodes
        if cluster.hosts:
            raise UserError(
                f"cluster.hosts={cluster.hosts}: {job.name} gets its hosts from Slurm; use sweep.slurm.nodes="
            )
        if nodes > cluster.ranks:
            raise UserError(f"sweep.slurm.nodes={nodes}: {job.name} has fewer ranks; use cluster.ranks={nodes} or more")
        if nodes > 1 and cluster.starter is Starter.horovodrun:
            raise UserError(
                "cluster.starter=horovodrun: starts no ranks on other nodes of Slurm's; leave it out, or use "
                "sweep.slurm.nodes=1"
            )

    def dry_run_text(self, job: Job) -> str:
        return shlex.join(submission(job, self.settings))

    def start(self, job: Job) -> SlurmJob:
        """Submit a job. Raises UserError if it cannot be, unless others are in the queue: then it is tried again."""
        for name in (EXIT, FILE):
            (job.out / name).unlink(missing_ok=True)
        one = SlurmJob(self, job)
        one.submit()
        return one

    def find(self, job: Job) -> SlurmJob | None:
        """The job that an earlier process of the sweep has submitted: in the queue, or pruned or failed since.

        Raises UserError if Slurm does not answer.
        """
        number = number_of(job.out)
        if number is None:
            return None
        if not self.answers:
            self.query()
        if number in self.states or exit_status(job.out) not in (None, cli.DONE, cli.STOPPED):
            return SlurmJob(self, job, number)
        return None

    def query(self) -> None:
        lines = run(["squeue", "--me", "--noheader", "--format=%A %T"]).splitlines()
        self.states = dict(line.split(maxsplit=1) for line in lines if " " in line)
        self.answers += 1

    def state(self, number: str) -> str | None:
        """PENDING, RUNNING, ...; None for a job that has left the queue. An answer is used for POLL_S seconds."""
        if time.monotonic() - self.queried_at > POLL_S:
            with contextlib.suppress(UserError):  # the controller may be away for a while: no answer says nothing
                self.query()
            self.queried_at = time.monotonic()
        return self.states.get(number)


class SlurmJob:
    """A job in Slurm's queue, as the pool sees it. Without a number it could not be submitted yet."""

    def __init__(self, queue: Queue, job: Job, number: str | None = None) -> None:
        self.queue, self.job, self.out, self.number = queue, job, job.out, number
        self.signals: list[int] = []
        self.delivered = True  # the last of them
        self.answers = -1  # of squeue, when a signal was sent or the job was missing there
        self.missing = False
        if number:
            queue.live.add(number)

    def submit(self) -> None:
        """Submit it, unless one that Slurm accepted without an answer has written its number. Raises UserError."""
        if time.monotonic() < self.queue.retry_at:
            return
        try:
            number = number_of(self.out) or run(submission(self.job, self.queue.settings)).partition(";")[0]
            if not number.isdecimal():
                raise UserError(f"sbatch: answered {number!r}, not the number of a job")
        except UserError as error:
            if not self.queue.live:
                raise
            if self.queue.retry_at == -math.inf:
                print(f"{error}; trying again every {RETRY_S:g} s", file=sys.stderr, flush=True)
            self.queue.retry_at = time.monotonic() + RETRY_S
            return
        files.write_text(self.out / FILE, json.dumps({"job": number}) + "\n")
        self.number, self.queue.retry_at = number, -math.inf
        self.queue.live.add(number)
        self.queue.states.setdefault(number, "PENDING")

    def poll(self) -> int | None:
        """Its exit status once it has left the queue; STOPPED, PRUNED or FAILED if it left none."""
        if self.number is None:
            if self.signals:
                return cli.STOPPED
            try:
                self.submit()
            except UserError as error:
                print(error, file=sys.stderr, flush=True)
                return cli.FAILED
            return None
        if self.queue.state(self.number):
            self.missing = False
            if not self.delivered and self.queue.answers > self.answers:
                self.deliver()
            return None
        code = exit_status(self.out)
        if code is None and not (self.missing and self.queue.answers > self.answers):
            if not self.missing:
                self.missing, self.answers = True, self.queue.answers
                with contextlib.suppress(OSError):
                    os.utime(self.out)  # NFS shows what other hosts put there up to a minute later otherwise
            return None
        if code is None:
            stopped = cli.PRUNED if (self.out / result.PRUNE).exists() else cli.STOPPED
            code = stopped if self.signals else cli.FAILED
        self.queue.live.discard(self.number)
        (self.out / FILE).unlink(missing_ok=True)
        return code

    def send(self, number: int) -> None:
        """SIGTERM: it saves and ends, or leaves the queue if it waits there. SIGINT: Slurm ends it.

        SIGKILL: nothing. It comes after SIGINT, or because the sweep has failed, which its jobs survive.
        """
        self.signals.append(number)
        if self.number and number != signal.SIGKILL:
            self.deliver()

    def deliver(self) -> None:
        """Have Slurm pass the last signal on; without an answer poll() tries again."""
        assert self.number
        self.answers = self.queue.answers
        calls = [["scancel", self.number]]
        if signal.SIGINT not in self.signals:
            calls = [["scancel", "--batch", "--signal=TERM", self.number]]
            if self.queue.states.get(self.number) != "RUNNING":
                calls.insert(0, ["scancel", "--state=PENDING", self.number])
        try:
            for words in calls:
                run(words)
            self.delivered = True
        except UserError:
            self.delivered = False
