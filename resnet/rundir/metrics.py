"""A file of lines that a run appends to, and that a full disk neither tears nor ends."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

TAIL = 1 << 16  # bytes, at least as many as the longest line


class Lines:
    """Every line is in the file when add() returns; what could not be written is kept in memory and goes before the next one.

    The file always is a beginning of the lines that were added. Not safe to use from several threads at once.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file cannot be opened."""
        self.path, self.closed, self.trouble = path, False, ""
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.waiting = b"\n" if self.torn() else b""  # ends a line that a kill tore

    def add(self, line: str) -> None:
        """Append a line, if there is room. The first that finds none says so on stderr."""
        if self.closed:
            return
        self.waiting += line.encode() + b"\n"
        before, self.trouble = self.trouble, self.write()
        if self.trouble and not before:
            with contextlib.suppress(OSError):  # which may lie on the same disk
                told = "lines that cannot be written are kept, and written when they can be"
                print(f"{self.path}: {self.trouble}; {told}", file=sys.stderr, flush=True)

    def write(self) -> str:
        """Write what waits, as far as that goes; why it went no further, if so."""
        try:
            while self.waiting:
                self.waiting = self.waiting[os.write(self.file, self.waiting) :]
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def torn(self) -> int:
        """How many bytes stand behind the last whole line."""
        size = os.fstat(self.file).st_size
        tail = os.pread(self.file, TAIL, max(0, size - TAIL))
        return len(tail) - (tail.rfind(b"\n") + 1)

    def close(self) -> str | None:
        """Write what waits; if that cannot be, end the file with its last whole line, and tell."""
        if self.closed:
            return None
        trouble, lost = self.write(), self.waiting.count(b"\n")
        if trouble:
            os.ftruncate(self.file, os.fstat(self.file).st_size - self.torn())
        os.close(self.file)
        self.closed = True
        return f"{self.path}: {trouble}; its last lines are missing, {lost} in all" if trouble else None
