"""Processes that share out jobs. They never outlive the one that started them, not even when it is killed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from resnet import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
WATCH_S = 0.3  # a worker looks this often whether it is still wanted

_ticks: Any = None  # in a worker: the number that Workers.ticks() shows


def tick() -> None:
    """Say, inside a job, that one more piece of it is done."""
    if _ticks is not None:
        with _ticks.get_lock():
            _ticks.value += 1


class Workers:
    """Context: `processes` workers made by spawning; with 1 the jobs are done in this process, one after the other."""

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.processes = processes
        # Raw, so that a worker that is killed while it holds a lock cannot hold up the others' end, or ours.
        self.counter, self.stop = context.Value("Q", 0), context.RawValue("b", 0)
        self.pool = ProcessPoolExecutor(processes, context, start, (self.counter, self.stop)) if processes > 1 else None

    def __enter__(self) -> Workers:
        global _ticks
        if self.pool is None:
            _ticks = self.counter
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        global _ticks
        if self.pool is None:
            _ticks = None
            return
        if error is not None:  # nobody waits for what is still being done
            self.stop.value = 1
        self.pool.shutdown(cancel_futures=True)

    def ticks(self) -> int:
        """How often tick() was called."""
        return int(self.counter.get_obj().value)

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Results in the order of `jobs`, which are taken up no faster than they are done: neither piles up."""
        if self.pool is None:
            yield from map(function, jobs)
            return
        waiting, left = deque[Future[Result]](), iter(jobs)
        try:
            for job in itertools.islice(left, 3 * self.processes):
                waiting.append(self.pool.submit(function, job))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(self.pool.submit(function, job) for job in itertools.islice(left, 1))
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed (out of memory?); what is finished stands, and the same command goes on. "
                f"Fewer processes={self.processes} need less memory"
            ) from error


def start(counter: Any, stop: Any) -> None:
    """In a new worker. Ctrl-C reaches every process of the terminal; the first one decides what it means."""
    global _ticks
    _ticks = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, args=(stop,), daemon=True).start()


def watch(stop: Any) -> None:
    """End this worker, whatever it is doing, when it is told to or its parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while parent.is_alive() and not stop.value:
        time.sleep(WATCH_S)
    os._exit(1)
