"""Where a run's numbers go: <out>/metrics.jsonl first, and from there to MLflow, by a thread of its own.

The loop appends a line to the file. The thread sends what MLflow has not got yet, with the times at which things happened, and
notes in <out>/mlflow.json how far it has come: while the store is away, or when a run died, nothing is lost, and
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
from resnet.track import system
from resnet.track.sender import Sender

TAGS = "tags.json"
MODEL = "model"  # in <out>: MLflow's model, where the run kept one


class NullTracker:
    """The tracker of every rank but the first."""

    def log(self, step: int, metrics: dict[str, float | None]) -> None:
        """Nothing."""

    def artifact(self, path: Path) -> None:
        """Nothing."""

    def later(self, work: Callable[[Any, str], object]) -> None:
        """Nothing."""

    def close(self, status: str) -> str | None:  # noqa: ARG002
        """Nothing."""
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
        kept: Sequence[Callable[[Path], Path | None]] = (),
        sampling: bool = True,
    ) -> None:
        """`kept` write files that go with the run, before anything is sent; what they raise costs the run nothing.

        `sampling` is of the machine, every settings.system_metrics_s.
        """
        self.out, self.settings = out, settings
        self.lock = threading.Lock()
        self.step = 0
        self.sender: Sender | None = None
        wanted = isinstance(settings, Mlflow) and settings.tensorboard and sampling
        self.events = opened_events(out) if wanted else None
        try:
            self.lines = MetricsFile(out / FILE)
            if isinstance(settings, Mlflow):
                files.write_text(out / TAGS, json.dumps(tags) + "\n")
        except OSError as error:
            raise UserError(f"out={out}: cannot be written to ({error.strerror}); make room and start again") from error
        if isinstance(settings, Mlflow):
            self.sender = Sender(out, settings, params, tags, dataset, self.sample)
            self.sender.every_s = settings.system_metrics_s if sampling else math.inf
            self.artifact(out / "config.yaml")
            for write in kept:
                self.later(functools.partial(keep, write, out))
            self.sender.start()

    @property
    def run_id(self) -> str | None:
        """The MLflow run, once there is one."""
        return self.sender.run_id if self.sender else None

    def log(self, step: int, metrics: dict[str, float | None]) -> None:
        """Record metrics after `step` updates. None and non-finite values are left out."""
        self.step = step
        self.write(step, metrics)
        if self.events:
            self.events.log(step, metrics)
        if self.sender:
            self.sender.awake.set()

    def write(self, step: int, metrics: dict[str, float | None]) -> None:
        """Append a line."""
        finite = {name: float(value) for name, value in metrics.items() if value is not None and math.isfinite(value)}
        line = json.dumps({"step": step, "time_ms": time.time_ns() // 1_000_000, **finite})
        with self.lock:
            self.lines.append(line)

    def sample(self) -> None:
        """Write down what the machine is doing."""
        self.write(self.step, dict(system.system_metrics()))

    def artifact(self, path: Path) -> None:
        """Keep a file or folder with the run, as it is when the thread gets to it."""
        self.later(functools.partial(log_artifact, path))

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self.later(lambda client, run_id: client.set_tag(run_id, name, value))

    def later(self, work: Callable[[Any, str], object]) -> None:
        """Have the thread do `work` with MLflow's client and the id of the run."""
        if self.sender:
            self.sender.queue.put(work)

    def close(self, status: str) -> str | None:
        """Send what is left and set the run's status: FINISHED, FAILED or KILLED. Returns what went wrong, if anything did."""
        with self.lock:
            lost = self.lines.close()
        if self.events:
            self.events.close()
        troubles = [lost, self.sender.finish(status) if self.sender else None]
        return "; ".join(trouble for trouble in troubles if trouble) or None


def opened_events(out: Path) -> Any:
    """TensorBoard's event files of a run."""
    from resnet.track import tensorboard  # which imports TensorFlow: sync needs none

    return tensorboard.Events(out)


def keep(write: Callable[[Path], Path | None], out: Path, client: Any, run_id: str) -> None:
    """Have `write` make its file in `out`, and keep that with the run."""
    path = write(out)
    if path:
        log_artifact(path, client, run_id)


def log_artifact(path: Path, client: Any, run_id: str) -> None:
    """A file, or a folder whole."""
    if path.is_dir():
        client.log_artifacts(run_id, str(path), path.name)
    else:
        client.log_artifact(run_id, str(path))
