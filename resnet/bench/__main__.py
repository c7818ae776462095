"""`python -m resnet.bench COMMAND`: both sides measured in one run, interleaved, and their ratio.

Absolute figures belong to one machine on one day; ratios travel.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet import UserError, cli
from resnet.bench import accuracy, everything, logged, result, scaling, soak, start, step, tracking, train
from resnet.bench import input as reading

COMMANDS: dict[str, tuple[Any, Any]] = {
    "step": (step.Step, step.measure),
    "input": (reading.Input, reading.measure),
    "train": (train.Train, train.measure),
    "accuracy": (accuracy.Accuracy, accuracy.measure),
    "scaling": (scaling.Scaling, scaling.measure),
    "start": (start.Start, start.measure),
    "track": (tracking.Tracking, tracking.measure),
    "soak": (soak.Soak, soak.measure),
    "all": (everything.Everything, everything.measure),
}


def help_text() -> str:
    """Every command and knob, a line each."""
    told = ["Measure this suite beside something else: python -m resnet.bench COMMAND knob=value ..."]
    for command, (kind, _) in COMMANDS.items():
        told += ["", f"{command:<8} {kind.__doc__}", *cli.lines(kind, list(cli.hints(kind)))]
    return "\n".join(told)


def measure(command: str, words: Sequence[str]) -> None:
    """Measure, print what came of it, and keep it where out= and track= say. Raises UserError."""
    if command not in COMMANDS:
        raise UserError(f"{command}: no such benchmark; {cli.nearest(command, list(COMMANDS))}")
    kind, work = COMMANDS[command]
    given = {"dir" if name == "data.dir" else name: text for name, text in cli.split(words).items()}  # as in training
    asked = cli.parse(kind, given, f"resnet.bench {command}")
    found = work(asked)
    if isinstance(found, result.Outcome):
        keep(dataclasses.replace(found, command=shown(command, words)), command, asked)


def shown(command: str, words: Sequence[str]) -> str:
    """The command that measures this again; where its outcome went is no part of it."""
    told = [word for word in words if not word.startswith(("out=", "track="))]
    return shlex.join(["python", "-m", "resnet.bench", command, *told])


def keep(found: result.Outcome, command: str, asked: Any) -> None:
    """Print it first: what was measured is not to be lost to a full disk."""
    print(found.markdown())
    if asked.out:
        for path in result.write(found, Path(asked.out), command):
            print(f"{path} written", file=sys.stderr)
    if asked.track == "mlflow":
        print(f"MLflow run {logged.log(found, command, dataclasses.asdict(asked))}", file=sys.stderr)


def main() -> int:
    """Exit status."""
    command, *rest = sys.argv[1:] or ["--help"]
    if {"--help", "-h"} & {command, *rest}:
        print(help_text())
        return 0
    try:
        measure(command, rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
