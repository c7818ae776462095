"""Where a run's numbers go: <out>/metrics.jsonl first, and from there to MLflow, by a thread of its own.

The loop appends a line to the file. The thread sends what MLflow has not got yet, with the times at which things happened, and
notes in <out>/mlflow.json how far it has come: while the store is away, or when a run died, nothing is lost, and
`python -m resnet.track sync <out>` sends the rest. A point sent twice counts once, because its time is the same.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import json
import math
import os
import platform
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from resnet import UserError, __version__, events, store
from resnet.config import Run
from resnet.lines import Lines
from resnet.settings.track import Mlflow, Track
from resnet.store import Note

FILE = "metrics.jsonl"
TAGS = "tags.json"
MODEL = "model"  # in <out>: MLflow's model, where the run kept one
CLOSE_S = 120.0  # how long close() waits for MLflow to take what is left, a model of 100 MB among it
SEND_S = 5.0  # between two sendings
LAST_TRIES = 2  # once close() was called
PAUSE_S = 30.0  # at most, between two tries
DIFF_LIMIT = 1_000_000  # bytes of source.diff
POINTS = 1000  # metrics to a request (MLflow's REST limit)

HELP = """Send to MLflow what it has not got of a run: python -m resnet.track sync RUN [RUN ...] [uri=STORE]

RUN is a run's folder. uri= is another store than the one the run was trained with. Sending twice changes nothing."""


