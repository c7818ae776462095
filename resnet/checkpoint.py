"""Checkpoints that are whole or not there, in <out>/checkpoints/step-<number>/.

A checkpoint is a folder: TensorFlow's files, and commit.json with the step, the sha256 of each file and what the loop needs
to go on. It is written under another name, flushed to disk, and renamed last: what has the name is complete.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from resnet import UserError, stamp
from resnet.preparation import manifest

FOLDER = "checkpoints"
COMMIT = "commit.json"
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


class Stored(tf.train.Checkpoint):
    """Is written by a graph, made once. Eagerly TensorFlow 2.15 makes it anew: for the tiny network 38 ms instead of 3, and each
    time 28 kB stay behind for ever."""

    def write(self, path: str, options: Any = None) -> str:
        """Write TensorFlow's files."""
        self.graph(tf.constant(path), options)
        return path

    @tf.function(autograph=False)
    def graph(self, path: Any, options: Any) -> None:
        """Of write()."""
        with tf.device(CPU):  # where the variables' values are sent: one file
            super().write(path, options)


def trackable(network: Any, optimizer: Any, average: Any = None) -> Any:
    """Everything that training changes, by name; `average` is the network of the averaged weights, if they are averaged."""
    return Stored(network=network, optimizer=optimizer, **({"average": average} if average else {}))


def place(out: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` updates."""
    return out / FOLDER / f"step-{step:08d}"


def save(out: Path, weights: Any, step: int, top1: float | None, state: Any, keep: int) -> Saved:
    """Write the checkpoint of `step`, then drop all but the newest `keep` and the best. Raises UserError if it can't be written.

    `state` is a dataclass whose fields survive JSON.
    """
    final = place(out, step)
    aside = out / FOLDER / f".writing-{step:08d}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        weights.write(str(aside / "weights"))
        digests = {path.name: digest(path) for path in sorted(aside.iterdir())}
        commit = {**stamp.stamp(), "step": step, "top1": top1, "state": asdict(state), "sha256": digests}
        (aside / COMMIT).write_text(sealed(commit))
        for path in (*aside.iterdir(), aside):
            manifest.sync(path)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        manifest.sync(final.parent)
    except (OSError, tf.errors.OpError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"{final}: the checkpoint could not be written ({reason(error)}); the ones before it are whole: make room and "
            "start the same command again"
        ) from error
    saved = Saved(final, step, top1, commit["state"])
    prune(out, keep)
    return saved


def reason(error: Exception) -> str:
    """What the system said, among all that TensorFlow may say around it."""
    known = (os.strerror(number) for number in errno.errorcode)
    return next((said for said in known if said in str(error)), str(error).partition("\n")[0])


def amended(saved: Saved, top1: float | None, state: Any) -> Saved:
    """A checkpoint with another `top1` and `state` beside the same weights; it is whole at any moment."""
    path = saved.path / COMMIT
    commit = {**committed(saved.path), **stamp.stamp(), "top1": top1, "state": asdict(state)}
    with manifest.whole(path) as file:
        file.write(sealed(commit).encode())
    return Saved(saved.path, saved.step, top1, commit["state"])


def seal(commit: dict[str, Any]) -> str:
    """sha256 of what a commit.json says, however it is laid out."""
    content = {name: part for name, part in commit.items() if name != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed(commit: dict[str, Any]) -> str:
    """The text of a commit.json, the step and the figures in it guarded like the weights."""
    return json.dumps({**commit, "seal": seal(commit)}, indent=1)


def committed(path: Path) -> dict[str, Any]:
    """What the commit.json of a checkpoint says. Raises UserError for one that a newer version wrote, else one of DAMAGE."""
    commit = json.loads((path / COMMIT).read_bytes())
    if commit.get("seal") != seal(commit) and set(commit) != UNSEALED:
        raise ValueError(f"{COMMIT} is not what was written")
    stamp.check(path / COMMIT, commit)
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


def found(out: Path) -> list[Saved]:
    """The complete checkpoints of a run, oldest first, by their commit.json; contents are not verified yet."""
    made = []
    for path in sorted((out / FOLDER).glob("step-*")):
        try:
            commit = committed(path)
            made.append(Saved(path, commit["step"], commit["top1"], commit["state"]))
        except DAMAGE:
            made.append(Saved(path, -1, None, {}))  # fault() names what is wrong with it
    return made


def best(checkpoints: list[Saved]) -> Saved | None:
    """The checkpoint with the highest top-1, the earlier of equals."""
    return max((c for c in checkpoints if c.top1 is not None), key=lambda c: (c.top1, -c.step), default=None)


def prune(out: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the best."""
    checkpoints = found(out)
    kept = [*checkpoints[-keep:], best(checkpoints)]
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            shutil.rmtree(checkpoint.path)


def fault(checkpoint: Saved) -> str | None:
    """What is wrong with a checkpoint's files, or None. Raises UserError for one that a newer version wrote."""
    try:
        commit = committed(checkpoint.path)
        for name, expected in commit["sha256"].items():
            if digest(checkpoint.path / name) != expected:
                return f"{name} is not what was written"
    except UserError:
        raise
    except DAMAGE as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextlib.contextmanager
def plain(path: Path) -> Iterator[Path]:
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
    checkpoints, notes = found(out), []
    for checkpoint in reversed(checkpoints):
        if wrong := fault(checkpoint):
            aside = checkpoint.path.with_name(f"bad-{checkpoint.path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.path.rename(aside)
            notes.append(f"{checkpoint.path.name} is damaged ({wrong}); it was renamed {aside.name}")
            continue
        try:
            with plain(checkpoint.path) as path:
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
