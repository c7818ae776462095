"""What came of one start of all ranks: a result, a stop, or which rank failed before the others, and by what."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet.config import fingerprint
from resnet.config.cluster import Starter
from resnet.config.run import Run
from resnet.launch import launchers, rank_status
from resnet.launch.rank_status import RankStatus
from resnet.launch.streams import prefixed
from resnet.rundir import result

TAIL_LINES = 15  # of the starter's own words, where no rank has said anything
TRACE = re.compile(r"^(Traceback \(most recent call last\)|Fatal Python error|\*\*\* )", re.MULTILINE)
# How starters tell which rank ended first, and by what: horovodrun, mpirun, srun.
DEATHS = (
    re.compile(r"Process (?P<rank>\d+) exit with status code (?P<code>\d+)"),
    re.compile(r"process rank (?P<rank>\d+) .*exited on signal (?P<signal>\d+)"),
    re.compile(r"Process name: \[\[\d+,\d+\],(?P<rank>\d+)\]\s+Exit code:\s+(?P<code>\d+)"),
    re.compile(r"srun: error: \S+: task (?P<rank>\d+): (?:Exited with exit code (?P<code>\d+)|(?P<name>.+))"),
)


@dataclass(frozen=True)
class Outcome:
    """How one start of all ranks came out: a result, a stop, or the failure of one rank before the others."""

    made: dict[str, Any] | None = None
    stopped: str | None = None  # what was saved, and how to go on
    line: str = ""  # who failed, and how
    where: str = ""  # where to read on
    trace: str = ""  # its own traceback, on lines of its own
    user: bool = False  # the user can mend it
    again: bool = False  # another start may do better


@dataclass(frozen=True)
class Observation:
    """What was seen of one start of all ranks, once all of them have ended."""

    run: Run
    out: Path
    records: dict[int, RankStatus]
    gone: dict[int, float]  # when ranks of this machine were seen to have ended, s since 1970
    content: Callable[[int], str]  # what a rank has printed
    status: int | None  # the exit status of the starter, or of the one rank
    missing: bool  # some did not start in time
    asked: bool  # to stop, by a signal
    said: str  # by the starter itself

    @property
    def starter(self) -> Starter | None:
        """The program that started the ranks; none for a single one."""
        return launchers.launcher_for(self.run.cluster)

    @property
    def last_words(self) -> str:
        """The end of what the starter itself said, if it said anything."""
        said = "\n".join(self.said.strip().splitlines()[-TAIL_LINES:])
        return f" and ends with:\n{said}" if said else ""

    def end(self) -> Outcome:
        """How it came out."""
        records = self.records.values()
        first = self.first_failure()
        made = result.read(self.out)
        if made and made.get("fingerprint") == fingerprint.fingerprint(self.run) and not (first and first.user):
            if first and first.line:
                print(f"{first.line}; the result was written before, and stands", file=sys.stderr, flush=True)
            return Outcome(made=made)
        own = any(record.kind in ("user", "error") for record in records)
        if not own and (self.asked or any(record.state == "stopped" for record in records)):
            told = next((record.error for record in rank_status.records(self.out) if record.state == "stopped"), None)
            way = f"go on with: python -m resnet.train resume={shlex.quote(str(self.out))}"
            return Outcome(stopped=told or f"nothing was saved since the last checkpoint; {way}")
        return first or Outcome(
            line="all ranks ended well, and there is no result", where=f"logs in {rank_status.folder(self.out)}"
        )

    def first_failure(self) -> Outcome | None:
        """Of the rank that failed before the others, or by itself."""
        failed = sorted((record for record in self.records.values() if record.state == "failed"), key=lambda r: r.time)
        own = [record for record in failed if record.kind != "peer"]
        stalled = sorted(
            (record for record in self.records.values() if record.state == "stalled"), key=lambda r: r.time
        )
        lost = [record for record in self.records.values() if not record.ended]
        if own:
            for record in own[1:]:
                if record.kind == "error":
                    prefixed(record, record.error or "")
            if own[0].kind == "user":
                return Outcome(line=own[0].error or "", user=True)
            return self.failure(own[0], "failed", own[0].error or "")
        if not self.records:
            by = self.starter.value if self.starter else "Python"
            return Outcome(
                line=f"{by} ended before any rank had started (exit status {self.status})",
                where=f"its log is {rank_status.folder(self.out)}/starter.log",
                trace=self.last_words,
            )
        others = [*failed, *stalled]
        named = next((rank for rank, _ in self.deaths() if rank not in {record.rank for record in others}), None)
        absent = [rank for rank in range(self.run.cluster.ranks) if rank not in self.records]
        if absent and (named in absent or self.missing or not lost):
            listed = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
            late = f" within cluster.start_s={self.run.cluster.start_s:g}" if self.missing else ""
            return Outcome(
                line=f"{len(absent)} of {self.run.cluster.ranks} ranks did not start{late} (rank {listed})",
                where=f"the starter's log is {rank_status.folder(self.out)}/starter.log",
                trace=self.last_words,
            )
        if lost:
            return self.loss(lost, others, named)
        if stalled:
            return self.failure(stalled[0], f"stood still: {(stalled[0].error or '').rstrip(':')}", "")
        return self.failure(failed[0], "failed", failed[0].error or "") if failed else None

    def loss(self, lost: list[RankStatus], others: list[RankStatus], named: int | None) -> Outcome:
        """Of a rank that is gone without a word: killed, crashed, or frozen until it was killed from here."""
        first = min(lost, key=lambda record: (record.rank != named, self.gone.get(record.rank, float("inf"))))
        earliest = min((record.time for record in others), default=float("inf"))
        waited = any(record.state == "stalled" for record in others)  # the others would have noticed a death
        if waited or self.gone.get(first.rank, 0.0) > earliest + 2:
            said = "stood still while the others waited for it, and had to be killed: was it stopped or frozen?"
            return self.failure(first, said, "")
        by = dict(self.deaths()).get(first.rank) or how(self.status if self.starter is None else None)
        content = self.content(first.rank)
        marks = list(TRACE.finditer(content))
        return self.failure(
            first, by or "was killed or crashed without a word", content[marks[-1].start() :] if marks else ""
        )

    def failure(self, record: RankStatus, how: str, trace: str) -> Outcome:
        """Of one rank; its log, and what it ends with, come last."""
        who = f"rank {record.rank} on {record.host} (pid {record.pid}) {how}"
        where = f"its log is {rank_status.log(self.out, record.rank)}"
        return Outcome(
            line=who, where=where, trace=f"; its own traceback:\n{trace.rstrip()}" if trace else "", again=True
        )

    def deaths(self) -> Iterator[tuple[int, str]]:
        """(rank, what became of it) of ranks that the starter told of, the first one first."""
        for found in sorted(
            (match for form in DEATHS for match in form.finditer(self.said)), key=lambda match: match.start()
        ):
            parts = found.groupdict()
            code = int(parts["code"]) if parts.get("code") else -int(parts["signal"]) if parts.get("signal") else None
            yield int(parts["rank"]), how(code) or f"ended: {parts.get('name')}"


def how(code: int | None) -> str:
    """An exit status in words; empty for none."""
    if code is None:
        return ""
    number = -code if code < 0 else code - 128
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(number).name}"
    return f"ended without a word, with exit status {code}"
