"""Optuna's journal file (JournalFileBackend's format), in which a search keeps its study.

Optuna's own backend appends to a line that a kill or a full disk cut short, cannot read the file from then on, and has a lock
that outlives a kill by 30 s.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from resnet import UserError, files

HEAD = b'{"op_code":'  # of every line
BLOCK = 1 << 16
LIMIT = 1 << 30  # bytes that are read; 10,000 jobs of 100 evaluations have 0.2 GB


class Journal:
    """A backend of optuna.storages.JournalStorage: an entry a line. Several processes may use one file."""

    def __init__(self, path: Path) -> None:
        """Raises OSError for a file that cannot be used, ValueError for one that is none of Optuna's."""
        self.path = path
        self.starts = [0]  # of each line that was read, and of the one after them
        with open(path, "a+b", opener=files.regular) as file:
            file.seek(0)
            head = file.read(len(HEAD))
        if not HEAD.startswith(head):
            raise ValueError("it is not Optuna's")

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The entries from this one on; a line without an end is none yet."""
        start = self.starts[log_number_from]
        with files.open_bytes(self.path, LIMIT) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            file.seek(start)
            content = file.read()
        for number, line in enumerate(content.split(b"\n")[:-1], log_number_from + 1):
            start += len(line) + 1
            if number == len(self.starts):
                self.starts.append(start)
            yield files.parse_json(line)

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Append entries, all or none. Raises UserError if there is no room."""
        rest = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with open(self.path, "r+b", buffering=0, opener=files.regular) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the kernel unlocks it when the process dies
            end = whole_lines(file.fileno())
            os.ftruncate(file.fileno(), end)
            file.seek(end)
            try:
                while rest:
                    rest = rest[os.write(file.fileno(), rest) :]
                os.fsync(file.fileno())
            except OSError as error:
                os.ftruncate(file.fileno(), end)
                raise UserError(f"{self.path}: cannot be written ({error.strerror}); make room, and resume") from error


def whole_lines(file: int) -> int:
    """Size of a file without a last line that has no end."""
    size = os.fstat(file).st_size
    for end in range(size, 0, -BLOCK):
        start = max(0, end - BLOCK)
        block = os.pread(file, end - start, start)
        if b"\n" in block:
            return start + block.rindex(b"\n") + 1
    return 0
