"""Checkpoints that are whole or not there, in <out>/checkpoints/step-<number>/.

A checkpoint is a folder: TensorFlow's files, and commit.json with the step, the sha256 of each file and what the loop needs
to go on. It is written under another name, flushed to disk, and renamed last: what has the name is complete. A thread does so.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from resnet import UserError, files, rundir

FOLDER = "checkpoints"
COMMIT = "commit.json"
ASIDE = ".writing-"
CPU = "/job:localhost/replica:0/task:0/device:CPU:0"
UNSEALED = {"step", "top1", "state", "sha256"}  # what a commit of resnet 0.1.0 has in it, and no seal
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what reading a damaged one raises


@dataclass(frozen=True)
class Saved:
    """One checkpoint on disk. `state` is what the loop kept beside the weights; `top1` is of its evaluation, if it had one."""

    path: Path
    step: int
    top1: float | None
    state: dict[str, Any]


class TensorSlots:
    """A checkpoint as TensorFlow lays it out: names, and the variables or constants behind them, found out by tracing once.

    Checkpoint.write() takes long and keeps 28 kB for ever each time it is called eagerly, and reads while it writes. Here
    values are taken first, without a copy: an update makes its own as long as somebody holds them.
    """

    def __init__(self, weights: Any) -> None:
        written = tf.function(lambda path: weights.write(path), autograph=False)
        graph = written.get_concrete_function(tf.TensorSpec([], tf.string)).graph
        outside = {inner.name: outer for outer, inner in graph.captures}
        self.names: list[bytes] = []
        self.sources: list[tuple[Any, Any]] = []  # (variable's handle, its type), or (None, the constant)
        for operation in graph.get_operations():
            if operation.type == "SaveV2":
                _prefix, names, _slices, *values = operation.inputs
                self.names += list(tf.get_static_value(names))
                self.sources += [origin(value, outside) for value in values]

    def taken(self) -> list[Any]:
        """The values as they are now."""
        return [
            kind if handle is None else tf.raw_ops.ReadVariableOp(resource=handle, dtype=kind)
            for handle, kind in self.sources
        ]

    def write(self, path: Path, values: Sequence[Any]) -> None:
        """Write TensorFlow's files, a .index and one .data, with these values."""
        with tf.device(CPU):  # whence files are written, wherever the values are
            slices = [""] * len(self.names)
            tf.raw_ops.SaveV2(prefix=str(path), tensor_names=self.names, shape_and_slices=slices, tensors=values)


def origin(value: Any, outside: dict[str, Any]) -> tuple[Any, Any]:
    """Where a tensor of a traced write comes from, as in Layout.sources; `outside` are the graph's captures by name."""
    while value.op.type in ("Identity", "ReadVariableOp"):
        dtype, value = value.dtype, value.op.inputs[0]
    if value.name in outside:
        return outside[value.name], dtype
    return None, tf.constant(tf.get_static_value(value))


def trackable(network: Any, optimizer: Any, average: Any = None) -> Any:
    """Everything that training changes, by name; `average` is the network of the averaged weights, if they are averaged."""
    return tf.train.Checkpoint(network=network, optimizer=optimizer, **({"average": average} if average else {}))


