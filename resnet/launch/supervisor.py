"""Trains a run in processes that this one starts, watches, stops and starts again; it never imports TensorFlow.

Rank 0's log is what comes out here; lines of the others go to stderr, prefixed. What a rank ended with it tells in its
record (`resnet.roster`), because starters tell at most one number for all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from resnet import UserError, cli, rundir
from resnet.config.cluster import Starter
from resnet.config.run import Run
from resnet.config.track import Mlflow
from resnet.launch import failure, launchers, orphans, rank_status
from resnet.launch.failure import Outcome
from resnet.launch.rank_status import RankStatus
from resnet.launch.streams import Stream
from resnet.rundir import lock
from resnet.track import store

POLL_S = 0.1
LINGER_S = 20.0  # how long the others may take to end by themselves once one has failed
FEW = 16  # so many ranks are looked at at every poll, more of them once a second


def run(run: Run, out: Path) -> dict[str, Any]:
    """Train `run` in `out` in as many processes as it wants; the result, as rank 0 has written it.

    Raises UserError for what the user can mend, Failed with the first failing rank's own traceback, Stopped after a
    signal, KeyboardInterrupt after a second one.
    """
    launchers.check(run)
    with lock.hold(out):
        orphans.kill_stale_ranks(out)
        rundir.claim(run, out)
        return supervise(run, out)


def supervise(run: Run, out: Path) -> dict[str, Any]:
    """Start the ranks, as often as the run allows; alone in `out`."""
    cluster, heard = run.cluster, SignalRelay()
    status = "FAILED"
    try:
        with heard:
            for restarts in range(cluster.max_restarts + 1):
                end = run_once(run, out, heard)
                if end.made:
                    status = "FINISHED"
                    return end.made
                if heard.at_once:
                    raise KeyboardInterrupt
                if end.stopped:
                    status = "KILLED"
                    raise cli.Stopped(end.stopped)
                if end.user:
                    raise UserError(end.line)
                if not end.again or restarts == cluster.max_restarts:
                    break
                said = f"{end.line}; restart {restarts + 1} of {cluster.max_restarts} from the newest checkpoint"
                print(said, file=sys.stderr, flush=True)
                ignoring_mlflow_errors(store.count_restart, run.track, identity(run, out))
        count = f" (restarts: {restarts})" if restarts else ""
        raise cli.Failed(f"{end.line}{count}; {end.where}{end.trace}")
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        first = rank_status.read(rank_status.path(out, 0))
        if status != "FINISHED" and not (first and first.state in ("failed", "stopped")):  # else it has told MLflow
            ignoring_mlflow_errors(store.close_run, run.track, identity(run, out), status, only_if_running=True)


def identity(run: Run, out: Path) -> str | None:
    """The MLflow run of this folder, if any."""
    return store.identity(out, run.track.uri) if isinstance(run.track, Mlflow) else None


def ignoring_mlflow_errors(work: Any, *words: Any, **more: Any) -> None:
    """Do `work` with MLflow; trouble with it is told in a line, and costs the run nothing."""
    try:
        work(*words, **more)
    except Exception as error:
        print(f"MLflow: {type(error).__name__}: {str(error).partition(chr(10))[0]}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------- signals
class SignalRelay:
    """Context: notes signals. The first asks the ranks to save and end; SIGINT after it ends everything at once."""

    def __init__(self) -> None:
        self.asked = False
        self.at_once = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> SignalRelay:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Only take note."""
        self.at_once = self.at_once or (self.asked and number == signal.SIGINT)
        self.asked = True


# --------------------------------------------------------------------------------------------------------------- one start
def run_once(run: Run, out: Path, heard: SignalRelay) -> Outcome:
    """Start all ranks, wait until all of them have ended, say how. None lives on."""
    rank_status.folder(out).mkdir(parents=True, exist_ok=True)
    for record in rank_status.records(out):
        rank_status.path(out, record.rank).unlink(missing_ok=True)
    with launchers.Rendezvous(run.cluster) as found_at, (rank_status.folder(out) / "starter.log").open("ab") as log:
        words = launchers.command(run, out)
        log.write(f"$ {shlex.join(words)}\n".encode())
        log.flush()
        start = Attempt(run, out, heard, log.tell())
        if run.cluster.ranks > 1:
            by = start.starter.value if start.starter else ""
            print(f"{run.cluster.ranks} ranks, started by {by}; logs in {rank_status.folder(out)}", flush=True)
        # A session of its own: a terminal's Ctrl-C comes from here, not to everybody at once.
        start.process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **launchers.environment(run), **found_at},
            start_new_session=True,
            preexec_fn=dying_with_parent(),
        )
        try:
            start.follow()
        finally:
            start.end_all()
    return start.seen().end()


