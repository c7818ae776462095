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
T = TypeVar("T")


class Watchdog:
    """Context: unless reset() is called every `limit_s` seconds, the process ends with STALLED, after `report(message)`."""

    def __init__(self, limit_s: float, rank: int, report: Callable[[str], object]) -> None:
        self.limit_s, self.rank, self.report = limit_s, rank, report
        self.since = time.monotonic()
        self.finished = threading.Event()

    def __enter__(self) -> Watchdog:
        self.reset()
        threading.Thread(target=self.watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.finished.set()

    def reset(self) -> None:
        """Call it after every step, and every batch of an evaluation."""
        self.since = time.monotonic()

    def watching(self, batches: Iterable[T]) -> Iterator[T]:
        """`batches`, with a reset at each."""
        for batch in batches:
            self.reset()
            yield batch

    def watch(self) -> None:
        while not self.finished.wait(min(1.0, self.limit_s / 4)):
            if time.monotonic() - self.since > self.limit_s:
                message = f"rank {self.rank}: no step finished for {self.limit_s:g} s (cluster.stall_s); stacks of all threads:"
                print(message, file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                self.report(message)
                os._exit(STALLED)
