"""The thread that sends MLflow what is in a run's folder, and notes there how far it has come."""

from __future__ import annotations

import contextlib
import math
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resnet import UserError, files, shell, uris
from resnet.config import track
from resnet.config.track import Mlflow
from resnet.rundir import metrics
from resnet.track import store
from resnet.track.client import way_out
from resnet.track.store import SyncState

CLOSE_S = 120.0  # how long finish() waits for MLflow to take what is left, a model of 100 MB among it
FIRST_S = 60.0  # at most, for the first metrics: importing MLflow would slow down building the first step
SEND_S = 5.0  # between two sendings
LAST_TRIES = 2  # once finish() was called
PAUSE_S = 30.0  # at most, between two tries
POINTS = 1000  # metrics to a request (MLflow's REST limit)
Work = Callable[[Any, str], object]  # called with MLflow's client and the id of the run


class Sender(threading.Thread):
    """Opens the MLflow run, sends until finish(), sets the status. The store may be away for as long as it likes."""

    def __init__(
        self,
        out: Path,
        settings: Mlflow,
        params: dict[str, Any],
        tags: dict[str, str],
        dataset: dict[str, Any] | None,
        sample: Callable[[], object] | None,
    ) -> None:
        """`sample` records the load of the machine, every settings.system_metrics_s."""
        super().__init__(name="mlflow", daemon=True)
        self.out, self.settings, self.params, self.tags, self.dataset = out, settings, params, tags, dataset
        self.sample = sample
        self.before: list[Callable[[], object]] = []  # what the thread does first, whether or not the store answers
        self.queue: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self.awake, self.closing = threading.Event(), threading.Event()
        self.status = "FAILED"
        self.error: str | None = None
        self.reason = ""  # of the last failure, whether or not it was overcome
        self.client: Any = None
        self.state: SyncState | None = None

    @property
    def run_id(self) -> str | None:
        return self.state.run_id if self.state else None

    def finish(self, status: str) -> str | None:
        """Have everything sent, within CLOSE_S; returns what went wrong, if anything did."""
        self.status = status
        self.awake.set()
        if self.state:
            self.state.status = status
            with contextlib.suppress(OSError):  # a full disk: the thread sends it to MLflow all the same
                self.state.write(self.out)
        self.closing.set()
        self.join(CLOSE_S)
        late = f"MLflow ({self.settings.uri}) did not take everything within {CLOSE_S:.0f} s{self.reason and f' ({self.reason})'}"
        error = late if self.is_alive() else self.error
        return (
            error and f"{error}; metrics.jsonl is complete; {sync_command(self.out, self.settings.uri)} sends the rest"
        )

    def run(self) -> None:
        self.awake.wait(FIRST_S)
        for work in self.before:
            with contextlib.suppress(Exception):  # its file is then missing, and nothing else
                work()
        with contextlib.suppress(Exception):  # MLflow's errors must not end the run; retry() has set self.error
            self.retry(self.open)
            last, sampled_at = False, -math.inf
            while not last:
                last = self.closing.is_set()
                if self.sample and not last and time.monotonic() - sampled_at >= self.settings.system_metrics_s:
                    sampled_at = time.monotonic()
                    self.sample()
                self.retry(self.send)  # waits while the store is away, so that flush() finds it
                self.flush(last)
                self.closing.wait(SEND_S)
            self.retry(lambda: self.client.set_terminated(self.run_id, self.status))
            if self.state and not self.error:
                self.state.complete = True
                self.state.write(self.out)

    def flush(self, last: bool) -> None:
        """Do the deferred work; what fails is tried again the next time, if there is one."""
        for _ in range(self.queue.qsize()):
            work = self.queue.get()
            try:
                work(self.client, str(self.run_id))
            except Exception as error:  # a missing artifact must not cost the metrics
                self.queue.put(work)
                if last:
                    self.set_error(error)

    def retry(self, work: Callable[[], object]) -> None:
        """Do `work` until it succeeds; give up soon after finish(), setting the error."""
        pause, tries = 1.0, LAST_TRIES
        while True:
            try:
                work()
                return
            except UserError as error:  # waiting mends nothing
                self.set_error(error)
                print(f"{self.error}; nothing is sent", file=sys.stderr, flush=True)
                raise
            except Exception as error:
                self.reason = track.error_line(error)
                if self.closing.is_set():
                    tries -= 1
                if not tries:
                    self.set_error(error)
                    raise
            self.closing.wait(pause)
            pause = min(2 * pause, PAUSE_S)

    def set_error(self, error: Exception) -> None:
        uri, line = self.settings.uri, track.error_line(error)
        refused = not uris.named(uri) and re.search(r"\b40[13]\b|UNAUTHENTICATED|PERMISSION_DENIED", str(error))
        self.error = f"MLflow ({uri}): {line}{f'; {way_out(uri)}' if refused else ''}"

    def open(self) -> None:
        """The MLflow run of this folder: the one it already has, or a new one. Existing parameters stay."""
        out, settings = self.out, self.settings
        self.client = store.connect(settings.uri)
        state = SyncState.read(out, settings.uri)
        if state is None or not store.reopen(self.client, state.run_id):
            nested = {"mlflow.parentRunId": settings.parent_run} if settings.parent_run else {}
            run_id = store.new_run(self.client, settings, settings.run_name, {**self.tags, **nested})
            state = SyncState(settings.uri, run_id)
            state.write(out)
        # out is a tag: as a parameter it would differ in all runs
        existing = {*self.client.get_run(state.run_id).data.params, "out"}
        params = {name: value for name, value in self.params.items() if name not in existing}
        store.log_params(self.client, state.run_id, params)
        if self.dataset:
            store.log_dataset(self.client, state.run_id, self.dataset)
        state.status, state.complete = self.status if self.closing.is_set() else None, False
        state.write(out)
        self.state = state

    def send(self) -> None:
        """Send the lines that MLflow has not got."""
        assert self.state
        for points, position in unsent(self.out / metrics.FILE, self.state.sent):
            self.client.log_batch(self.state.run_id, metrics=points)
            self.state.sent = position
            self.state.write(self.out)


def sync_command(out: Path, uri: str) -> str:
    """The command that sends the rest. It names a store of the network, or that would be sent no credentials."""
    return shell.command("resnet.track", "sync", str(out), *([] if uris.sqlite_path(uri) else [f"uri={uri}"]))


def unsent(path: Path, position: int) -> Iterator[tuple[list[Any], int]]:
    """(MLflow's metrics, the position after them) of the complete lines from `position` on, POINTS at most at once."""
    from mlflow.entities import Metric

    with files.open_bytes(path, metrics.LIMIT) as file:
        file.seek(position)
        points: list[Any] = []
        for line, end in metrics.lines(file):
            step, time_ms, values = metrics.parse(line) or (0, 0, {})
            if len(points) + len(values) > POINTS:
                yield points, position
                points = []
            points += [Metric(name, value, time_ms, step) for name, value in values.items()]
            position = end
        if points:
            yield points, position