def dying_with_parent() -> Callable[[], object] | None:
    """For a child, on Linux: have it sent SIGTERM when this process dies, however it does."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    return (lambda: prctl(1, int(signal.SIGTERM))) if prctl else None  # 1: PR_SET_PDEATHSIG


class Attempt:
    """One start of all ranks, from the first process to the last."""

    def __init__(self, run: Run, out: Path, heard: SignalRelay, said_from: int) -> None:
        self.run, self.out, self.heard, self.said_from = run, out, heard, said_from
        self.ranks = run.cluster.ranks
        self.starter = launchers.launcher_for(run.cluster)
        self.process: subprocess.Popen[bytes]
        self.began = time.monotonic()
        self.looked = -1.0
        self.trouble: float | None = None  # since when one is known to have failed
        self.over: float | None = None  # since when one is known to have ended well
        self.records: dict[int, RankStatus] = {}
        self.processes: dict[int, psutil.Process] = {}  # of ranks on this machine
        self.gone: dict[int, float] = {}  # when they were seen to have ended, s since 1970
        self.told: set[int] = set()  # ranks that were asked to stop
        self.streams = {rank: Stream(out, rank) for rank in range(self.ranks)}
        self.missing = False  # some did not start in time

    def follow(self) -> None:
        """Until the starter has ended, or had to be ended."""
        while self.process.poll() is None:
            self.streams[0].show(self.records.get(0))
            if time.monotonic() - self.looked >= (POLL_S if self.ranks <= FEW else 1.0):
                self.look()
            self.ask_to_stop()
            if self.heard.at_once or self.overdue():
                return
            time.sleep(POLL_S)

    def look(self) -> None:
        """Read what the ranks say, and see who has gone."""
        self.looked = time.monotonic()
        self.refresh(rank_status.folder(self.out))
        for record in rank_status.records(self.out):
            if record.rank not in self.records and (process := orphans.process_of(record, self.out)):
                self.processes[record.rank] = process
            self.records[record.rank] = record
        for rank, process in self.processes.items():
            if rank not in self.gone and not orphans.is_alive(process):
                self.gone[rank] = time.time()
        for stream in self.streams.values():
            stream.show(self.records.get(stream.rank))
        states = {record.state for record in self.records.values()}
        lost = any(not self.records[rank].ended for rank in self.gone)
        if self.trouble is None and (lost or states & {"failed", "stalled"}):
            self.trouble = self.looked
        if self.over is None and states & {"done", "stopped"}:
            self.over = self.looked

    def refresh(self, folder: Path) -> None:
        """Have NFS look again: what other hosts put in a folder it shows up to a minute later, unless we touch that folder."""
        if self.run.cluster.hosts or self.starter is Starter.srun:
            os.utime(folder)

    def overdue(self) -> bool:
        """Whether what is left must be ended by force."""
        now, cluster = time.monotonic(), self.run.cluster
        self.missing = self.missing or (len(self.records) < self.ranks and now - self.began > cluster.start_s)
        return (
            self.missing
            or (self.trouble is not None and now - self.trouble > LINGER_S)
            or (self.over is not None and now - self.over > cluster.stall_s)
        )

    def ask_to_stop(self) -> None:
        """Pass a signal on, once to each rank: as SIGTERM, and not to a starter: srun would kill them at once, others soon."""
        if not self.heard.asked or self.heard.at_once:
            return
        asked = {rank: record for rank, record in self.records.items() if rank not in self.told and not record.ended}
        self.told |= set(asked)
        if self.starter is Starter.srun:  # each task of a step hears what one is told
            self.told |= set(range(self.ranks)) if asked else set()
            self.signal_step("TERM", asked.values())
            return
        for rank in asked:
            if rank in self.processes:
                with contextlib.suppress(psutil.Error):
                    self.processes[rank].send_signal(signal.SIGTERM)
        self.signal_others("TERM", [record for rank, record in asked.items() if rank not in self.processes])

    def signal_others(self, name: str, records: list[RankStatus]) -> None:
        """Signal ranks on other hosts, if they still are this run's."""
        calls = []
        for host in sorted({record.host for record in records}):
            pids = " ".join(str(record.pid) for record in records if record.host == host)
            script = (
                f"for pid in {pids}; do tr '\\0' ' ' </proc/$pid/cmdline | grep -qF {shlex.quote(str(self.out))} && "
                f"kill -{name} $pid; done"
            )
            there = launchers.reachable(host, self.run.cluster)
            words = launchers.ssh(there, ["sh", "-c", script], self.run.cluster, 5)
            quiet = subprocess.DEVNULL
            calls.append(subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet))
        for call in calls:
            with contextlib.suppress(subprocess.TimeoutExpired):
                call.wait(10)

    def signal_step(self, name: str, records: Iterable[RankStatus]) -> None:
        """Signal every task of the Slurm steps that these ranks are of."""
        steps = sorted({record.step for record in records if record.step})
        if steps:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                words = ["scancel", f"--signal={name}", *steps]
                subprocess.run(words, check=False, capture_output=True, timeout=30)

    def end_all(self) -> None:
        """Leave no process behind, stopped ones included, and show the rest of what they said."""
        ended = self.process.poll() is not None
        self.look()
        for process in self.processes.values():
            if orphans.is_alive(process):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        others = [record for rank, record in self.records.items() if rank not in self.processes and not record.ended]
        if self.starter is Starter.srun:
            if not ended:
                self.signal_step("KILL", others)
        elif others:
            self.signal_others("KILL", others)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(10)
        for process in self.processes.values():
            with contextlib.suppress(psutil.Error):
                process.wait(10)
        self.look()
        for stream in self.streams.values():
            stream.show(self.records.get(stream.rank), last=True)

    def seen(self) -> failure.Observation:
        """What came of it, for a verdict. What other hosts wrote is to be seen too."""
        self.refresh(self.out)
        with (rank_status.folder(self.out) / "starter.log").open("rb") as file:
            file.seek(self.said_from)
            said = file.read().decode(errors="replace")
        return failure.Observation(
            self.run,
            self.out,
            self.records,
            self.gone,
            content=lambda rank: self.streams[rank].content(),
            status=self.process.returncode,
            missing=self.missing,
            asked=self.heard.asked,
            said=said,
        )
