"""`python -m resnet.bench COMMAND`: both sides measured in one run, interleaved, and their ratio.

Absolute figures belong to one machine on one day; ratios travel.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet import UserError, cli
from resnet.bench import input as reading
from resnet.bench import scaling, start, step, sweep, train
from resnet.bench.result import Knobs, Result
from resnet.bench.workers import Child

COMMANDS: dict[str, tuple[type[Knobs], Callable[[Any, Result], None]]] = {
    "step": (step.Step, step.measure),
    "input": (reading.Input, reading.measure),
    "train": (train.Train, train.measure),
    "scaling": (scaling.Scaling, scaling.measure),
    "start": (start.Start, start.measure),
    "sweep": (sweep.Sweep, sweep.measure),
}


def help_text() -> str:
    lines = ["Benchmark this suite against other implementations: python -m resnet.bench COMMAND knob=value ..."]
    for command, (kind, _) in COMMANDS.items():
        lines += ["", f"{command:<8} {kind.__doc__}", *cli.help_lines(kind, list(cli.hints(kind)))]
    return "\n".join(lines)


def measure(command: str, *words: str) -> None:
    """Measure, print the result, write it where out= says. Raises UserError.

    Interrupted, it does the same with the rounds that were complete, then raises SystemExit.
    """
    if command not in COMMANDS:
        raise UserError(f"{command}: no such benchmark; {cli.nearest(command, list(COMMANDS))}")
    kind, work = COMMANDS[command]
    values = {"dir" if name == "data.dir" else name: text for name, text in cli.split(words).items()}  # as in training
    knobs = cli.parse(kind, values, f"resnet.bench {command}")
    again = ["python", "-m", "resnet.bench", command, *(word for word in words if not word.startswith("out="))]
    result = Result(shlex.join(again))
    try:
        result.facts = machine()
        work(knobs, result)
    except KeyboardInterrupt:
        result.interrupted = True
        if not result.rows:
            print("interrupted before a round was complete; there is nothing to print", file=sys.stderr)
            sys.exit(cli.INTERRUPTED)
        result.notes.append("Interrupted: the rows above were complete, others are missing.")
    result.facts["load at the end"] = f"{os.getloadavg()[0]:.1f}"
    print(result.markdown())  # first: what was measured is not to be lost to a full disk
    if knobs.out:
        for path in result.write(Path(knobs.out), command):
            print(f"{path} written", file=sys.stderr)
    if result.interrupted:
        sys.exit(cli.INTERRUPTED)


def machine() -> dict[str, str]:
    """The machine and its software, from a child: this process never imports TensorFlow."""
    with Child("children", ["machine"]) as child:
        return child.facts


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    with cli.command(help_text()) as words:
        measure(*words)


if __name__ == "__main__":
    main()
