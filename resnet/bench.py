"""`python -m resnet.bench COMMAND`: both sides measured in one run, interleaved, and their ratio.

Absolute figures belong to one machine on one day; ratios travel.
"""

from __future__ import annotations

import sys
from typing import Any

from resnet import UserError, knobs
from resnet.benchmarks import accuracy, scaling, soak, tracking
from resnet.benchmarks import input as reading

COMMANDS: dict[str, tuple[Any, Any]] = {
    "input": (reading.Input, reading.measure),
    "accuracy": (accuracy.Accuracy, accuracy.measure),
    "scaling": (scaling.Scaling, scaling.measure),
    "track": (tracking.Tracking, tracking.measure),
    "soak": (soak.Soak, soak.measure),
}


def help_text() -> str:
    """Every command and knob, a line each."""
    told = ["Measure this suite beside something else: python -m resnet.bench COMMAND knob=value ..."]
    for command, (kind, _) in COMMANDS.items():
        told += ["", f"{command:<8} {kind.__doc__}", *knobs.lines(kind, list(knobs.hints(kind)))]
    return "\n".join(told)


def main() -> int:
    """Exit status."""
    command, *rest = sys.argv[1:] or ["--help"]
    if {"--help", "-h"} & {command, *rest}:
        print(help_text())
        return 0
    try:
        if command not in COMMANDS:
            raise UserError(f"{command}: no such benchmark; {knobs.nearest(command, list(COMMANDS))}")
        kind, measure = COMMANDS[command]
        given = {
            "dir" if name == "data.dir" else name: text for name, text in knobs.split(rest).items()
        }  # as in training
        measure(knobs.parse(kind, given, f"resnet.bench {command}"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
