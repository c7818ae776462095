"""A thread that ends a process which makes no progress, and dumps the stacks of all threads into its log.

Horovod's own stall check does not work with Gloo: one rank that hangs would block all others forever.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

STALLED = 75  # exit status: EX_TEMPFAIL of sysexits.h, "try again"
STOP_S, FIRST_STOP_S = 20.0, 60.0  # for the current step after a signal to stop; for the first one, which compiles
T = TypeVar("T")


class Watchdog:
    """Context: unless reset() is called every `limit_s` seconds, the process ends with STALLED, after `report(message)`.

    Time in which the process itself did not run (SIGSTOP, a suspended machine) does not count.
    """

    def __init__(self, limit_s: float, rank: int, report: Callable[[str], object]) -> None:
        self.limit_s, self.rank, self.report = limit_s, rank, report
        self.reason = "cluster.stall_s"
        self.since, self.longest = time.monotonic(), 0.0  # s between two resets
        self.finished = threading.Event()

    def __enter__(self) -> Watchdog:
        self.since = time.monotonic()
        threading.Thread(target=self.watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.finished.set()

    def reset(self) -> None:
        """Call it after every step, and every batch of an evaluation."""
        now = time.monotonic()
        self.longest, self.since = max(self.longest, now - self.since), now

    def hurry(self) -> None:
        """Shorten the limit, after a signal to stop: reads of data that has gone away must not keep the process."""
        limit = max(STOP_S, 3 * self.longest) if self.longest else FIRST_STOP_S
        if limit < self.limit_s:
            self.limit_s, self.reason = limit, "after a signal to stop"

    def watching(self, batches: Iterable[T]) -> Iterator[T]:
        """`batches`, with a reset at each."""
        for batch in batches:
            self.reset()
            yield batch

    def watch(self) -> None:
        """The thread."""
        interval, woke = min(1.0, self.limit_s / 4), time.monotonic()
        while not self.finished.wait(interval):
            now = time.monotonic()
            self.since += now - woke - interval  # the thread woke late: nothing of the process ran
            woke = now
            if now - self.since > self.limit_s:
                stalled = f"rank {self.rank}: no step finished for {self.limit_s:g} s ({self.reason})"
                print(f"{stalled}; stacks of all threads:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                self.report(
                    f"{stalled}; if the data can be read again, the same command resumes from the newest checkpoint"
                )
                os._exit(STALLED)
