"""Checkpoints that are complete or absent, in <out>/checkpoints/step-<number>/.

A checkpoint is a folder: TensorFlow's files, and commit.json with the step, the SHA-256 of each file and the run's progress. A
thread writes it under another name, flushes it to disk, and renames it last.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet import UserError, files
from resnet.rundir.commit import COMMIT, MAX_BYTES, commit_text, digest, read_commit
from resnet.rundir.folder import versions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FOLDER = "checkpoints"
MAX_INDEX = 64 << 20  # bytes of TensorFlow's list of variables; ResNet-200 with velocity and average: 0.5 MB
STATISTICS = "statistics.npy"
CPU = "/job:localhost/replica:0/task:0/device:CPU:0"
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what reading a damaged one raises


@dataclass(frozen=True)
class Saved:
    """One checkpoint on disk. `state` is the progress stored beside the weights; `top1` is None without an evaluation."""

    path: Path
    step: int
    top1: float | None
    state: dict[str, Any]


class TensorSlots:
    """The tensors of a tf.train.Checkpoint: names, and the variables or constants behind them, found by tracing once.

    Checkpoint.write() is slow, leaks 28 kB at each eager call, and reads variables while it writes. Here values are read first,
    without a copy: a later update of a variable allocates a new buffer as long as somebody holds the old one.
    """

    def __init__(self, trackable: tf.train.Checkpoint) -> None:
        traced = tf.function(lambda path: trackable.write(path), autograph=False)
        graph = traced.get_concrete_function(tf.TensorSpec([], tf.string)).graph
        captures = {inner.name: outer for outer, inner in graph.captures}
        self.names: list[bytes] = []
        self.sources: list[
            tuple[tf.Tensor | None, tf.DType | tf.Tensor]
        ] = []  # (variable's handle, its dtype), or (None, the constant)
        for operation in graph.get_operations():
            if operation.type == "SaveV2":
                _prefix, names, _slices, *values = operation.inputs
                self.names += list(tf.get_static_value(names))
                self.sources += [_source(value, captures) for value in values]

    def snapshot(self) -> list[tf.Tensor]:
        """The values as they are now."""
        return [
            kind if handle is None else tf.raw_ops.ReadVariableOp(resource=handle, dtype=kind)
            for handle, kind in self.sources
        ]

    def write(self, path: Path, values: Sequence[tf.Tensor]) -> None:
        """Write TensorFlow's files, a .index and one .data, with these values."""
        with tf.device(CPU):  # files are written from the host, wherever the values are
            slices = [""] * len(self.names)
            tf.raw_ops.SaveV2(prefix=str(path), tensor_names=self.names, shape_and_slices=slices, tensors=values)


def _source(value: tf.Tensor, captures: dict[str, tf.Tensor]) -> tuple[tf.Tensor | None, tf.DType | tf.Tensor]:
    """An element of TensorSlots.sources for a tensor of the traced graph, whose captures are given by name."""
    while value.op.type in ("Identity", "ReadVariableOp"):
        dtype, value = value.dtype, value.op.inputs[0]
    if value.name in captures:
        return captures[value.name], dtype
    return None, tf.constant(tf.get_static_value(value))


def path_of(out: Path, step: int) -> Path:
    return out / FOLDER / f"step-{step:08d}"


class CheckpointWriter:
    """Context: writes the checkpoints of a run in a thread, one at a time. At its exit all are written.

    It then deletes all but the newest `keep` checkpoints and the best.
    """

    def __init__(self, out: Path, trackable: tf.train.Checkpoint, keep: int) -> None:
        self.out, self.trackable, self.keep = out, trackable, keep
        self.slots: TensorSlots | None = None
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            self.wait()
        elif kind is not KeyboardInterrupt and self.thread:  # which is to end the process at once
            self.thread.join()

    def save(
        self,
        step: int,
        top1: float | None,
        progress: DataclassInstance,
        statistics: NDArray[np.float32] | None = None,
    ) -> Saved:
        """Read the weights, and have them written with `progress`, whose fields survive JSON. Raises UserError as wait().

        `statistics` [ranks, n] are each rank's own moving statistics, where the weights have their averages.
        """
        self.wait()
        self.slots = self.slots or TensorSlots(self.trackable)
        values, saved = self.slots.snapshot(), Saved(path_of(self.out, step), step, top1, asdict(progress))
        self.thread = threading.Thread(target=self.write, args=(self.slots, values, saved, statistics), daemon=True)
        self.thread.start()
        return saved

    def wait(self) -> None:
        """Wait until nothing is being written. Raises UserError if the newest one could not be."""
        if self.thread:
            self.thread.join()
            self.thread = None
        if self.error:
            error, self.error = self.error, None
            raise error

    def write(
        self, slots: TensorSlots, values: Sequence[tf.Tensor], saved: Saved, statistics: NDArray[np.float32] | None
    ) -> None:
        """The thread."""
        try:
            with files.atomic_dir(saved.path, replace=True) as folder:
                slots.write(folder / "weights", values)
                if statistics is not None:
                    np.save(folder / STATISTICS, statistics)
                digests = {path.name: digest(path) for path in sorted(folder.iterdir())}
                commit = {**versions(), "step": saved.step, "top1": saved.top1, "state": saved.state, "sha256": digests}
                (folder / COMMIT).write_text(commit_text(commit))
            prune(self.out, self.keep)
        except (OSError, tf.errors.OpError) as error:
            # TensorFlow wraps what the operating system says.
            known = (os.strerror(number) for number in errno.errorcode)
            reason = next((text for text in known if text in str(error)), str(error).partition("\n")[0])
            self.error = UserError(
                f"{saved.path}: the checkpoint could not be written ({reason}); the ones before it are complete: make room "
                "and start the same command again"
            )
        except Exception as error:  # a bug: not to be lost with the thread
            self.error = error


