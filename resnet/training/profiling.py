"""A TensorBoard profile of some steps of a run, and the time of each kind of operation in them: <out>/profile."""

from __future__ import annotations

import collections
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from resnet import files

FOLDER, TABLE = "profile", "operations.csv"
# Operations that call others, and contain their time.
CALLS = {"PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile", "If", "StatelessIf"}
OPERATION = re.compile(r"[^:\s]+:(\w+)")  # an operation's event on the host: name and kind
# On the host an event LAUNCH is a function compiled by XLA; its scope says which (model/relu.py: xla_fused).
LAUNCH, COMPILED = "ExecutorState::ProcessAsync::Start", re.compile(r"(?:.*/)?(xla_[a-z_]*[a-z])(?:_\d+)?/\w+")


@dataclass(frozen=True)
class Row:
    """The time of one kind of operation: `place` is a device by TensorFlow's name, times are per step."""

    place: str
    operation: str
    calls: float
    ms: float
    share: float  # of the time at this place


class Profiler:
    """Profiles the graph calls with the steps [first, last], counted from 1; nothing if they are None."""

    def __init__(self, steps: Sequence[int] | None, out: Path) -> None:
        self.steps, self.folder = steps, out / FOLDER
        self.since: int | None = None  # updates before the first profiled one

    def before(self, start: int, end: int) -> None:
        """Call it before the graph call of the steps start+1 .. end."""
        if self.steps and self.since is None and end >= self.steps[0] and start < self.steps[1]:
            self.since = start
            tf.profiler.experimental.start(str(self.folder))

    def after(self, done: int, losses: tf.Tensor) -> list[Row]:
        """Call it after that; returns the table if the last step is done. Waits for the device then."""
        if self.since is None or not self.steps or done < self.steps[1]:
            return []
        losses.numpy()
        return self.end(done)

    def end(self, done: int) -> list[Row]:
        """Stop profiling: write the table and return it; empty if nothing was being profiled."""
        if self.since is None:
            return []
        count, self.since, self.steps = done - self.since, None, None
        tf.profiler.experimental.stop()
        newest = max(self.folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        rows = table(durations(newest.read_bytes()), max(count, 1))
        write(self.folder / TABLE, rows)
        return rows


def durations(profile: bytes) -> Iterator[tuple[str, str, float]]:
    """(place, operation, seconds) of everything in a profile (TensorFlow's XSpace).

    On the host operations go by their kind, on other devices kernels by their names.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    space.ParseFromString(profile)
    for plane in space.planes:
        if not plane.name.startswith(("/host:CPU", "/device:")):
            continue
        for line in plane.lines:
            for event in line.events:
                if name := operation(plane, event):
                    yield plane.name, name, event.duration_ps / 1e12


def operation(plane: Any, event: Any) -> str | None:
    """The kind of operation of an event of a profile; None if it is something else."""
    name = str(plane.event_metadata[event.metadata_id].name)
    if not plane.name.startswith("/host"):
        return name
    if name == LAUNCH:
        names = plane.stat_metadata
        scopes = (names[stat.ref_value].name for stat in event.stats if names[stat.metadata_id].name == "name")
        match = COMPILED.fullmatch(next(scopes, ""))
    else:
        match = OPERATION.fullmatch(name)
    return match[1] if match and match[1] not in CALLS else None


def table(events: Iterable[tuple[str, str, float]], steps: int) -> list[Row]:
    """Times of `steps` steps by place and operation, the longest first."""
    sums: dict[tuple[str, str], float] = collections.defaultdict(float)
    calls: collections.Counter[tuple[str, str]] = collections.Counter()
    whole: dict[str, float] = collections.defaultdict(float)
    for place, operation, seconds in events:
        sums[place, operation] += seconds
        calls[place, operation] += 1
        whole[place] += seconds
    rows = [
        Row(place, operation, calls[place, operation] / steps, 1000 * seconds / steps, seconds / (whole[place] or 1))
        for (place, operation), seconds in sums.items()
    ]
    return sorted(rows, key=lambda row: -row.ms)


def write(path: Path, rows: Sequence[Row]) -> None:
    with open(path, "w", newline="", opener=files.regular) as file:
        lines = csv.writer(file)
        lines.writerow(["place", "operation", "calls a step", "ms a step", "share"])
        lines.writerows(
            [row.place, row.operation, f"{row.calls:g}", f"{row.ms:.3f}", f"{row.share:.4f}"] for row in rows
        )


def as_line(rows: Sequence[Row], folder: Path) -> str:
    longest = ", ".join(f"{row.operation} {100 * row.share:.0f} %" for row in rows[:5])
    return f"profiled: {longest}; {folder / TABLE}, and tensorboard --logdir {folder}"
