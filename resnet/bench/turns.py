"""Processes that take turns: each is a side with memory, threads and graphs of its own, and only one of them works at a time.

A child says `ready` once it is warm, then does as many steps as it is told to and answers with their seconds. It answers on
its standard output, a line of JSON each, so whatever else it prints goes to standard error. Nothing here but Python's own: a
child may be run by another interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from resnet import UserError

ROOT = Path(__file__).resolve().parents[2]
NOT_HERE = 77  # the exit status of a child that lacks what it is to measure; its last line says what
GO = """import runpy, sys
place, own, name = sys.argv[1:4]
sys.argv[1:4] = []
sys.path[:] = [path for path in sys.path if path]  # what lies in the working folder is nobody's package
sys.path.insert(0 if own else len(sys.path), place)
runpy.run_module(name, run_name="__main__", alter_sys=True)"""


class Lacking(UserError):
    """A side that cannot be measured here, because something is not installed."""


# ------------------------------------------------------------------------------------------------------------- the parent
class Child:
    """A process that runs the module resnet.benchmarks.<name> with `words`; a context, at whose end nothing of it is left."""

    def __init__(self, name: str, words: Sequence[str], python: str = sys.executable, cores: set[int] | None = None):
        """Another interpreter than this one finds our packages last of all, so that its own stay its own."""
        self.name = name
        own = "1" if python == sys.executable else ""
        self.command = [python, "-c", GO, str(ROOT), own, f"resnet.benchmarks.{name}", *words]
        self.cores = cores
        self.facts: dict[str, Any] = {}  # what it says of itself; after a turn `peak_mb` too

    def __enter__(self) -> Child:
        self.said = tempfile.TemporaryFile("w+", errors="replace")  # closed with the process
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                self.command, stdin=pipe, stdout=pipe, stderr=self.said, text=True, env=environment()
            )
        except OSError as error:
            self.said.close()
            raise Lacking(f"{self.command[0]}: cannot be run ({error.strerror})") from error
        if self.cores:
            os.sched_setaffinity(self.process.pid, self.cores)  # long before it counts them
        return self

    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):  # of a turn it never heard of
            self.process.communicate()
        self.said.close()

    def wait(self) -> Child:
        """Until it is warm. Raises Lacking, or UserError with its last line if it fails."""
        self.facts = self.heard()
        return self

    def turn(self, steps: int) -> float:
        """Have it do so many steps; the seconds they took. Raises UserError with its last line if it fails."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # heard() tells why
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        answer = self.heard()
        self.facts |= answer
        return float(answer["seconds"])

    def pace(self, steps: int) -> float:
        """The same; seconds a step."""
        return self.turn(steps) / steps

    def heard(self) -> dict[str, Any]:
        """Its next answer."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line:
            return dict(json.loads(line))
        status = self.process.wait()
        self.said.seek(0)
        last = (self.said.read().strip().splitlines() or [f"exit status {status}, and not a word"])[-1]
        raise (Lacking(last) if status == NOT_HERE else UserError(f"{self.name} failed: {last}"))


@contextlib.contextmanager
def entered(*sides: tuple[str, Child]) -> Iterator[dict[str, Child]]:
    """Sides by name, warmed up one after the other; nothing of them is left at the end."""
    with contextlib.ExitStack() as stack:
        children: dict[str, Child] = {}
        for name, child in sides:
            print(f"starting {name}", file=sys.stderr, flush=True)
            children[name] = stack.enter_context(child).wait()
        yield children


def environment() -> dict[str, str]:
    """Of a child: what it writes of its own must not wait in a buffer, and compiled code goes nowhere it would be left."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


# -------------------------------------------------------------------------------------------------------------- the child
def take_turns(facts: dict[str, Any], work: Callable[[int], float]) -> None:
    """Be a child that is warm: do `work` (steps -> seconds) whenever told to, until the parent has gone.

    `work` may change `facts`, which go with every answer.
    """
    say(facts)
    for line in sys.stdin:
        seconds = work(int(line))
        say({**facts, "seconds": seconds, "peak_mb": peak_mb()})


def say(what: dict[str, Any]) -> None:
    """An answer, on what was standard output before `quiet`."""
    with os.fdopen(os.dup(ANSWERS[0] if ANSWERS else 1), "w") as file:
        file.write(json.dumps(what) + "\n")


ANSWERS: list[int] = []


def quiet() -> None:
    """From here on whatever the process prints goes to standard error; answers still go where they should."""
    if not ANSWERS:
        ANSWERS.append(os.dup(1))
        os.dup2(2, 1)


def absent(what: str) -> None:
    """End a child that cannot measure anything here."""
    print(what, file=sys.stderr)
    sys.exit(NOT_HERE)


def peak_mb() -> float:
    """The most memory that this process ever held, in MB of 1e6 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