def path_of(out: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` updates."""
    return out / FOLDER / f"step-{step:08d}"


def save(out: Path, weights: Any, step: int, top1: float | None, state: Any, keep: int) -> Saved:
    """Write the checkpoint of `step`, then drop all but the newest `keep` and the best. Raises UserError if it can't be written.

    `state` is a dataclass whose fields survive JSON.
    """
    with CheckpointWriter(out, weights, keep) as writer:
        return writer.save(step, top1, state)


class CheckpointWriter:
    """Context: writes checkpoints of a run in a thread, one at a time, while training goes on. At its end all are written."""

    def __init__(self, out: Path, weights: Any, keep: int) -> None:
        self.out, self.weights, self.keep = out, weights, keep
        self.layout: TensorSlots | None = None
        self.thread: threading.Thread | None = None
        self.failed: Exception | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            self.wait()
        elif kind is not KeyboardInterrupt and self.thread:  # that one wants to end at once
            self.thread.join()

    def save(self, step: int, top1: float | None, state: Any) -> Saved:
        """Take the weights as they are, and have them written; waits for the one before. Raises UserError as wait() does."""
        self.wait()
        self.layout = self.layout or TensorSlots(self.weights)
        values, fields = self.layout.taken(), asdict(state)
        self.thread = threading.Thread(target=self.put, args=(self.layout, values, step, top1, fields), daemon=True)
        self.thread.start()
        return Saved(path_of(self.out, step), step, top1, fields)

    def wait(self) -> None:
        """Until nothing is being written. Raises UserError if the newest one could not be."""
        if self.thread:
            self.thread.join()
            self.thread = None
        if self.failed:
            failed, self.failed = self.failed, None
            raise failed

    def put(
        self, layout: TensorSlots, values: Sequence[Any], step: int, top1: float | None, state: dict[str, Any]
    ) -> None:
        """In the thread."""
        final, aside = path_of(self.out, step), self.out / FOLDER / f"{ASIDE}{step:08d}"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            layout.write(aside / "weights", values)
            digests = {path.name: digest(path) for path in sorted(aside.iterdir())}
            commit = {**rundir.versions(), "step": step, "top1": top1, "state": state, "sha256": digests}
            (aside / COMMIT).write_text(commit_text(commit))
            for path in (*aside.iterdir(), aside):
                files.fsync(path)
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            files.fsync(final.parent)
            prune(self.out, self.keep)
        except (OSError, tf.errors.OpError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            self.failed = UserError(
                f"{final}: the checkpoint could not be written ({reason(error)}); the ones before it are whole: make room "
                "and start the same command again"
            )
        except Exception as error:  # a fault of ours: not to be lost with the thread
            self.failed = error


def reason(error: Exception) -> str:
    """What the system said, among all that TensorFlow may say around it."""
    known = (os.strerror(number) for number in errno.errorcode)
    return next((said for said in known if said in str(error)), str(error).partition("\n")[0])


def amend(saved: Saved, top1: float | None, state: Any) -> Saved:
    """A checkpoint with another `top1` and `state` beside the same weights; it is whole at any moment."""
    path = saved.path / COMMIT
    commit = {**read_commit(saved.path), **rundir.versions(), "top1": top1, "state": asdict(state)}
    with files.atomic_write(path) as file:
        file.write(commit_text(commit).encode())
    return Saved(saved.path, saved.step, top1, commit["state"])


def seal(commit: dict[str, Any]) -> str:
    """sha256 of what a commit.json says, however it is laid out."""
    content = {name: part for name, part in commit.items() if name != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def commit_text(commit: dict[str, Any]) -> str:
    """The text of a commit.json, the step and the figures in it guarded like the weights."""
    return json.dumps({**commit, "seal": seal(commit)}, indent=1)


def read_commit(path: Path) -> dict[str, Any]:
    """What the commit.json of a checkpoint says. Raises UserError for one that a newer version wrote, else one of DAMAGE."""
    commit = json.loads((path / COMMIT).read_bytes())
    if commit.get("seal") != seal(commit) and set(commit) != UNSEALED:
        raise ValueError(f"{COMMIT} is not what was written")
    rundir.check_versions(path / COMMIT, commit)
    whole = isinstance(commit["step"], int) and isinstance(commit["state"], dict) and commit["sha256"]
    if not whole or any(Path(name).name != name for name in commit["sha256"]):
        raise ValueError(f"{COMMIT} is not that of a checkpoint")
    return dict(commit)


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def list_checkpoints(out: Path) -> list[Saved]:
    """The complete checkpoints of a run, oldest first, by their commit.json; contents are not verified yet."""
    made = []
    for path in sorted((out / FOLDER).glob("step-*")):
        try:
            commit = read_commit(path)
            made.append(Saved(path, commit["step"], commit["top1"], commit["state"]))
        except DAMAGE:
            made.append(Saved(path, -1, None, {}))  # fault() names what is wrong with it
    return made


def best(checkpoints: list[Saved]) -> Saved | None:
    """The checkpoint with the highest top-1, the earlier of equals."""
    return max((c for c in checkpoints if c.top1 is not None), key=lambda c: (c.top1, -c.step), default=None)


def prune(out: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the best."""
    checkpoints = list_checkpoints(out)
    kept = [*checkpoints[-keep:], best(checkpoints)]
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            shutil.rmtree(checkpoint.path)


def verify(checkpoint: Saved) -> str | None:
    """What is wrong with a checkpoint's files, or None. Raises UserError for one that a newer version wrote."""
    try:
        commit = read_commit(checkpoint.path)
        for name, expected in commit["sha256"].items():
            if digest(checkpoint.path / name) != expected:
                return f"{name} is not what was written"
    except UserError:
        raise
    except DAMAGE as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextlib.contextmanager
def glob_safe(path: Path) -> Iterator[Path]:
    """`path`, by another name while it is read if its own has what TensorFlow takes for a pattern of names."""
    if not set("[]*?") & set(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="resnet-") as folder:
        alias = Path(folder, "checkpoint")
        alias.symlink_to(path.resolve())
        yield alias


def restore(out: Path, weights: Any) -> tuple[Saved | None, list[str]]:
    """Load the newest good checkpoint into `weights`. Returns it (None: there is none at all) and what was set aside, in words.

    A damaged one is renamed bad-...; if all are damaged, or one is of another network, raises UserError: never step 0 in silence.
    """
    for torn in (out / FOLDER).glob(f"{ASIDE}*"):
        shutil.rmtree(torn)
    checkpoints, notes = list_checkpoints(out), []
    for checkpoint in reversed(checkpoints):
        if wrong := verify(checkpoint):
            aside = checkpoint.path.with_name(f"bad-{checkpoint.path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.path.rename(aside)
            notes.append(f"{checkpoint.path.name} is damaged ({wrong}); it was renamed {aside.name}")
            continue
        try:
            with glob_safe(checkpoint.path) as path:
                weights.read(str(path / "weights")).assert_consumed()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            detail = str(error).splitlines()[0]
            raise UserError(
                f"{checkpoint.path}: of another network or optimizer ({detail}); start in another out="
            ) from error
        return checkpoint, notes
    if checkpoints:
        raise UserError(f"{out / FOLDER}: no checkpoint is whole ({'; '.join(notes)}); start in another out=")
    return None, notes
