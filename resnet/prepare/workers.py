"""Worker processes that share jobs, and how far they are. They never outlive the main process, not even when it is killed."""

from __future__ import annotations

import contextlib
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
REDRAW_S, LINE_S = 0.2, 10.0  # between updates of the progress bar, and between lines

_ticks: Any = None  # in a worker: the number that Workers.ticks() returns


def tick() -> None:
    """Count, inside a job, one more piece of it as done."""
    if _ticks is not None:
        with _ticks.get_lock():
            _ticks.value += 1


class Workers:
    """Context: `processes` spawned workers (None: one for each core); with 1 the jobs run in this process, in turn."""

    def __init__(self, processes: int | None) -> None:
        global _ticks
        context = multiprocessing.get_context("spawn")
        self.processes = processes or len(os.sched_getaffinity(0))
        # Raw, so that a worker that is killed while it holds a lock cannot hold up the others' end, or ours.
        self.counter, self.stop = context.Value("Q", 0), context.RawValue("b", 0)
        _ticks, self.pool = self.counter, None
        if self.processes > 1:
            self.pool = ProcessPoolExecutor(self.processes, context, start, (self.counter, self.stop))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.pool is not None:
            self.stop.value = error is not None  # nobody waits for the jobs that are under way
            self.pool.shutdown(cancel_futures=True)

    def ticks(self) -> int:
        return int(self.counter.get_obj().value)

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


def start(counter: Any, stop: Any) -> None:
    """Initialise a worker. Ctrl-C reaches every process of the terminal; the main process decides what it means."""
    global _ticks
    _ticks = counter
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
