"""A TensorBoard profile of some steps of a run, and the time that each kind of operation took in them: <out>/profile."""

from __future__ import annotations

import collections
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

FOLDER, TABLE = "profile", "operations.csv"
CALLS = {
    "PartitionedCall",
    "StatefulPartitionedCall",
    "While",
    "StatelessWhile",
    "If",
    "StatelessIf",
}  # of others' time
OPERATION = re.compile(r"[^:\s]+:(\w+)")  # how an event on the host names an operation: its name and its kind
# On the host an event of this name is a function that XLA compiled, too; its scope says which (elementwise.in_one_pass).
LAUNCH, COMPILED = "ExecutorState::ProcessAsync::Start", re.compile(r"(?:.*/)?(xla_[a-z_]*[a-z])(?:_\d+)?/\w+")


@dataclass(frozen=True)
class Row:
    """What one kind of operation took: `place` is a device by TensorFlow's name, times are of a step."""

    place: str
    operation: str
    calls: float
    ms: float
    share: float  # of all that was done at this place


class Profiler:
    """Of the steps in `asked` ([first, last], counted from 1), in whole graph calls; of none if that is None."""

    def __init__(self, asked: Sequence[int] | None, out: Path) -> None:
        self.asked, self.folder = asked, out / FOLDER
        self.since: int | None = None  # updates before the first profiled one

    def before(self, start: int, end: int) -> None:
        """The steps start+1 .. end come next."""
        if self.asked and self.since is None and end >= self.asked[0] and start < self.asked[1]:
            self.since = start
            tf.profiler.experimental.start(str(self.folder))

    def after(self, done: int, losses: Any) -> list[Row]:
        """They were handed to the device; the table, if they were the last. Waits for the device then."""
        if self.since is None or not self.asked or done < self.asked[1]:
            return []
        losses.numpy()
        return self.end(done)

    def end(self, done: int) -> list[Row]:
        """Profile no more: write the table, and return it; nothing where nothing is being profiled."""
        if self.since is None:
            return []
        steps, self.since, self.asked = done - self.since, None, None
        tf.profiler.experimental.stop()
        newest = max(self.folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        rows = table(durations(newest.read_bytes()), max(steps, 1))
        write(self.folder / TABLE, rows)
        return rows


def durations(profile: bytes) -> Iterator[tuple[str, str, float]]:
    """(place, operation, seconds) of everything that a profile (an XSpace of TensorFlow's) saw computed.

    On the host operations have their kind, on other devices kernels have their names.
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
    """The kind of operation that an event of a profile is; None if it is something else."""
    name = str(plane.event_metadata[event.metadata_id].name)
    if not plane.name.startswith("/host"):
        return name
    if name == LAUNCH:
        names = plane.stat_metadata
        told = (names[stat.ref_value].name for stat in event.stats if names[stat.metadata_id].name == "name")
        found = COMPILED.fullmatch(next(told, ""))
    else:
        found = OPERATION.fullmatch(name)
    return found[1] if found and found[1] not in CALLS else None


def table(took: Iterable[tuple[str, str, float]], steps: int) -> list[Row]:
    """The times of `steps` steps by place and operation, the longest first."""
    sums: dict[tuple[str, str], float] = collections.defaultdict(float)
    calls: collections.Counter[tuple[str, str]] = collections.Counter()
    whole: dict[str, float] = collections.defaultdict(float)
    for place, operation, seconds in took:
        sums[place, operation] += seconds
        calls[place, operation] += 1
        whole[place] += seconds
    rows = [
        Row(place, operation, calls[place, operation] / steps, 1000 * seconds / steps, seconds / (whole[place] or 1))
        for (place, operation), seconds in sums.items()
    ]
    return sorted(rows, key=lambda row: -row.ms)


def write(path: Path, rows: Sequence[Row]) -> None:
    """As CSV, a row each."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["place", "operation", "calls a step", "ms a step", "share"])
        lines.writerows(
            [row.place, row.operation, f"{row.calls:g}", f"{row.ms:.3f}", f"{row.share:.4f}"] for row in rows
        )


def as_line(rows: Sequence[Row], folder: Path) -> str:
    """The longest operations in one line."""
    longest = ", ".join(f"{row.operation} {100 * row.share:.0f} %" for row in rows[:5])
    return f"profiled: {longest}; {folder / TABLE}, and tensorboard --logdir {folder}"
