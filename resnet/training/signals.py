"""Signals in a training: stop after the current step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import tensorflow as tf

from resnet.cli import STOPPING


class Signals:
    """Context: each signal of STOPPING sets `stop`; a second SIGINT raises KeyboardInterrupt. An ignored one stays ignored.

    `on_stop` is called in a thread at once, even while the main thread waits in TensorFlow, where no handler in Python runs.
    """

    def __init__(self, on_stop: Callable[[], object] = bool) -> None:
        self.on_stop, self.stop = on_stop, False
        self.previous_flag: tf.Tensor | None = None  # summed over the ranks by the last graph call but one
        self.handlers: dict[int, Any] = {}
        self.wakeup, self.previous_wakeup = -1, -1  # file descriptors

    def __enter__(self) -> Signals:
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.handlers[number] = signal.signal(number, self.receive)
        arrivals, self.wakeup = os.pipe()
        os.set_blocking(self.wakeup, False)
        self.previous_wakeup = signal.set_wakeup_fd(self.wakeup, warn_on_full_buffer=False)
        threading.Thread(target=self.listen, args=(arrivals,), daemon=True, name="signals").start()
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.previous_wakeup)
        os.close(self.wakeup)  # ends the thread

    def listen(self, arrivals: int) -> None:
        """The thread. Python's own handler writes a byte for each signal, its number."""
        with os.fdopen(arrivals, "rb", buffering=0) as pipe:
            while numbers := pipe.read(64):
                if self.handlers.keys() & set(numbers):
                    self.on_stop()

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