def read_statistics(saved: Saved | None) -> NDArray[np.float32] | None:
    """What CheckpointWriter.save() was given as `statistics`."""
    path = saved and saved.path / STATISTICS
    if not path or not os.path.lexists(path):
        return None
    try:
        with files.open_bytes(path, MAX_BYTES):
            # A map, because np.load() makes room for an array before it looks whether the file has it.
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except UserError:
        raise
    except Exception as error:  # NumPy raises half a dozen kinds for a damaged file
        raise UserError(f"{path}: damaged ({error}); remove {path.parent} to resume from the one before") from error


def amend(saved: Saved, top1: float | None, progress: DataclassInstance) -> Saved:
    """Replace `top1` and the progress of a checkpoint, atomically."""
    commit = {**read_commit(saved.path), **versions(), "top1": top1, "state": asdict(progress)}
    files.write_text(saved.path / COMMIT, commit_text(commit))
    return Saved(saved.path, saved.step, top1, commit["state"])


def list_checkpoints(out: Path) -> list[Saved]:
    """The checkpoints of a run, oldest first, by their commit.json; the weights are not verified."""
    checkpoints = []
    for path in sorted((out / FOLDER).glob("step-*")):
        try:
            commit = read_commit(path)
            checkpoints.append(Saved(path, commit["step"], commit["top1"], commit["state"]))
        except DAMAGE:
            checkpoints.append(Saved(path, -1, None, {}))  # verify() says what is wrong with it
    return checkpoints


def best(checkpoints: list[Saved]) -> Saved | None:
    """The checkpoint with the highest top-1, the earlier of equals."""
    return max((c for c in checkpoints if c.top1 is not None), key=lambda c: (c.top1, -c.step), default=None)


def prune(out: Path, keep: int) -> None:
    checkpoints = list_checkpoints(out)
    for checkpoint in checkpoints[:-keep]:
        if checkpoint != best(checkpoints):
            shutil.rmtree(checkpoint.path)


def verify(checkpoint: Saved) -> str | None:
    """What is wrong with the files of a checkpoint, or None. Raises UserError for one of a newer version."""
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


def open_variables(prefix: Path) -> Any:
    """TensorFlow's reader of <prefix>.index and .data-*, which are no more than MAX_BYTES and hold all that the index names.

    Raises UserError, or ValueError and what TensorFlow raises for damaged ones.
    """
    sizes = []
    for path in prefix.parent.glob(f"{prefix.name}.*"):
        with files.open_bytes(path, MAX_INDEX if path.suffix == ".index" else MAX_BYTES) as file:
            sizes.append(os.fstat(file.fileno()).st_size)
    reader = tf.train.load_checkpoint(str(prefix))
    kinds = reader.get_variable_to_dtype_map()
    shapes = reader.get_variable_to_shape_map().items()
    # TensorFlow makes room for a tensor before it looks whether the file has it.
    if sum(math.prod(shape) * kinds[name].size for name, shape in shapes if kinds[name] != tf.string) > sum(sizes):
        raise ValueError("the index names more than the files hold")
    return reader


@contextlib.contextmanager
def glob_safe(path: Path) -> Iterator[Path]:
    """`path`, or a link to it if TensorFlow would take its name for a pattern."""
    if not set("[]*?") & set(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="resnet-") as folder:
        alias = Path(folder, "checkpoint")
        alias.symlink_to(path.resolve())
        yield alias


def restore(out: Path, trackable: tf.train.Checkpoint) -> tuple[Saved | None, list[str]]:
    """Load the newest good checkpoint. Returns it (None if there is no checkpoint at all) and notes about damaged ones.

    A damaged one is renamed bad-...; if all are damaged, or one is of another network, raises UserError: never step 0 in silence.
    """
    for partial in (out / FOLDER).glob(".*"):
        shutil.rmtree(partial)
    checkpoints, notes = list_checkpoints(out), []
    for checkpoint in reversed(checkpoints):
        if wrong := verify(checkpoint):
            bad = checkpoint.path.with_name(f"bad-{checkpoint.path.name}")
            shutil.rmtree(bad, ignore_errors=True)
            checkpoint.path.rename(bad)
            notes.append(f"{checkpoint.path.name} is damaged ({wrong}); it was renamed {bad.name}")
            continue
        try:
            with glob_safe(checkpoint.path) as path:
                open_variables(path / "weights")
                trackable.read(str(path / "weights")).assert_consumed()
        except UserError:
            raise
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            detail = str(error).splitlines()[0]
            raise UserError(
                f"{checkpoint.path}: of another network or optimizer ({detail}); start in another out="
            ) from error
        return checkpoint, notes
    if checkpoints:
        raise UserError(f"{out / FOLDER}: no checkpoint is complete ({'; '.join(notes)}); start in another out=")
    return None, notes