class Nobody:
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
        self.events = events.Events(out) if wanted else None
        try:
            self.lines = Lines(out / FILE)
            if isinstance(settings, Mlflow):
                store.write_json(out / TAGS, tags)
        except OSError as error:
            raise UserError(f"out={out}: cannot be written to ({error.strerror}); make room and start again") from error
        if isinstance(settings, Mlflow):
            self.sender = Sender(self, settings, params, tags, dataset)
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

    def write(self, step: int, metrics: dict[str, float | None]) -> None:
        """Append a line."""
        finite = {name: float(value) for name, value in metrics.items() if value is not None and math.isfinite(value)}
        line = json.dumps({"step": step, "time_ms": time.time_ns() // 1_000_000, **finite})
        with self.lock:
            self.lines.add(line)

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


class Sender(threading.Thread):
    """The thread that tells MLflow what stands in the run's folder."""

    def __init__(
        self,
        tracker: Tracker,
        settings: Mlflow,
        params: dict[str, Any],
        tags: dict[str, str],
        dataset: dict[str, Any] | None,
    ) -> None:
        super().__init__(name="mlflow", daemon=True)
        self.tracker, self.settings, self.params, self.tags, self.dataset = tracker, settings, params, tags, dataset
        self.queue: queue.SimpleQueue[Callable[[Any, str], object]] = queue.SimpleQueue()
        self.closing = threading.Event()
        self.every_s = settings.system_metrics_s
        self.status = "FAILED"
        self.trouble: str | None = None
        self.client: Any = None
        self.note: Note | None = None

    @property
    def run_id(self) -> str | None:
        """The MLflow run, once there is one."""
        return self.note.run_id if self.note else None

    def finish(self, status: str) -> str | None:
        """Have everything sent, within CLOSE_S; what went wrong, if anything did."""
        self.status = status
        if self.note:
            self.note.status = status
            with contextlib.suppress(OSError):  # a full disk; the thread tells MLflow all the same
                self.note.write(self.tracker.out)
        self.closing.set()
        self.join(CLOSE_S)
        left = f"metrics.jsonl is complete; python -m resnet.track sync {shlex.quote(str(self.tracker.out))} sends the rest"
        if self.is_alive():
            return f"MLflow did not take everything within {CLOSE_S:.0f} s; {left}"
        return self.trouble and f"{self.trouble}; {left}"

    def run(self) -> None:
        """Open the MLflow run, send until finish() says stop, set the status."""
        with contextlib.suppress(Exception):  # whatever MLflow does must not take the run down; persist() has noted it
            self.persist(self.open)
            sampled = time.monotonic() - self.settings.system_metrics_s
            stop = False
            while not stop:
                stop = self.closing.is_set()
                if not stop and time.monotonic() - sampled >= self.every_s:
                    sampled = time.monotonic()
                    self.tracker.write(self.tracker.step, dict(system_metrics()))
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
        said = store.hidden(str(error).partition("\n")[0])
        self.trouble = f"MLflow ({self.settings.uri}): {type(error).__name__}: {said}"

    def open(self) -> None:
        """The MLflow run of this folder: the one it already has, or a new one. Parameters it has already stay."""
        out, settings = self.tracker.out, self.settings
        self.client = store.connect(settings.uri)
        found = store.note(out, settings.uri)
        if found is None or not store.reopened(self.client, found.run_id):
            nested = {"mlflow.parentRunId": settings.parent_run} if settings.parent_run else {}
            run_id = store.new_run(self.client, settings, settings.run_name, {**self.tags, **nested})
            found = Note(settings.uri, run_id)
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
        for metrics, position in unsent(self.tracker.out / FILE, self.note.sent):
            self.client.log_batch(self.note.run_id, metrics=metrics)
            self.note.sent = position
            self.note.write(self.tracker.out)

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


def system_metrics() -> Iterator[tuple[str, float]]:
    """CPU and memory of the machine and of this process, under the names MLflow's UI shows as system metrics."""
    import psutil

    yield "system/cpu_utilization_percentage", psutil.cpu_percent()
    memory = psutil.virtual_memory()
    yield "system/system_memory_usage_megabytes", memory.used / 1e6
    yield "system/system_memory_usage_percentage", memory.percent
    yield "system/process_memory_megabytes", psutil.Process().memory_info().rss / 1e6
    with contextlib.suppress(Exception):  # no GPU, no driver, or no NVML for Python
        yield from gpu_metrics()


def gpu_metrics() -> Iterator[tuple[str, float]]:
    """The same of each NVIDIA GPU."""
    import pynvml

    pynvml.nvmlInit()
    for number in range(pynvml.nvmlDeviceGetCount()):
        card = pynvml.nvmlDeviceGetHandleByIndex(number)
        yield f"system/gpu_{number}_utilization_percentage", pynvml.nvmlDeviceGetUtilizationRates(card).gpu
        yield f"system/gpu_{number}_memory_usage_megabytes", pynvml.nvmlDeviceGetMemoryInfo(card).used / 1e6


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
        **own_tags(run.track),
    }


def own_tags(settings: Track) -> dict[str, str]:
    """Those that the user gave."""
    given = settings.tags if isinstance(settings, Mlflow) else None
    return {name: str(value) for name, value in (given or {}).items()}


def environment(out: Path) -> Path:
    """environment.txt: every installed package and its version, as pip freeze lists them."""
    from importlib import metadata

    found = sorted({f"{dist.metadata['Name']}=={dist.version}" for dist in metadata.distributions()}, key=str.lower)
    path = out / "environment.txt"
    path.write_text("\n".join(found) + "\n")
    return path


def changes(out: Path) -> Path | None:
    """source.diff: how the checkout this runs from differs from its commit; None where it does not, or there is none."""
    folder = Path(__file__).parent
    words = ["git", "-C", str(folder), "diff", "HEAD", "--", "."]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(words, capture_output=True, timeout=30, check=True)
        if done.stdout:
            path = out / "source.diff"
            path.write_bytes(done.stdout[:DIFF_LIMIT])
            return path
    return None


SURROUNDINGS = (environment, changes)


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


# ------------------------------------------------------------------------------------------------------------------- sync
def sync(out: Path, uri: str | None = None) -> str:
    """Send what MLflow has not got of the run in `out`, its files included; the run's id. Raises UserError where it can't be."""
    from resnet import comparison, lock, run_folder

    run = run_folder.load(out)
    settings = run.track
    if uri:
        settings = Mlflow(uri=uri, run_name=getattr(settings, "run_name", out.name))
    if not isinstance(settings, Mlflow):
        raise UserError(f"{out}: was trained with track=off; name a store by uri=")
    if not (out / FILE).is_file():
        raise UserError(f"{out}: no {FILE} in it")
    with lock.held(out):
        return send_all(out, settings, comparison.flat(run))


def send_all(out: Path, settings: Mlflow, params: dict[str, Any]) -> str:
    """What `sync` does once nobody else can be at it."""
    from resnet import result

    kept = json.loads((out / TAGS).read_text()) if (out / TAGS).is_file() else {}
    ended = (found.status if (found := store.note(out, settings.uri)) else None) or (
        "KILLED" if result.read(out) is None else "FINISHED"
    )
    tracker = Tracker(out, settings, params, kept, sampling=False)
    for path in sorted(out.iterdir()):
        if (
            path.is_file()
            and not path.name.startswith(".")
            and path.name not in (FILE, TAGS)
            and not path.match("mlflow*.json")
        ):
            tracker.artifact(path)
    if (out / MODEL / "MLmodel").is_file():
        from resnet import serve

        tracker.later(functools.partial(serve.log, place=out / MODEL, register=settings.register))
    if trouble := tracker.close(ended):
        raise UserError(f"{out}: {trouble}")
    return str(tracker.run_id)


def go(words: Sequence[str]) -> None:
    """The command without the reporting of errors."""
    what, *rest = words
    uris = [word.removeprefix("uri=") for word in rest if word.startswith("uri=")]
    folders = [Path(word).expanduser() for word in rest if not word.startswith("uri=")]
    if what != "sync" or not folders:
        raise UserError(f"resnet.track {' '.join(words)}: say sync and a run's folder; --help tells more")
    for out in folders:
        print(f"{out}: {sync(out, uris[-1] if uris else None)}")


def main() -> int:
    """Exit status."""
    from resnet import evaluate

    return evaluate.command(HELP, go)


if __name__ == "__main__":
    sys.exit(main())
