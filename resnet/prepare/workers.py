"""Worker processes that share jobs, and how far they are. They never outlive the main process, not even when it is killed."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from typing import Any, TypeVar

from resnet import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
WATCH_S = 0.3  # between a worker's looks at whether it is still needed
NO_SEMAPHORES = "processes cannot share a semaphore here, for which Linux needs /dev/shm"
REDRAW_S, LINE_S = 0.2, 10.0  # between updates of the progress bar, and between lines

_lock: Any = contextlib.nullcontext()  # around the count
_count: Any = None  # that of Workers.ticks(), also in a worker


def tick() -> None:
    """Count, inside a job, one more piece of it as done."""
    if _count is not None:
        with _lock:
            _count.value += 1


class Workers:
    """Context: `processes` spawned workers (None: one for each core); with 1 the jobs run in this process, in turn.

    So they do, and a line says so, where processes cannot share semaphores: a container without /dev/shm.
    """

    def __init__(self, processes: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        lock: Any = contextlib.nullcontext()
        self.processes = processes or cpu_count()
        self.pool = None
        self.count: Any = ctypes.c_uint64(0)
        if self.processes > 1:
            try:
                # Raw, so that a worker that is killed while it holds a lock cannot hold up the others' end, or ours.
                lock, self.count, self.stop = context.Lock(), context.RawValue("Q", 0), context.RawValue("b", 0)
                self.pool = ProcessPoolExecutor(self.processes, context, start, (lock, self.count, self.stop))
            except (OSError, ImportError) as error:
                print(f"processes={self.processes}: {NO_SEMAPHORES} ({error}); one works alone", file=sys.stderr)
                self.processes = 1
        share(lock, self.count)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.pool is not None:
            self.stop.value = error is not None  # nobody waits for the jobs that are under way
            self.pool.shutdown(cancel_futures=True)

    def ticks(self) -> int:
        return int(self.count.value)

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Results in the order of `jobs`, which are taken no faster than they are done: neither piles up."""
        if self.pool is None:
            yield from map(function, jobs)
            return
        futures, rest = deque[Future[Result]](), iter(jobs)
        try:
            for job in itertools.islice(rest, 3 * self.processes):
                futures.append(self.pool.submit(function, job))
            while futures:
                yield futures.popleft().result()
                futures.extend(self.pool.submit(function, job) for job in itertools.islice(rest, 1))
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed (out of memory?); what is finished stays, and the same command resumes. "
                f"Fewer processes={self.processes} need less memory"
            ) from error


def cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(lock: Any, count: Any) -> None:
    """Set what tick() counts with, in this process."""
    global _lock, _count
    _lock, _count = lock, count


def start(lock: Any, count: Any, stop: Any) -> None:
    """Initialise a worker. Ctrl-C reaches every process of the terminal; the main process decides what it means."""
    share(lock, count)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:  # ends this worker, whatever it is doing
        while parent.is_alive() and not stop.value:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def progress(what: str, total: int, ticks: Callable[[], int], already: int = 0) -> Iterator[None]:
    """Context: show `already` + ticks() of `total`, in a bar on a terminal, elsewhere by a line every LINE_S seconds."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    terminal, over, first, began = sys.stdout.isatty(), threading.Event(), ticks(), time.monotonic()
    columns = BarColumn(None), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, transient=True, disable=not terminal) as bar:
        task = bar.add_task(what, total=total, completed=already)

        def show() -> None:
            while not over.wait(REDRAW_S if terminal else LINE_S):
                done = ticks() - first
                rate, count = done / (time.monotonic() - began), min(already + done, total)
                bar.update(task, completed=count, description=f"{what}  {rate:,.0f}/s")
                if not terminal:
                    left = timedelta(seconds=round((total - count) / rate)) if rate else "?"
                    print(f"{count:,} of {total:,} {what}, {rate:,.0f} a second, left {left}", flush=True)

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
