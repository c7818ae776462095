"""Where a run's numbers go: <out>/metrics.jsonl first, then MLflow, from a thread of its own.

The loop only appends to a file and a queue. The thread sends batches with the times at which things happened, again and
again while the store is away (a metric of the same time and value counts once); what MLflow refuses or cannot take costs
the run nothing and is said once, at the end. MLflow is imported in the thread: it takes 2 s.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import getpass
import json
import math
import os
import platform
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet import __version__
from resnet.config import Mlflow, Off, Run, Track

CLOSE_S = 30.0  # how long close() waits for MLflow to take what is left
LAST_TRIES = 2  # once close() was called
PAUSE_S = 30.0  # at most, between two tries
VALUE_LIMIT = 6000  # characters of a parameter (MLflow 3)
BATCH_LIMIT = 100  # parameters to a request (MLflow's REST limit)
IDENTITY = "mlflow.json"  # in <out>: the MLflow run of this folder


@dataclass(frozen=True)
class Metric:
    """One number of one step; `time_ms` is the wall clock, in ms since 1970."""

    name: str
    value: float
    step: int
    time_ms: int


class Nobody:
    """The tracker of every rank but the first."""

    def log(self, step: int, metrics: dict[str, float | None]) -> None:
        """Nothing."""

    def artifact(self, path: Path) -> None:
        """Nothing."""

    def close(self, status: str) -> str | None:  # noqa: ARG002
        """Nothing."""
        return None


class Tracker:
    """Open for the length of a run. `log` never waits; `close` waits at most CLOSE_S."""

    def __init__(self, out: Path, settings: Track, params: dict[str, Any], tags: dict[str, str]) -> None:
        self.out, self.settings = out, settings
        self.lines = (out / "metrics.jsonl").open("a")
        self.queue: queue.SimpleQueue[Callable[[Any, str], None] | None] = queue.SimpleQueue()
        self.pending: list[Metric] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.trouble: str | None = None
        self.status = "FAILED"
        self.run_id: str | None = None
        self.client: Any = None
        self.thread: threading.Thread | None = None
        if isinstance(settings, Mlflow):
            self.thread = threading.Thread(target=self.ship, args=(settings, params, tags), daemon=True, name="mlflow")
            self.artifact(out / "config.yaml")
            self.thread.start()

    def log(self, step: int, metrics: dict[str, float | None]) -> None:
        """Record metrics after `step` updates. None and non-finite values are left out."""
        now = time.time_ns() // 1_000_000
        kept = {name: float(value) for name, value in metrics.items() if value is not None and math.isfinite(value)}
        self.lines.write(json.dumps({"step": step, "time_ms": now, **kept}) + "\n")
        self.lines.flush()
        if self.thread:
            with self.lock:
                self.pending += [Metric(name, value, step, now) for name, value in kept.items()]

    def artifact(self, path: Path) -> None:
        """Keep a file with the run, as it is when the thread gets to it."""
        if self.thread:
            self.queue.put(lambda client, run_id: client.log_artifact(run_id, str(path)))

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        if self.thread:
            self.queue.put(lambda client, run_id: client.set_tag(run_id, name, value))

    def close(self, status: str) -> str | None:
        """Send what is left and set the run's status: FINISHED, FAILED or KILLED. Returns what went wrong, if anything did."""
        self.status = status
        self.lines.close()
        if self.thread:
            self.closing.set()
            self.queue.put(None)
            self.thread.join(CLOSE_S)
            if self.thread.is_alive():
                return f"MLflow did not take everything within {CLOSE_S:.0f} s; metrics.jsonl in the run's folder is complete"
        return self.trouble

    # What follows runs in the thread.

    def ship(self, settings: Mlflow, params: dict[str, Any], tags: dict[str, str]) -> None:
        """Open the MLflow run, send until close() says stop, set the status."""
        with contextlib.suppress(Exception):  # whatever MLflow does must not take the run down; persist() has noted it
            self.persist(lambda: self.open_run(settings, params, tags))
            sampled, samples = -math.inf, 0
            stop = False
            while not stop:
                if time.monotonic() - sampled >= settings.system_metrics_s:
                    sampled, samples = time.monotonic(), samples + 1
                    now = time.time_ns() // 1_000_000
                    with self.lock:
                        self.pending += [Metric(name, value, samples, now) for name, value in system_metrics()]
                with contextlib.suppress(queue.Empty):
                    action = self.queue.get(timeout=1.0)
                    stop = action is None
                    if action is not None:
                        with contextlib.suppress(Exception):  # one file less is no reason to lose the metrics
                            self.persist(functools.partial(action, self.client, str(self.run_id)), LAST_TRIES)
                self.persist(self.send)
            self.persist(lambda: self.client.set_terminated(self.run_id, self.status))

    def persist(self, work: Callable[[], object], tries: float = math.inf) -> None:
        """Do `work` until it succeeds; give up, noting the trouble, after so many tries or soon after close()."""
        pause = 1.0
        while True:
            try:
                work()
                return
            except Exception as error:
                tries = min(tries, LAST_TRIES) - 1 if self.closing.is_set() else tries - 1
                if tries <= 0:
                    said = str(error).partition("\n")[0]
                    self.trouble = f"MLflow ({getattr(self.settings, 'uri', '')}): {type(error).__name__}: {said}"
                    raise
            self.closing.wait(pause)
            pause = min(2 * pause, PAUSE_S)

    def open_run(self, settings: Mlflow, params: dict[str, Any], tags: dict[str, str]) -> None:
        """The MLflow run of this folder: the one it already has, or a new one. Parameters it has already stay."""
        self.client = connect(settings.uri)
        kept = identity(self.out, settings.uri)
        if kept is None or not reopened(self.client, kept):
            nested = {"mlflow.parentRunId": settings.parent_run} if settings.parent_run else {}
            kept = new_run(self.client, settings, settings.run_name, {**tags, **nested})
            (self.out / IDENTITY).write_text(json.dumps({"uri": settings.uri, "run_id": kept}) + "\n")
        there = self.client.get_run(kept).data.params
        log_params(self.client, kept, {name: value for name, value in params.items() if name not in there})
        self.run_id = kept

    def send(self) -> None:
        """Send the pending metrics."""
        from mlflow.entities import Metric as Sent

        while True:
            with self.lock:
                part = self.pending[:1000]
            if not part:
                return
            self.client.log_batch(self.run_id, metrics=[Sent(m.name, m.value, m.time_ms, m.step) for m in part])
            with self.lock:
                del self.pending[: len(part)]


