"""How one attempt of all ranks came out: a result, a stop, or which rank failed first, and why."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet import shell
from resnet.config import fingerprint, topology
from resnet.config.run import Run
from resnet.launch import rank_status
from resnet.launch.rank_status import RankStatus
from resnet.rundir import result

TAIL_LINES = 15  # of the launcher's output, where no rank has reported anything
TRACE = re.compile(r"^(Traceback \(most recent call last\)|Fatal Python error|\*\*\* )", re.MULTILINE)
# How launchers report which rank ended first, and how: horovodrun, mpirun (2), srun.
EXITS = (
    re.compile(r"Process (?P<rank>\d+) exit with status code (?P<code>\d+)"),
    re.compile(r"process rank (?P<rank>\d+) .*exited on signal (?P<signal>\d+)"),
    re.compile(r"Process name: \[\[\d+,\d+\],(?P<rank>\d+)\]\s+Exit code:\s+(?P<code>\d+)"),
    re.compile(r"srun: error: \S+: task (?P<rank>\d+): (?:Exited with exit code (?P<code>\d+)|(?P<name>.+))"),
)


@dataclass(frozen=True)
class Outcome:
    """How one attempt came out."""

    result: dict[str, Any] | None = None
    stopped: str | None = None  # after a signal: what was saved, and how to resume
    line: str = ""  # which rank failed, and how
    where: str = ""  # the log to read
    trace: str = ""  # its own traceback, on lines of its own
    user_error: bool = False  # the user can fix it
    retry: bool = False  # another attempt may succeed
    notes: Sequence[str] = ()  # lines for stderr


@dataclass
class Observation:
    """What is known of one attempt; `diagnose` wants all of its processes to have ended."""

    run: Run
    out: Path
    log: Callable[[int], str]  # what a rank has printed
    ranks: dict[int, RankStatus] = dataclasses.field(default_factory=dict)  # those that have registered
    exited_at: dict[int, float] = dataclasses.field(default_factory=dict)  # of ranks of this machine, s since 1970
    codes: dict[int, int] = dataclasses.field(
        default_factory=dict
    )  # of the launcher, as 0; or of ranks, first one first
    late: bool = False  # some ranks did not start in time
    interrupted: bool = False  # by a signal to this process
    output: str = ""  # of the launcher


def diagnose(attempt: Observation) -> Outcome:
    failure = _first_failure(attempt)
    # Errors that several ranks had by themselves, but for the first, which is reported last.
    others = [status for status in _failed(attempt, "user", "error", None)[1:] if status.kind == "error"]
    notes = [line for status in others for line in status.prefixed(status.error or "")]
    content = result.read(attempt.out)
    current = content and content.get("fingerprint") == fingerprint.fingerprint(attempt.run)
    if current and not (failure and failure.user_error):
        if failure:
            notes.append(f"{failure.line}; the result was written before, and stands")
        return Outcome(result=content, notes=notes)
    states = {status.state for status in attempt.ranks.values()}
    if not _failed(attempt, "user", "error") and (attempt.interrupted or "stopped" in states):
        saved = (status.error for status in rank_status.read_all(attempt.out) if status.state == "stopped")
        resume = f"resume with: {shell.command('resnet.train', shell.override('resume', attempt.out))}"
        return Outcome(stopped=next(saved, None) or f"nothing was saved since the last checkpoint; {resume}")
    if failure:
        return dataclasses.replace(failure, notes=notes)
    where = f"logs in {rank_status.folder(attempt.out)}"
    return Outcome(line="all ranks ended well, and there is no result", where=where)


def _failed(attempt: Observation, *kinds: str | None, state: str = "failed") -> list[RankStatus]:
    """Ranks that have reported failures of these kinds, the first one first."""
    failed = [status for status in attempt.ranks.values() if status.state == state and status.kind in kinds]
    return sorted(failed, key=lambda status: status.time)


def _first_failure(attempt: Observation) -> Outcome | None:
    """The failure of the rank that failed before the others, or by itself."""
    if own := _failed(attempt, "user", "error", None):
        error = own[0].error or ""
        if own[0].kind == "user":
            return Outcome(line=error, user_error=True)
        return _rank(attempt, own[0], "failed", error)
    launcher, cluster = topology.launcher_for(attempt.run.cluster), attempt.run.cluster
    output = "\n".join(attempt.output.strip().splitlines()[-TAIL_LINES:])
    tail = f" and ends with:\n{output}" if output else ""
    log = f"log is {rank_status.folder(attempt.out)}/starter.log"
    if not attempt.ranks:
        name = launcher.value if launcher else "Python"
        code = next(filter(None, attempt.codes.values()), 0)
        line = f"{name} ended before any rank had started (exit status {code})"
        return Outcome(line=line, where=f"its {log}", trace=tail)
    failed, stalled = _failed(attempt, "peer"), _failed(attempt, None, state="stalled")
    silent = [status for status in attempt.ranks.values() if status.running]
    absent = [rank for rank in range(cluster.ranks) if rank not in attempt.ranks]
    unreported = {*absent, *(status.rank for status in silent)}
    blamed = next((rank for rank in _exits(attempt) if rank in unreported), None)  # by its exit status
    if absent and (blamed in absent or attempt.late or not silent):
        listed = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
        limit = f" within cluster.start_s={cluster.start_s:g}" if attempt.late else ""
        line = f"{len(absent)} of {cluster.ranks} ranks did not start{limit} (rank {listed})"
        return Outcome(line=line, where=f"the starter's {log}", trace=tail)
    if silent:
        return _silent_rank(attempt, silent, [*failed, *stalled], blamed)
    if stalled:
        return _rank(attempt, stalled[0], f"stood still: {(stalled[0].error or '').rstrip(':')}")
    return _rank(attempt, failed[0], "failed", failed[0].error or "") if failed else None


def _silent_rank(
    attempt: Observation, silent: list[RankStatus], others: list[RankStatus], blamed: int | None
) -> Outcome:
    """The failure of a rank that ended without reporting it: killed, crashed, or frozen until it was killed from here."""
    first = min(silent, key=lambda status: (status.rank != blamed, attempt.exited_at.get(status.rank, float("inf"))))
    earliest = min((status.time for status in others), default=float("inf"))
    waited = any(status.state == "stalled" for status in others)  # the others would have noticed a death
    if waited or attempt.exited_at.get(first.rank, 0.0) > earliest + 2:
        how = "stood still while the others waited for it, and had to be killed: was it stopped or frozen?"
        return _rank(attempt, first, how)
    how = _exits(attempt).get(first.rank, "")
    text = attempt.log(first.rank)
    traces = list(TRACE.finditer(text))
    trace = text[traces[-1].start() :] if traces else ""
    return _rank(attempt, first, how or "was killed or crashed without a word", trace)


def _rank(attempt: Observation, status: RankStatus, how: str, trace: str = "") -> Outcome:
    """The failure of one rank, with its log and its traceback."""
    line = f"rank {status.rank} on {status.host} (pid {status.pid}) {how}"
    where = f"its log is {rank_status.log(attempt.out, status.rank)}"
    return Outcome(line=line, where=where, trace=f"; its own traceback:\n{trace.rstrip()}" if trace else "", retry=True)


def _exits(attempt: Observation) -> dict[int, str]:
    """How ranks ended, the first one first: by their exit statuses, or as the launcher has printed it."""
    if topology.launcher_for(attempt.run.cluster) is None:
        return {rank: _describe(code) for rank, code in attempt.codes.items()}
    exits = {}
    matches = [match for pattern in EXITS for match in pattern.finditer(attempt.output)]
    for match in sorted(matches, key=lambda match: match.start()):
        parts = {name: text for name, text in match.groupdict().items() if text}
        code = -int(parts["signal"]) if "signal" in parts else int(parts["code"]) if "code" in parts else None
        exits[int(parts["rank"])] = _describe(code) or f"ended: {parts.get('name')}"
    return exits


def _describe(code: int | None) -> str:
    """An exit status in words; empty for None."""
    if code is None:
        return ""
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code if code < 0 else code - 128).name}"
    return f"ended without a word, with exit status {code}"
