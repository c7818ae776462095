"""A folder of shards while it is being made: who is at it, what it is made of, and which shards are finished.

All of it lies in <out>/.prepare, which goes when manifest.json has come.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet import UserError, files
from resnet.data import manifest

STATE, SETTINGS = ".prepare", "settings.json"
NOTED = {"options": dict, "versions": dict, "listing": str}  # in the settings


@dataclass
class Shard:
    """A finished shard, `file` below the folder."""

    file: str
    images: int = 0
    bytes: int = 0
    crc32c: str = ""
    classes: Counter[str] = field(default_factory=Counter)  # images by label, as text for JSON's sake
    kinds: Counter[str] = field(default_factory=Counter)  # images by what they were
    resized: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)
    unreadable: int = 0  # of the rejected: those worth another try


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[Path]:
    """Context: `out` is this process's alone. Yields its state folder; what came to nothing leaves nothing behind."""
    there = out.is_dir()
    state = out / STATE
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"out={out}: another prepare is at work there; wait for it, or give another out=") from None
        for part in (*state.glob("*.part"), *out.glob(".*.part")):  # of processes that were killed
            part.unlink(missing_ok=True)
        try:
            yield state
        finally:
            if (out / manifest.NAME).exists() or not (state / SETTINGS).exists():
                shutil.rmtree(state, ignore_errors=True)
                if not there:
                    with contextlib.suppress(OSError):
                        out.rmdir()


def settings(out: Path) -> dict[str, Any] | None:
    """What a half-made folder is made of, None if nothing was begun."""
    try:
        noted: dict[str, Any] = json.loads((out / STATE / SETTINGS).read_bytes())
        if not all(isinstance(noted[part], kind) for part, kind in NOTED.items()):
            raise ValueError("a part of it is of another type")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"out={out}: {STATE}/{SETTINGS} cannot be read ({error}); delete that folder, or give another"
        ) from error
    return noted


def begin(out: Path, content: dict[str, Any]) -> None:
    """Note down what the folder is made of."""
    with files.atomic_write(out / STATE / SETTINGS) as file:
        file.write(json.dumps(content).encode())


def path(out: Path, file: str) -> Path:
    """Where a finished shard is noted down."""
    return out / STATE / f"{file.rpartition('/')[2]}.json"


def keep(out: Path, shard: Shard) -> None:
    """Note down a finished shard."""
    with files.atomic_write(path(out, shard.file)) as file:
        file.write(json.dumps(vars(shard)).encode())


def finished(out: Path, file: str) -> Shard | None:
    """A shard that was noted down, if it still stands."""
    try:
        noted = json.loads(path(out, file).read_bytes())
        shard = Shard(**{**noted, "classes": Counter(noted["classes"]), "kinds": Counter(noted["kinds"])})
        agrees = shard.file == file and shard.images == shard.classes.total() == shard.kinds.total()
        return shard if agrees and (out / file).stat().st_size == shard.bytes else None
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        return None
