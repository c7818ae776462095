"""Trains a run in processes that this one starts, watches, stops and restarts; it never imports TensorFlow.

Rank 0's log is printed here as it grows; lines of the others go to stderr, prefixed. How each rank ended stands in its
status file (`rank_status`), because a launcher's exit status says at most one number for all of them.
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
from typing import IO, Any

import psutil

from resnet import UserError, cli, files, rundir
from resnet.config import topology
from resnet.config.cluster import Device, Starter
from resnet.config.run import Run
from resnet.config.track import Mlflow, error_line
from resnet.launch import failure, forked, launchers, rank_status, rendezvous
from resnet.launch.failure import Outcome
from resnet.launch.forked import Forked
from resnet.launch.rank_status import RankStatus
from resnet.rundir import lock
from resnet.track import store

POLL_S = 0.1
LINGER_S = 20.0  # how long the others may take to end by themselves once one has failed
GRACE_S = 5.0  # how long ranks that this process has started may take, asked to end because one has exited badly
FEW = 16  # up to this many ranks are polled every POLL_S, more of them once a second


def run(run: Run, out: Path) -> dict[str, Any]:
    """Train `run` in `out` in its own processes; the content of result.json, which rank 0 has written.

    Raises UserError for what the user can fix, Failed with the traceback of the rank that failed first, Stopped after a
    signal, KeyboardInterrupt after a second one.
    """
    launchers.check(run)
    with lock.hold(out):
        rank_status.kill_stale_ranks(out)
        rundir.claim(run, out)
        return supervise(run, out)


def supervise(run: Run, out: Path) -> dict[str, Any]:
    """Start the ranks, and restart them as often as the run allows. The caller holds the lock of `out`."""
    limit, status = run.cluster.max_restarts, "FAILED"
    try:
        with cli.SignalRelay() as relay:
            for restarts in range(limit + 1):
                outcome = run_once(run, out, relay)
                for line in outcome.notes:
                    print(line, file=sys.stderr, flush=True)
                if outcome.result:
                    status = "FINISHED"
                    return outcome.result
                if relay.at_once:
                    raise KeyboardInterrupt
                if outcome.stopped:
                    raise cli.Stopped(outcome.stopped)
                if outcome.user_error:
                    raise UserError(outcome.line)
                if not outcome.retry or restarts == limit:
                    break
                line = f"{outcome.line}; restart {restarts + 1} of {limit} from the newest checkpoint"
                print(line, file=sys.stderr, flush=True)
                ignoring_mlflow_errors(store.count_restart, run.track, mlflow_run(run, out))
        count = f" (restarts: {restarts})" if restarts else ""
        raise cli.Failed(f"{outcome.line}{count}; {outcome.where}{outcome.trace}")
    except (KeyboardInterrupt, cli.Stopped):
        status = "KILLED"
        raise
    finally:
        first = rank_status.read(rank_status.path(out, 0))
        if status != "FINISHED" and not (first and first.state in ("failed", "stopped")):  # else it has closed its run
            ignoring_mlflow_errors(store.close_run, run.track, mlflow_run(run, out), status, only_if_running=True)


def mlflow_run(run: Run, out: Path) -> str | None:
    return store.run_id(out, run.track.uri) if isinstance(run.track, Mlflow) else None


def ignoring_mlflow_errors(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of a call that uses MLflow; None if it fails. An error is one line on stderr: it costs the run nothing."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        print(f"MLflow: {error_line(error)}", file=sys.stderr, flush=True)
        return None


def run_once(run: Run, out: Path, relay: cli.SignalRelay) -> Outcome:
    """Start all ranks, wait until all of them have ended, and diagnose what happened. No process is left."""
    logs = rank_status.folder(out)
    logs.mkdir(parents=True, exist_ok=True)
    for status in rank_status.read_all(out):
        rank_status.path(out, status.rank).unlink(missing_ok=True)
    attempt = Attempt(run, out, relay)
    with rendezvous.serve(run.cluster) as variables, open(logs / "starter.log", "ab", opener=files.regular) as log:
        log.write(f"$ {shlex.join(launchers.command(run, out))}\n".encode())
        log.flush()
        log_start = log.tell()
        if run.cluster.ranks > 1:
            by = f", started by {attempt.launcher.value}" if attempt.launcher else ""
            print(f"{run.cluster.ranks} ranks{by}; logs in {logs}", flush=True)
        try:
            attempt.start(variables, log)
            attempt.wait()
        finally:
            attempt.end_all()
    attempt.refresh(out)
    with open(logs / "starter.log", "rb", opener=files.regular) as log:
        log.seek(log_start)
        attempt.facts.output = log.read().decode(errors="replace")
    attempt.facts.interrupted = bool(relay.received)
    return failure.diagnose(attempt.facts)


class Attempt:
    """One start of all ranks, from the first process to the last."""

    def __init__(self, run: Run, out: Path, relay: cli.SignalRelay) -> None:
        self.run, self.out, self.relay = run, out, relay
        self.size = run.cluster.ranks
        self.launcher = topology.launcher_for(run.cluster)
        self.children: list[subprocess.Popen[bytes] | Forked] = []  # the launcher; or the ranks, by number
        self.started_at = time.monotonic()
        self.polled_at = -1.0
        self.failed_at = self.done_at = float("inf")  # since when a rank is known to have failed, or to have ended well
        self.terminated_at = float("inf")  # when the others were asked to end because one has exited badly
        self.processes: dict[int, psutil.Process] = {}  # of ranks on this machine
        self.signalled: set[int] = set()  # ranks that were asked to stop
        self.streams = [rank_status.Stream(out, rank) for rank in range(self.size)]
        self.facts = failure.Observation(run, out, log=lambda rank: self.streams[rank].content())
        self.ranks = self.facts.ranks

    def start(self, variables: dict[str, str], log: IO[bytes]) -> None:
        """Start the launcher, or the ranks by themselves. `variables` are those of `rendezvous.serve`."""
        cluster, words = self.run.cluster, launchers.command(self.run, self.out)
        common = launchers.with_own({**launchers.environment(self.run), **variables}, cluster)
        prctl = getattr(ctypes.CDLL(None), "prctl", None)  # on Linux
        forks = forked.is_fork and cluster.device is Device.cpu and self.launcher is None
        for own in [{}] if self.launcher else rendezvous.on_this_host(cluster):
            if forks:
                words = [str(self.out), "--rank"]
                self.children.append(forked.fork("resnet.rank", words, {**common, **own}, log.fileno()))
                continue
            # A session of its own: a terminal's Ctrl-C comes from here, not to everybody at once.
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**common, **own},
                start_new_session=True,
                preexec_fn=prctl
                and (lambda: prctl(1, int(signal.SIGTERM))),  # PR_SET_PDEATHSIG: when this process dies
            )
            self.children.append(child)

    def wait(self) -> None:
        """Until the children have ended, or must be ended."""
        while self.running():
            self.streams[0].show(self.ranks.get(0))
            if time.monotonic() - self.polled_at >= (POLL_S if self.size <= FEW else 1.0):
                self.poll()
            self.ask_to_stop()
            self.end_others()
            if self.relay.at_once or self.overdue():
                return
            time.sleep(POLL_S)

    def running(self) -> list[subprocess.Popen[bytes] | Forked]:
        """The children that have not ended. The exit statuses of the others are recorded, the first one first."""
        codes = {number: child.poll() for number, child in enumerate(self.children)}
        self.facts.codes.update(
            {n: code for n, code in codes.items() if code is not None and n not in self.facts.codes}
        )
        return [self.children[number] for number, code in codes.items() if code is None]

    def end_others(self) -> None:
        """As launchers do: once a rank has ended badly, ask the others to end, which may wait for it for ever."""
        bad = set(self.facts.codes.values()) - {cli.DONE, cli.STOPPED}
        if bad and self.launcher is None and self.terminated_at == float("inf"):
            self.terminated_at = time.monotonic()
            for child in self.running():
                child.terminate()

    def poll(self, *, last: bool = False) -> None:
        """Read the status files, look which processes have exited, and print what is new in the logs."""
        self.polled_at = time.monotonic()
        self.refresh(rank_status.folder(self.out))
        for status in rank_status.read_all(self.out):
            if status.rank not in self.ranks and (process := status.process()):
                self.processes[status.rank] = process
            self.ranks[status.rank] = status
        exited_at = self.facts.exited_at
        exited_at.update({r: time.time() for r, p in self.processes.items() if r not in exited_at and not is_alive(p)})
        for stream in self.streams:
            stream.show(self.ranks.get(stream.rank), last=last)
        states = {status.state for status in self.ranks.values()}
        if states & {"failed", "stalled"} or any(self.ranks[rank].running for rank in exited_at):
            self.failed_at = min(self.failed_at, self.polled_at)
        if states & {"done", "stopped"}:
            self.done_at = min(self.done_at, self.polled_at)

    def refresh(self, folder: Path) -> None:
        """Touch a folder: NFS shows what other hosts put there up to a minute later otherwise."""
        if self.run.cluster.hosts or self.launcher is Starter.srun or topology.host_count(self.run.cluster) > 1:
            os.utime(folder)

    def overdue(self) -> bool:
        """Whether the remaining ranks must be ended by force."""
        now, cluster = time.monotonic(), self.run.cluster
        self.facts.late |= len(self.ranks) < self.size and now - self.started_at > cluster.start_s
        lingers = now - self.failed_at > LINGER_S or now - self.terminated_at > GRACE_S
        return self.facts.late or lingers or now - self.done_at > cluster.stall_s

    def ask_to_stop(self) -> None:
        """Pass a signal on, once to each rank: as SIGTERM, and not to a launcher: srun would kill them at once, others soon."""
        if not self.relay.received or self.relay.at_once:
            return
        waiting = {rank: status for rank, status in self.ranks.items() if rank not in self.signalled and status.running}
        self.signalled |= set(waiting)
        if self.launcher is Starter.srun and waiting:  # a signal to a step reaches all its tasks
            self.signalled |= set(range(self.size))
        elif self.launcher is not Starter.srun:
            for rank in waiting.keys() & self.processes.keys():
                with contextlib.suppress(psutil.Error):
                    self.processes[rank].send_signal(signal.SIGTERM)
                waiting.pop(rank)
        self.signal_remote("TERM", waiting.values())

    def signal_remote(self, name: str, ranks: Iterable[RankStatus]) -> None:
        """Signal ranks through Slurm, all tasks of their steps, or on other hosts by ssh, if they still are this run's."""
        calls = []
        if self.launcher is Starter.srun:
            if steps := sorted({status.step for status in ranks if status.step}):
                calls = [["scancel", f"--signal={name}", *steps]]
        else:
            pids: dict[str, list[str]] = {}
            for status in ranks:
                pids.setdefault(launchers.reachable(status.host, self.run.cluster), []).append(str(status.pid))
            for host, numbers in sorted(pids.items()):
                script = (
                    f"for pid in {' '.join(numbers)}; do tr '\\0' ' ' </proc/$pid/cmdline | "
                    f"grep -qF {shlex.quote(str(self.out))} && kill -{name} $pid; done"
                )
                calls.append(launchers.ssh(host, ["sh", "-c", script], self.run.cluster, 5))
        quiet = subprocess.DEVNULL
        with contextlib.suppress(OSError):
            for process in [subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet) for words in calls]:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)

    def end_all(self) -> None:
        """Leave no process, stopped ones included, and print the rest of the logs."""
        exited = not self.running()
        self.poll()
        for process in filter(is_alive, self.processes.values()):
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not (self.launcher is Starter.srun and exited):
            remote = [s for rank, s in self.ranks.items() if rank not in self.processes and s.running]
            self.signal_remote("KILL", remote)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in self.running():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, number)
            deadline = time.monotonic() + 10
            for child in self.running():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, deadline - time.monotonic()))
        self.running()
        for process in self.processes.values():
            with contextlib.suppress(psutil.Error):
                process.wait(10)
        self.poll(last=True)


def is_alive(process: psutil.Process) -> bool:
    """False for a zombie too."""
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
