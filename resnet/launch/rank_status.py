"""The status file and the log of each rank, <out>/logs/rank-<r>.json and .log: the rank writes them, its parent reads them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from resnet import files
from resnet.config import topology

# Errors of a rank whose peer has died (Horovod 0.27 and 0.28, Gloo, MPI).
PEER_ERRORS = re.compile(
    "Horovod has been shut down|HorovodInternalError|gloo/transport|[Cc]onnection (reset|closed) by peer|[Bb]roken pipe"
)
CLOCK_S = 2.0  # between two readings of when a process began: Linux reckons it from the clock
LINGER_S = 20.0  # for ranks of an earlier start to save and end


@dataclass(frozen=True)
class RankStatus:
    """One rank, as it last reported itself."""

    rank: int
    pid: int
    host: str  # by the name that its launcher has for it
    machine: str  # by the name that it has for itself
    step: str | None  # Slurm's, as scancel takes it
    state: str  # running, done, failed, stopped or stalled
    time: float  # s since 1970
    created: float = 0.0  # when the process began: another process may have its number later
    kind: str | None = None  # of a failure: user (can mend it), peer (another rank's failure caused it) or error
    error: str | None = None  # one line, or a traceback
    shown: int | None = None  # bytes of its log before that error

    @property
    def running(self) -> bool:
        return self.state == "running"

    def process(self) -> psutil.Process | None:
        """Its process, if it runs on this machine."""
        if self.machine == socket.gethostname():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(self.pid)
                if abs(process.create_time() - self.created) < CLOCK_S:
                    return process
        return None

    def prefixed(self, text: str) -> list[str]:
        """Lines that it has printed, with its name in front."""
        return [f"[rank {self.rank} on {self.host}] {line}" for line in text.splitlines()]


def folder(out: Path) -> Path:
    return out / "logs"


def log(out: Path, rank: int) -> Path:
    return folder(out) / f"rank-{rank}.log"


def path(out: Path, rank: int) -> Path:
    return folder(out) / f"rank-{rank}.json"


def write(out: Path, status: RankStatus) -> None:
    files.write_text(path(out, status.rank), json.dumps(asdict(status)) + "\n")


def read(file: Path) -> RankStatus | None:
    """None for a file that is not there, or not a status."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return RankStatus(**files.read_json(file))
    return None


def read_all(out: Path) -> list[RankStatus]:
    """All ranks that have a status file, in order."""
    return sorted(filter(None, map(read, folder(out).glob("rank-*.json"))), key=lambda status: status.rank)


def register(out: Path, rank: int) -> None:
    """Report that this process is `rank`, and runs."""
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    host, machine = topology.process_host(), socket.gethostname()
    step_id, created = job and step and f"{job}.{step}", psutil.Process().create_time()
    write(out, RankStatus(rank, os.getpid(), host, machine, step_id, "running", time.time(), created))


def finish(out: Path, rank: int, state: str, error: str | None = None, kind: str | None = None) -> None:
    """Report how a registered rank ended."""
    if status := read(path(out, rank)):
        shown = log(out, rank).stat().st_size if log(out, rank).exists() else None
        write(out, replace(status, state=state, time=time.time(), error=error, kind=kind, shown=shown))


def wait_for_first(out: Path, limit_s: float) -> None:
    """Return when rank 0 has ended: a launcher kills the others soon after one has ended with another status than 0."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and (first := read(path(out, 0))) and first.running:
        time.sleep(0.05)


def redirect(out: Path, rank: int) -> None:
    """Send all that this process prints from here on, libraries in C too, to the rank's log."""
    folder(out).mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = files.regular(str(log(out, rank)), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def error_kind(error: BaseException) -> str:
    """`peer` for an exception that another rank's end has caused, else `error`."""
    horovod = type(error).__name__ == "HorovodInternalError" or type(error).__module__.startswith("tensorflow.")
    return "peer" if horovod and PEER_ERRORS.search(f"{type(error).__name__}: {error}") else "error"


class Stream:
    """The log of one rank, printed as it grows: unchanged for rank 0, prefixed and on stderr for the others."""

    def __init__(self, out: Path, rank: int) -> None:
        self.out, self.rank, self.path = out, rank, log(out, rank)
        self.start = self.position = self.path.stat().st_size if self.path.exists() else 0

    def show(self, status: RankStatus | None, *, last: bool = False) -> None:
        """Print new whole lines; at `last` the rest too. The error that a rank ended with is left for the diagnosis."""
        with contextlib.suppress(OSError), open(self.path, "rb", opener=files.regular) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= self.position or (self.rank and status is None):
                return
            newest = read(path(self.out, self.rank))  # after the size
            if newest and newest.state in ("failed", "stopped") and newest.shown is not None:
                size = min(size, newest.shown)
            file.seek(self.position)
            new = file.read(max(0, size - self.position))
            whole = new if last else new[: new.rfind(b"\n") + 1]
            self.position += len(whole)
            text = whole.decode(errors="replace")
            if self.rank == 0:
                print(text, end="", flush=True)
            elif status:
                for line in status.prefixed(text):
                    print(line, file=sys.stderr, flush=True)

    def content(self) -> str:
        """What the rank has printed since this start."""
        return self.path.read_bytes()[self.start :].decode(errors="replace") if self.path.exists() else ""


def kill_stale_ranks(out: Path) -> None:
    """End the ranks that an earlier start has left on this machine: two would write the same checkpoints.

    This process holds the lock of `out`. So the process that started them has died, by SIGKILL for example.
    """
    stale = []
    for status in filter(lambda status: status.running, read_all(out)):
        if process := status.process():
            line = f"out={out}: a rank of an earlier start still runs (pid {process.pid}); it is asked to save and end"
            print(line, file=sys.stderr, flush=True)
            stale.append(process)
            with contextlib.suppress(psutil.Error):
                process.terminate()
    for process in psutil.wait_procs(stale, LINGER_S)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()
            process.wait(LINGER_S)
