"""A thread that ends a process which makes no progress, leaving the stack of each of its threads in its log.

Horovod's own stall check never fires under Gloo: one rank that hangs would leave all others waiting for ever.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

STALLED = 75  # exit status: EX_TEMPFAIL of sysexits.h, "try again"


class Watchdog:
    """Context: unless alive() is called every `limit_s` seconds, the process says so and ends with STALLED."""

    def __init__(self, limit_s: float, rank: int, report: Callable[[str], object]) -> None:
        self.limit_s, self.rank, self.report = limit_s, rank, report
        self.since = time.monotonic()
        self.over_with = threading.Event()

    def __enter__(self) -> Watchdog:
        self.alive()
        threading.Thread(target=self.look, daemon=True, name="watchdog").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over_with.set()

    def alive(self) -> None:
        """A step, or a part of an evaluation, is done."""
        self.since = time.monotonic()

    def over(self, batches: Iterable[Any]) -> Iterator[Any]:
        """`batches`, each of which is a sign of life."""
        for batch in batches:
            self.alive()
            yield batch

    def look(self) -> None:
        """In the thread."""
        while not self.over_with.wait(min(1.0, self.limit_s / 4)):
            if time.monotonic() - self.since > self.limit_s:
                said = f"rank {self.rank}: no step finished for {self.limit_s:g} s (cluster.stall_s); where every thread stands:"
                print(said, file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                self.report(said)
                os._exit(STALLED)
