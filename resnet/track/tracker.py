"""Where a run's metrics go: <out>/metrics.jsonl first, and from there to MLflow, by a thread of its own.

The loop appends a line to the file. The thread sends MLflow what it has not got yet, with the original times, and notes in
<out>/mlflow.json how far it has come: while the store is away, or when a run dies, nothing is lost, and
`python -m resnet.track sync <out>` sends the rest. A point sent twice counts once, because its time is the same.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resnet import UserError, files
from resnet.config.track import Mlflow, Track
from resnet.rundir.metrics import FILE, MetricsFile
from resnet.track import store, system
from resnet.track.sender import Sender, Work
from resnet.track.tensorboard import Events

TAGS = "tags.json"
MODEL = "model"  # in <out>: the MLflow model, if there is one
Metrics = dict[str, float | None]


class NullTracker:
    """The tracker of every rank but the first: it does nothing."""

    run_id = None

    def log(self, step: int, metrics: Metrics) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def model(self, folder: Path, register: str | None) -> None: ...

    def defer(self, work: Work) -> None: ...

    def close(self, status: str) -> str | None:  # noqa: ARG002
        return None


class Tracker:
    """Open for the length of a run. `log` never waits; `close` waits at most CLOSE_S, and 10 s or so for a store that is away."""

    def __init__(
        self,
        out: Path,
        settings: Track,
        params: dict[str, Any],
        tags: dict[str, str],
        dataset: dict[str, Any] | None = None,
        writers: Sequence[Callable[[Path], Path | None]] = (),
        sampling: bool = True,
    ) -> None:
        """`writers` write files into `out`, which become the first artifacts; their errors cost the run nothing.

        `sampling` is of the machine, every settings.system_metrics_s.
        """
        self.out, self.step, self.lock = out, 0, threading.Lock()
        self.sender: Sender | None = None
        self.events: Events | None = None
        try:
            self.file = MetricsFile(out / FILE)
            if isinstance(settings, Mlflow):
                files.write_text(out / TAGS, json.dumps(tags) + "\n")
        except OSError as error:
            raise UserError(f"out={out}: cannot be written to ({error.strerror}); make room and start again") from error
        if isinstance(settings, Mlflow):
            if settings.tensorboard and sampling:
                self.events = Events(out)
            self.sender = Sender(out, settings, params, tags, dataset, self.sample if sampling else None)
            self.artifact(out / "config.yaml")
            self.sender.before = [functools.partial(self.write_artifact, write) for write in writers]
            self.sender.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's, once there is one."""
        return self.sender.run_id if self.sender else None

    def log(self, step: int, metrics: Metrics) -> None:
        """Record metrics after `step` updates. None and non-finite values are left out."""
        self.step = step
        self.write(metrics)
        if self.events:
            self.events.log(step, metrics)
        if self.sender:
            self.sender.awake.set()

    def write(self, metrics: Metrics) -> None:
        finite = {name: float(value) for name, value in metrics.items() if value is not None and math.isfinite(value)}
        line = json.dumps({"step": self.step, "time_ms": time.time_ns() // 1_000_000, **finite})
        with self.lock:
            self.file.append(line)

    def sample(self) -> None:
        self.write(dict(system.system_metrics()))

    def artifact(self, path: Path) -> None:
        """Log a file or folder with the run, as it is when the thread gets to it."""
        if self.sender:
            self.defer(functools.partial(log_artifact, path, self.sender.settings.uri))

    def model(self, folder: Path, register: str | None) -> None:
        """Log the MLflow model in a folder with the run, and register it under a name."""
        if self.sender:
            uri = self.sender.settings.uri
            self.defer(functools.partial(store.log_model, uri=uri, folder=folder, register=register))

    def write_artifact(self, write: Callable[[Path], Path | None]) -> None:
        """Have `write` write a file into the run's folder, and log it."""
        if path := write(self.out):
            self.artifact(path)

    def defer(self, work: Work) -> None:
        """Have the thread call `work` with MLflow's client and the id of the run."""
        if self.sender:
            self.sender.queue.put(work)

    def close(self, status: str) -> str | None:
        """Send what is left and set the run's status: FINISHED, FAILED or KILLED. Returns what went wrong, if anything did."""
        with self.lock:
            lost = self.file.close()
        if self.events:
            self.events.close()
        errors = [lost, self.sender.finish(status) if self.sender else None]
        return "; ".join(error for error in errors if error) or None


def log_artifact(path: Path, uri: str, client: Any, run_id: str) -> None:
    if link := next((one for one in (path, *path.rglob("*")) if one.is_symlink()), None):
        raise UserError(f"{link}: a link, which is not sent")
    store.log_artifact(client, uri, run_id, path)
