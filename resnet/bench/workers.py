"""Processes that take turns: each side of a benchmark has memory, threads and graphs of its own, and one works at a time.

A child reports its facts when it is warm, then answers each turn with its seconds, one JSON object a line. Another Python may run
it, so this module imports only the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet import UserError

ROOT = Path(__file__).resolve().parents[2]
MISSING = 77  # exit status of a child that lacks what it should measure; its last line says what
ANSWERS = "RESNET_BENCH_ANSWERS"  # environment variable: the file descriptor for answers
# sys.path without the working directory. Another Python finds this project last, so that its own packages come first.
BOOTSTRAP = """import runpy, sys
root, first, module = sys.argv[1:4]
sys.argv[1:4] = []
sys.path[:] = [path for path in sys.path if path]
sys.path.insert(0 if first else len(sys.path), root)
runpy.run_module(module, run_name="__main__", alter_sys=True)"""
Work = Callable[[int], float]  # steps -> their seconds


class Unavailable(UserError):
    """A side cannot be measured here, because something is not installed."""


class Child:
    """A process that runs resnet.bench.<module> with `words`. A context, which kills it at its end."""

    def __init__(
        self, module: str, words: Sequence[str], python: str = sys.executable, cores: set[int] | None = None
    ) -> None:
        first = "1" if python == sys.executable else ""
        self.name = " ".join([module, *words[:1]])
        self.command = [python, "-c", BOOTSTRAP, str(ROOT), first, f"resnet.bench.{module}", *words]
        self.cores = cores
        self.facts: dict[str, Any] = {}  # what the child reports of itself; after a turn also `peak_mb`

    def __enter__(self) -> Child:
        self.output = tempfile.TemporaryFile("w+", errors="replace")
        reading, writing = os.pipe()
        self.answers = os.fdopen(reading)
        try:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=self.output,
                stderr=self.output,
                text=True,
                pass_fds=[writing],
                env={**os.environ, "PYTHONUNBUFFERED": "1", ANSWERS: str(writing)},
            )
        except OSError as error:
            self.output.close()
            self.answers.close()
            raise Unavailable(f"{self.command[0]}: cannot be run ({error.strerror})") from error
        finally:
            os.close(writing)
        if self.cores:
            os.sched_setaffinity(self.process.pid, self.cores)  # long before TensorFlow counts them
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):  # of a turn that the child never read
            self.process.communicate()
        self.output.close()
        self.answers.close()

    def wait(self) -> Child:
        """Wait until it is warm. Raises Unavailable, or UserError with its last line if it fails."""
        self.facts = self.answer()
        return self

    def turn(self, steps: int, side: str = "") -> float:
        """Seconds of so many steps, of one side where the child has several. Raises UserError with its last line if it fails."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # answer() says why
            self.process.stdin.write(f"{steps} {side}\n")
            self.process.stdin.flush()
        answer = self.answer()
        self.facts |= answer
        return float(answer["seconds"])

    def step_time(self, steps: int, side: str = "") -> float:
        """Seconds a step, of a turn of so many."""
        return self.turn(steps, side) / steps

    def answer(self) -> dict[str, Any]:
        """The next line that it answers."""
        line = self.answers.readline()
        if line:
            return dict(json.loads(line))
        status = self.process.wait()
        self.output.seek(0)
        last = (self.output.read().strip().splitlines() or [f"exit status {status} without a message"])[-1]
        raise Unavailable(last) if status == MISSING else UserError(f"{self.name} failed: {last}")


@contextlib.contextmanager
def start(sides: Mapping[str, Child]) -> Iterator[Mapping[str, Child]]:
    """Start and warm up these children one after the other; kill them at the end."""
    with contextlib.ExitStack() as stack:
        for name, child in sides.items():
            print(f"starting {name}", file=sys.stderr, flush=True)
            stack.enter_context(child).wait()
        yield sides


# -------------------------------------------------------------------------------------------------------------- the child
def serve(builders: Mapping[str, Callable[..., tuple[dict[str, Any], Mapping[str, Work]]]]) -> None:
    """Be a child: build what the first argument names, do a step of each side, then take turns until the parent has gone.

    A builder returns (facts, {side: work}), the side "" where it is the only one. `work` may change the facts.
    """
    name, *words = sys.argv[1:]
    facts, sides = builders[name](*words)
    for work in sides.values():
        work(1)
    answer(facts)
    for line in sys.stdin:
        steps, _, side = line.rstrip("\n").partition(" ")
        seconds = sides[side](int(steps))
        answer({**facts, "seconds": seconds, "peak_mb": peak_mb()})


def answer(content: dict[str, Any]) -> None:
    """Send a line to the parent."""
    os.write(int(os.environ.get(ANSWERS, 1)), f"{json.dumps(content)}\n".encode())


def unavailable(what: str) -> None:
    """End a child that cannot measure anything here."""
    print(what, file=sys.stderr)
    sys.exit(MISSING)


def peak_mb() -> float:
    """The peak resident memory of this process, MB of 1e6 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
