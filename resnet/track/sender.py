"""The thread that sends MLflow what stands in a run's folder, and notes there how far it has come."""

from __future__ import annotations

import contextlib
import json
import math
import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resnet.config import track
from resnet.config.track import Mlflow
from resnet.rundir.metrics import FILE
from resnet.track import store
from resnet.track.store import SyncState

CLOSE_S = 120.0  # how long close() waits for MLflow to take what is left, a model of 100 MB among it
FIRST_S = 60.0  # at most, for the first metrics: importing MLflow takes seconds from building the first step
SEND_S = 5.0  # between two sendings
LAST_TRIES = 2  # once close() was called
PAUSE_S = 30.0  # at most, between two tries
POINTS = 1000  # metrics to a request (MLflow's REST limit)


class Sender(threading.Thread):
    """The thread that tells MLflow what stands in the run's folder."""

    def __init__(
        self,
        out: Path,
        settings: Mlflow,
        params: dict[str, Any],
        tags: dict[str, str],
        dataset: dict[str, Any] | None,
        sample: Callable[[], object],
    ) -> None:
        """`sample` writes down what the machine is doing; it is called every settings.system_metrics_s."""
        super().__init__(name="mlflow", daemon=True)
        self.out, self.settings, self.params, self.tags, self.dataset = out, settings, params, tags, dataset
        self.sample = sample
        self.queue: queue.SimpleQueue[Callable[[Any, str], object]] = queue.SimpleQueue()
        self.awake, self.closing = threading.Event(), threading.Event()
        self.every_s = settings.system_metrics_s
        self.status = "FAILED"
        self.trouble: str | None = None
        self.client: Any = None
        self.note: SyncState | None = None

    @property
    def run_id(self) -> str | None:
        """The MLflow run, once there is one."""
        return self.note.run_id if self.note else None

    def finish(self, status: str) -> str | None:
        """Have everything sent, within CLOSE_S; what went wrong, if anything did."""
        self.status = status
        self.awake.set()
        if self.note:
            self.note.status = status
            with contextlib.suppress(OSError):  # a full disk; the thread tells MLflow all the same
                self.note.write(self.out)
        self.closing.set()
        self.join(CLOSE_S)
        left = f"metrics.jsonl is complete; python -m resnet.track sync {shlex.quote(str(self.out))} sends the rest"
        if self.is_alive():
            return f"MLflow did not take everything within {CLOSE_S:.0f} s; {left}"
        return self.trouble and f"{self.trouble}; {left}"

    def run(self) -> None:
        """Open the MLflow run, send until finish() says stop, set the status."""
        self.awake.wait(FIRST_S)
        with contextlib.suppress(Exception):  # whatever MLflow does must not take the run down; persist() has noted it
            self.persist(self.open)
            sampled = time.monotonic() - self.settings.system_metrics_s
            stop = False
            while not stop:
                stop = self.closing.is_set()
                if not stop and time.monotonic() - sampled >= self.every_s:
                    sampled = time.monotonic()
                    self.sample()
                self.persist(self.send)  # waits while the store is away, so that what comes next finds it
                self.do_all(stop)
                if not stop:
                    self.closing.wait(SEND_S)
            self.persist(self.end)

    def do_all(self, last: bool) -> None:
        """What was put off; what fails is tried again the next time, if there is one."""
        failed = []
        with contextlib.suppress(queue.Empty):
            while True:
                work = self.queue.get_nowait()
                try:
                    work(self.client, str(self.run_id))
                except Exception as error:  # one file less is no reason to lose the metrics
                    failed.append(work)
                    if last:
                        self.noted(error)
        for work in failed:
            self.queue.put(work)

    def persist(self, work: Callable[[], object]) -> None:
        """Do `work` until it succeeds; give up, noting the trouble, soon after finish()."""
        pause, tries = 1.0, math.inf
        while True:
            try:
                work()
                return
            except Exception as error:
                tries = min(tries, LAST_TRIES) - 1 if self.closing.is_set() else tries - 1
                if tries <= 0:
                    self.noted(error)
                    raise
            self.closing.wait(pause)
            pause = min(2 * pause, PAUSE_S)

    def noted(self, error: Exception) -> None:
        """For people, in one line."""
        said = track.redact(str(error).partition("\n")[0])
        self.trouble = f"MLflow ({self.settings.uri}): {type(error).__name__}: {said}"

    def open(self) -> None:
        """The MLflow run of this folder: the one it already has, or a new one. Parameters it has already stay."""
        out, settings = self.out, self.settings
        self.client = store.connect(settings.uri)
        found = store.read_state(out, settings.uri)
        if found is None or not store.reopen(self.client, found.run_id):
            nested = {"mlflow.parentRunId": settings.parent_run} if settings.parent_run else {}
            run_id = store.new_run(self.client, settings, settings.run_name, {**self.tags, **nested})
            found = SyncState(settings.uri, run_id)
            found.write(out)
        there = {
            *self.client.get_run(found.run_id).data.params,
            "out",
        }  # a tag: as a parameter it would differ in all runs
        store.log_params(
            self.client, found.run_id, {name: value for name, value in self.params.items() if name not in there}
        )
        if self.dataset:
            store.log_dataset(self.client, found.run_id, self.dataset)
        found.status = self.status if self.closing.is_set() else None
        found.write(out)
        self.note = found

    def send(self) -> None:
        """Send the lines that MLflow has not got."""
        assert self.note
        for metrics, position in unsent(self.out / FILE, self.note.sent):
            self.client.log_batch(self.note.run_id, metrics=metrics)
            self.note.sent = position
            self.note.write(self.out)

    def end(self) -> None:
        """Set the status."""
        assert self.note
        self.client.set_terminated(self.note.run_id, self.status)


def unsent(path: Path, position: int) -> Iterator[tuple[list[Any], int]]:
    """(MLflow's metrics, the position in the file after them) of the whole lines from `position` on, POINTS at most at once."""
    from mlflow.entities import Metric

    with path.open("rb") as file:
        file.seek(position)
        points: list[Any] = []
        for line in file:
            if not line.endswith(b"\n"):
                break
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # a torn line
                told = json.loads(line)
                step, when = told.pop("step"), told.pop("time_ms")
                found = [Metric(name, float(value), when, step) for name, value in told.items()]
                if len(points) + len(found) > POINTS:
                    yield points, position
                    points = []
                points += found
            position += len(line)
        if points:
            yield points, position
