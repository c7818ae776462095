"""<out>/metrics.jsonl: a JSON object a line, with `step`, `time_ms` and metrics by name. Its writer and its one reader."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from resnet import files

FILE = "metrics.jsonl"
TAIL = 1 << 16  # bytes, at least as many as the longest line
LIMIT = 1 << 30  # bytes that are read; 450,000 steps, each logged, have 0.1 GB


def read(path: Path) -> dict[str, dict[int, float]]:
    """metric -> {step: value}, steps rising, of a metrics.jsonl.

    Of a step that was logged twice the last value counts, and what an abandoned branch logged after the checkpoint that the run
    resumed from is dropped. Torn lines, which kills and power cuts leave, are skipped.
    """
    metrics: dict[str, dict[int, float]] = {}
    with files.open_bytes(path, LIMIT) as file:
        for line in iter(lambda: file.readline(TAIL), b""):
            step, _time, values = parse(line) or (0, 0, {})
            for name, value in values.items():
                add_point(metrics.setdefault(name, {}), step, value)
    return metrics


def lines(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """(line, position after it) of the complete lines from the file's position on; one longer than TAIL comes in pieces."""
    position = file.tell()
    while (line := file.readline(TAIL)).endswith(b"\n") or len(line) == TAIL:
        position += len(line)
        yield line, position


def parse(line: bytes) -> tuple[int, int, dict[str, float]] | None:
    """(step, time in ms, finite numbers by metric) of a line; None for a torn one."""
    try:
        values = files.parse_json(line)
        step, time_ms = values.pop("step"), values.pop("time_ms", 0)
        numbers = {name: float(value) for name, value in values.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(step, int) or not isinstance(time_ms, int):
        return None
    return step, time_ms, {name: number for name, number in numbers.items() if math.isfinite(number)}


def add_point(curve: dict[int, float], step: int, value: float) -> None:
    """Append to a curve; of the points at or after this step a run that went back to a checkpoint has left none."""
    while curve and next(reversed(curve)) >= step:
        curve.popitem()
    curve[step] = value


class MetricsFile:
    """Appends lines. Each is in the file when append() returns; what a full disk refuses waits in memory, and is written first.

    The file always is a beginning of the lines that were appended. Not safe to use from several threads at once.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file cannot be opened."""
        self.path, self.closed, self.error = path, False, ""
        self.file = files.regular(str(path), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.pending = b"\n" if self.torn_bytes() else b""  # ends a line that a kill tore

    def append(self, line: str) -> None:
        """Append a line, if there is room. The first that finds none is reported on stderr."""
        if self.closed:
            return
        self.pending += line.encode() + b"\n"
        before, self.error = self.error, self.write()
        if self.error and not before:
            with contextlib.suppress(OSError):  # stderr may be on the same disk
                note = "lines that cannot be written are kept, and written when they can be"
                print(f"{self.path}: {self.error}; {note}", file=sys.stderr, flush=True)

    def write(self) -> str:
        """Write the pending lines as far as possible; the error that stopped it, or nothing."""
        try:
            while self.pending:
                self.pending = self.pending[os.write(self.file, self.pending) :]
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def torn_bytes(self) -> int:
        """How many bytes follow the last complete line."""
        size = os.fstat(self.file).st_size
        tail = os.pread(self.file, TAIL, max(0, size - TAIL))
        return len(tail) - (tail.rfind(b"\n") + 1)

    def close(self) -> str | None:
        """Write the pending lines. If that fails, cut the file after its last complete line and return the error."""
        if self.closed:
            return None
        error, lost = self.write(), self.pending.count(b"\n")
        if error:
            os.ftruncate(self.file, os.fstat(self.file).st_size - self.torn_bytes())
        os.close(self.file)
        self.closed = True
        return f"{self.path}: {error}; its last lines are missing, {lost} in all" if error else None
