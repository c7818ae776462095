"""What each rank says of itself, in <out>/logs/rank-<r>.json, for the process that started it; and how a process can end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

# Where a starter tells a process its rank: the innermost one first, because Slurm tells the shell of a batch job too.
RANK = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
HOST = ("HOROVOD_HOSTNAME", "SLURMD_NODENAME")  # the host, by the name that its starter has for it

# What is said where a rank finds that another one has gone (Horovod 0.27 and 0.28, Gloo, MPI).
CONSEQUENCE = re.compile(
    "Horovod has been shut down|HorovodInternalError|gloo/transport|[Cc]onnection (reset|closed) by peer|[Bb]roken pipe"
)


@dataclass(frozen=True)
class RankStatus:
    """One rank, as it was when it last said something."""

    rank: int
    pid: int
    host: str  # by the name that its starter has for it
    machine: str  # by the name that it has for itself
    step: str | None  # Slurm's, as scancel takes it
    state: str  # running, done, failed, stopped or stalled
    time: float  # s since 1970
    error_kind: str | None = None  # of a failure: user (can mend it), peer (another rank's failure caused it) or error
    error: str | None = None  # one line, or a traceback
    shown: int | None = None  # bytes of its log that come before that error

    @property
    def ended(self) -> bool:
        """Whether it has told its end."""
        return self.state != "running"


def rank_from_env() -> int:
    """This process's rank, from the environment; 0 where nobody has told one."""
    return next((int(os.environ[name]) for name in RANK if name in os.environ), 0)


def folder(out: Path) -> Path:
    """Where records and logs are."""
    return out / "logs"


def log(out: Path, rank: int) -> Path:
    """All that a rank has printed."""
    return folder(out) / f"rank-{rank}.log"


def path(out: Path, rank: int) -> Path:
    """A rank's record."""
    return folder(out) / f"rank-{rank}.json"


def register(out: Path, rank: int) -> None:
    """This process is `rank`, and runs. Slurm's step is noted, for scancel."""
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    machine = socket.gethostname()
    host = next((os.environ[name] for name in HOST if os.environ.get(name, "localhost") != "localhost"), machine)
    write(
        out,
        RankStatus(rank, os.getpid(), host, machine, f"{job}.{step}" if job and step else None, "running", time.time()),
    )


def finish(out: Path, rank: int, state: str, error: str | None = None, kind: str | None = None) -> None:
    """Note the end of a rank that has entered."""
    entered = read(path(out, rank))
    if entered:
        shown = log(out, rank).stat().st_size if log(out, rank).exists() else None
        write(out, replace(entered, state=state, time=time.time(), error=error, kind=kind, shown=shown))


def write(out: Path, record: RankStatus) -> None:
    """Write a record aside and rename it."""
    aside = folder(out) / f".rank-{record.rank}.{os.getpid()}"
    aside.write_text(json.dumps(asdict(record)) + "\n")
    aside.replace(path(out, record.rank))


def read(file: Path) -> RankStatus | None:
    """A record; None where there is none."""
    try:
        return RankStatus(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def records(out: Path) -> Iterator[RankStatus]:
    """All that there are, by rank."""
    files = folder(out).glob("rank-*.json")
    found = [record for file in files if (record := read(file))]
    yield from sorted(found, key=lambda record: record.rank)


def wait_for_first(out: Path, limit_s: float) -> None:
    """Until rank 0 has told its end: a starter kills the others soon after one has ended with another status than 0."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and (first := read(path(out, 0))) and not first.ended:
        time.sleep(0.05)


def redirect(out: Path, rank: int) -> None:
    """All that this process prints from here on, whoever prints it, goes to the rank's log."""
    folder(out).mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log(out, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def error_kind(error: BaseException) -> str:
    """Of an error that nobody caught: `peer` if another rank's end has caused it."""
    horovods = type(error).__name__ == "HorovodInternalError" or type(error).__module__.startswith("tensorflow.")
    return "peer" if horovods and CONSEQUENCE.search(f"{type(error).__name__}: {error}") else "error"