def log_params(client: Any, run_id: str, params: dict[str, Any]) -> None:
    """Parameters, cut to what MLflow takes."""
    from mlflow.entities import Param

    listed = [Param(name, str(value)[:VALUE_LIMIT]) for name, value in params.items()]
    for first in range(0, len(listed), BATCH_LIMIT):
        client.log_batch(run_id, params=listed[first : first + BATCH_LIMIT])


def identity(out: Path, uri: str) -> str | None:
    """The MLflow run id that a run's folder has in the store `uri`, if any."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads((out / IDENTITY).read_text())
        return str(kept["run_id"]) if kept["uri"] == uri else None
    return None


def connect(uri: str) -> Any:
    """An MlflowClient that fails fast. A SQLite store is created first, by one process at a time: racing breaks it for good."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # its errors come as exceptions too
    from mlflow import MlflowClient

    database = sqlite_path(uri)
    if database is None:
        return MlflowClient(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with locked(database.with_name(f".{database.name}.lock")):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite:/// URI."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among the processes that use the same lock file."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def new_run(client: Any, settings: Mlflow, name: str, tags: dict[str, str]) -> str:
    """Create a run in the experiment `settings.experiment`, which is made if it does not exist; its id."""
    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        database = sqlite_path(settings.uri)
        # Beside the database, absolute: MLflow's default is relative to whatever folder the UI is started in.
        place = (database.parent / "mlruns" / settings.experiment).as_uri() if database else None
        with contextlib.suppress(Exception):  # another process may be making it
            client.create_experiment(settings.experiment, artifact_location=place)
        experiment = client.get_experiment_by_name(settings.experiment)
    return str(client.create_run(experiment.experiment_id, run_name=name, tags=tags).info.run_id)


def reopened(client: Any, run_id: str) -> bool:
    """Set a run RUNNING again; False if it is no longer in the store."""
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.lifecycle_stage != "active":
            return False
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def system_metrics() -> Iterator[tuple[str, float]]:
    """CPU and memory of the machine and of this process, under the names MLflow's UI shows as system metrics."""
    import psutil

    yield "system/cpu_utilization_percentage", psutil.cpu_percent()
    memory = psutil.virtual_memory()
    yield "system/system_memory_usage_megabytes", memory.used / 1e6
    yield "system/system_memory_usage_percentage", memory.percent
    yield "system/process_memory_megabytes", psutil.Process().memory_info().rss / 1e6


# ---------------------------------------------------------------------------------------------------- parents and the dead
def open_parent(out: Path, settings: Track, name: str, params: dict[str, Any], tags: dict[str, str]) -> str | None:
    """A run for the jobs of the sweep in `out` to nest under: the one it already has, or a new one. None without MLflow."""
    match settings:
        case Off():
            return None
        case Mlflow():
            client = connect(settings.uri)
            kept = identity(out, settings.uri)
            if kept is not None and reopened(client, kept):
                return kept
            run_id = new_run(client, settings, name, tags)
            (out / IDENTITY).write_text(json.dumps({"uri": settings.uri, "run_id": run_id}) + "\n")
            log_params(client, run_id, params)
            return run_id
    raise AssertionError(settings)


def close_run(
    settings: Track, run_id: str | None, status: str, *, only_if_running: bool = False, artifacts: tuple[Path, ...] = ()
) -> None:
    """Set a run's status from outside: a sweep's parent, or a job that died without a word."""
    if isinstance(settings, Mlflow) and run_id is not None:
        client = connect(settings.uri)
        for path in artifacts:
            client.log_artifact(run_id, str(path))
        if not only_if_running or client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, status)


def count_restart(settings: Track, run_id: str | None) -> None:
    """Count in the run's tag `restarts` that its ranks died and were started again."""
    if isinstance(settings, Mlflow) and run_id is not None:
        client = connect(settings.uri)
        client.set_tag(run_id, "restarts", str(int(client.get_run(run_id).data.tags.get("restarts", "0")) + 1))


def tags(run: Run, device: str) -> dict[str, str]:
    """What people filter runs by, beside the parameters."""
    import tensorflow as tf

    return {
        "recipe": run.recipe or "none",
        "seed": str(run.seed),
        "device": device,
        "out": run.out,
        "version.resnet": __version__,
        "version.tensorflow": tf.__version__,
        "version.python": platform.python_version(),
        "mlflow.user": user(),
        "mlflow.source.name": "resnet.train",
        **source_tags(Path(__file__).parent),
    }


def user() -> str:
    """Who runs this; the number where a container knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def source_tags(folder: Path) -> dict[str, str]:
    """Git commit, and whether tracked files differ from it, of the checkout that holds `folder`; empty outside of one."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = git("status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(dirty)).lower()}
