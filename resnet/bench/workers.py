"""Processes that take turns: each side of a benchmark has memory, threads and graphs of its own, and one works at a time.

A child reports its facts when it is warm, then answers each turn with its seconds, one JSON object a line; both go over a socket,
its stdin. Another Python may run it, so this module imports only the standard library.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet import INHERITED, UserError

ROOT = Path(__file__).resolve().parents[2]
MISSING = 77  # exit status of a child that lacks what it should measure; its last line says what
# sys.path without the working directory. Another Python finds this project last, so that its own packages come first.
BOOTSTRAP = """import runpy, sys
sys.path[:] = [path for path in sys.path if path]
sys.path.insert(int(sys.argv.pop(1)), sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)"""
Work = Callable[[int], float]  # steps -> their seconds
Sides = tuple[
    dict[str, Any], Mapping[str, Work]
]  # a child's facts, and the work of its sides; of the only one it is ""


class Unavailable(UserError):
    """A side cannot be measured here, because something is not installed."""


class Wrong(Exception):
    """What was timed is not what the row says; the message says what it was."""


class Child:
    """Context of a process that runs resnet.bench.<module> with `words`: warm when it begins, killed at its end.

    Raises Unavailable, or UserError with the last line of the process, if it fails.
    """

    def __init__(
        self, module: str, words: Sequence[str], python: str = sys.executable, cores: Collection[int] = ()
    ) -> None:
        own = python == sys.executable
        position = "0" if own else "999"
        paths = () if own else ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__")  # of packages for this Python
        self.env = {name: value for name, value in INHERITED.items() if name not in paths} | {"PYTHONUNBUFFERED": "1"}
        self.name = " ".join([module, *words[:1]])
        self.command = [python, "-c", BOOTSTRAP, position, str(ROOT), f"resnet.bench.{module}", *words]
        self.cores = cores
        self.facts: dict[str, Any] = {}  # what the child reports of itself; after a turn also `seconds` and `peak_mb`

    def __enter__(self) -> Child:
        with contextlib.ExitStack() as stack:
            self.output = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            self.channel, theirs = map(stack.enter_context, socket.socketpair())
            self.answers = stack.enter_context(self.channel.makefile())
            try:
                self.process = subprocess.Popen(
                    self.command, stdin=theirs.fileno(), stdout=self.output, stderr=self.output, env=self.env
                )
            except OSError as error:
                raise Unavailable(f"{self.command[0]}: cannot be run ({error.strerror})") from error
            stack.callback(self.process.wait)
            stack.callback(self.process.kill)
            theirs.close()
            if self.cores:
                os.sched_setaffinity(self.process.pid, self.cores)  # long before TensorFlow counts them
            self.facts = self.answer()
            self.close = stack.pop_all().close
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def step_time(self, steps: int, side: str = "") -> float:
        """Seconds a step in a turn of so many, of one side where the child has several."""
        with contextlib.suppress(OSError):  # answer() says why
            self.channel.sendall(f"{steps} {side}\n".encode())
        self.facts |= self.answer()
        return float(self.facts["seconds"]) / steps

    def answer(self) -> dict[str, Any]:
        """The next line that it answers."""
        with contextlib.suppress(ConnectionResetError):  # it ended before it read its turn
            if line := self.answers.readline():
                return dict(json.loads(line))
        status = self.process.wait()
        self.output.seek(0)
        last = (self.output.read().strip().splitlines() or [f"exit status {status} without a message"])[-1]
        raise Unavailable(last) if status == MISSING else UserError(f"{self.name} failed: {last}")


# -------------------------------------------------------------------------------------------------------------- the child
def serve(builders: Mapping[str, Callable[..., Sides]]) -> None:
    """Be a child: build what the first argument names, do a step of each side, then take turns until the parent has gone.

    `work` may change the facts.
    """
    name, *words = sys.argv[1:]

    def turn(side: str, steps: int) -> float:
        try:
            return sides[side](steps)
        except Wrong as wrong:
            print(f"{side or name}: {wrong}", file=sys.__stderr__, flush=True)
            os._exit(1)  # whatever the side has left running

    facts, sides = builders[name](*words)
    for side in sides:
        turn(side, 1)
    answer(facts)
    for line in sys.stdin:
        count, _, side = line.rstrip("\n").partition(" ")
        seconds = turn(side, int(count))
        status = Path("/proc/self/status").read_text()  # getrusage() counts the parent's memory at the fork as well
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6  # MB of 1e6 bytes
        answer({**facts, "seconds": seconds, "peak_mb": peak})


def answer(content: dict[str, Any]) -> None:
    os.write(sys.stdin.fileno(), f"{json.dumps(content)}\n".encode())


def require(ok: bool, reason: str) -> None:
    if not ok:
        raise Wrong(reason)


def moving(checksum: Callable[[], float]) -> Callable[[], None]:
    """A check that a number, such as the sum of the weights, is finite and not what it was at the check before."""
    before = [checksum()]

    def check() -> None:
        before.append(checksum())
        require(math.isfinite(before[-1]), "the weights are not finite")
        require(before[-1] != before.pop(0), "the weights did not change")

    return check


def timed(
    step: Callable[[], Any],
    wait: Callable[[Any], object] = lambda _last: None,
    check: Callable[[Any], object] = lambda _last: None,
) -> Work:
    """Steps, after one to warm up. `wait` is called with what the last one returns, and `check` when the clock has stopped."""

    def work(steps: int) -> float:
        step()
        began = time.perf_counter()
        for _ in range(steps):
            last = step()
        wait(last)
        seconds = time.perf_counter() - began
        check(last)
        return seconds

    return work
