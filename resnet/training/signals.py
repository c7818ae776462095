"""SIGTERM and SIGINT in a training: stop after the current step, with a checkpoint."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import tensorflow as tf


class Signals:
    """Context: SIGTERM and the first SIGINT set `stop`; a second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.stop = False
        self.previous_flag: tf.Tensor | None = None  # summed over the ranks by the last graph call but one
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.handlers[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    @property
    def flag(self) -> tf.Tensor:
        """`stop` as a float32 scalar tensor."""
        return tf.constant(float(self.stop))

    def agree(self, flag: tf.Tensor, ranks: int) -> bool:
        """Whether to stop now, the same on every rank; one call late, or waiting for this call's `flag` would stall a device."""
        before, self.previous_flag = self.previous_flag, flag
        return self.stop if ranks == 1 else before is not None and bool(before > 0)

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """The handler: the loop acts on `stop` between steps."""
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = True
