"""How far a long piece of work has come: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

REDRAWN_S, LINE_S = 0.2, 10.0  # between redraws, and between lines


class Bar:
    """Context: shows `done()` of `total` of a `what` until it is left. Looks by itself, so the work need not call it."""

    def __init__(
        self, what: str, total: int, done: Callable[[], int], already: int = 0, line_s: float = LINE_S
    ) -> None:
        self.what, self.total, self.already, self.line_s = what, total, already, line_s
        self.first, self.done, self.began = done(), done, time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.live if sys.stdout.isatty() else self.lines, daemon=True)

    def __enter__(self) -> Bar:
        self.thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.ended.set()
        self.thread.join()

    def now(self) -> int:
        """How many are done, those of an earlier call among them."""
        return min(self.already + self.done() - self.first, self.total)

    def rate(self) -> float:
        """Done in a second, since this began."""
        return (self.done() - self.first) / max(time.monotonic() - self.began, 1e-9)

    def lines(self) -> None:
        """A line every `line_s` seconds."""
        while not self.ended.wait(self.line_s):
            now, rate = self.now(), self.rate()
            left = clock((self.total - now) / rate) if rate else "?"
            print(f"{now:,} of {self.total:,} {self.what}, {rate:,.0f} a second, left {left}", flush=True)

    def live(self) -> None:
        """One line, redrawn."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns: list[Any] = [
            BarColumn(None),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task(self.what, total=self.total, completed=self.now())
            while not self.ended.wait(REDRAWN_S):
                told = f"{self.what}  {self.rate():,.0f}/s"
                progress.update(task, completed=self.now(), description=told)


def clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
