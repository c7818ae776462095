"""What ranks print, as it comes out here while they run."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from resnet.launch import rank_status
from resnet.launch.rank_status import RankStatus


class Stream:
    """What one rank prints from now on: as it is for rank 0, prefixed and on stderr for the others."""

    def __init__(self, out: Path, rank: int) -> None:
        self.rank, self.path = rank, rank_status.log(out, rank)
        self.first = self.done = self.path.stat().st_size if self.path.exists() else 0

    def show(self, record: RankStatus | None, *, last: bool = False) -> None:
        """Whole lines that are new; at `last` the rest too. The error that a rank ended with is kept for the end of all."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= self.done or (self.rank and record is None):
                return
            ended = rank_status.read(rank_status.path(self.path.parent.parent, self.rank))  # after the size
            if ended and ended.state in ("failed", "stopped") and ended.shown is not None:
                size = min(size, ended.shown)
            file.seek(self.done)
            new = file.read(max(0, size - self.done))
            whole = new if last else new[: new.rfind(b"\n") + 1]
            self.done += len(whole)
            text = whole.decode(errors="replace")
            if self.rank == 0:
                sys.stdout.write(text)
                sys.stdout.flush()
            elif record:
                prefixed(record, text)

    def content(self) -> str:
        """All that the rank has printed since this start."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            file.seek(self.first)
            return file.read().decode(errors="replace")
        return ""


def prefixed(record: RankStatus, text: str) -> None:
    """Lines of a rank, on stderr."""
    for line in text.splitlines():
        print(f"[rank {record.rank} on {record.host}] {line}", file=sys.stderr, flush=True)
