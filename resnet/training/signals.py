"""What a signal asks of a run: to stop after the step it is at, saved; a second one, to end at once."""

from __future__ import annotations

import signal
from typing import Any


class Signals:
    """Context: SIGTERM and the first SIGINT set `stop`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.stop = False
        self.told: Any = None  # the flag that came back from the graph call before this one
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def agreed(self, flag: Any, ranks: int) -> bool:
        """Whether to stop now, the same on every rank: a call late, because waiting for this call's flag would stall a device."""
        before, self.told = self.told, flag
        return self.stop if ranks == 1 else before is not None and bool(before > 0)

    def receive(self, number: int, _frame: object) -> None:
        """Only set the flag: the loop acts on it between steps."""
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = True
