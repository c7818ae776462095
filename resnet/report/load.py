"""Trainings out of their folders: config.yaml, metrics.jsonl and, once they have ended, result.json."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from resnet import UserError
from resnet.report.run import CURVES, Curve, Training, number
from resnet.rundir import result
from resnet.track import store

OPEN = "finetune.lr_multipliers"  # whose keys are the user's: one setting, as in compose
ENDS = {"FAILED": "failed", "KILLED": "killed"}  # in the note of the MLflow run
DEPTH = 3  # folders below a given one in which runs are looked for: runs/<sweep>/<job>


def below(top: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folders of runs in `top`, itself included, 9 before 10."""
    if (top / "metrics.jsonl").is_file() and settings_of(top):  # a mere copy of config.yaml is no run
        yield top
    elif depth:
        children = [child for child in top.iterdir() if child.is_dir() and not child.name.startswith(".")]
        for child in sorted(children, key=natural):
            yield from below(child, depth - 1)


def natural(path: Path) -> list[Any]:
    """A key that sorts numbers in names by their value."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def trainings(top: Path) -> list[Training]:
    """Every training in `top`. Raises UserError if something there cannot be read."""
    try:
        return [
            training(out) for out in below(top) if ended(out).get("status") != "lr_find"
        ]  # a range test trains nothing
    except OSError as error:
        raise UserError(f"{error.filename or top}: cannot be read ({error.strerror})") from error


def training(out: Path) -> Training:
    """The training in the folder `out`."""
    settings = settings_of(out)
    recorded, made = curves(out / "metrics.jsonl"), ended(out)
    noted = note(out)
    if made.get("steps", 0) < max((curve[-1][0] for curve in recorded.values()), default=0):
        made = {}  # of an end that it has gone on from
    plain = " ".join(settings.get(knob, "") for knob in ("model.name", "optim.name")) + f" b{settings['batch']}"
    values = {name: number(value) for name, value in made.items()}
    return Training(
        key=str(noted.get("run_id") or out.resolve()),
        name=settings.get("track.run_name") or plain,
        place=str(out),
        status=str(made.get("status") or ENDS.get(str(noted.get("status"))) or "unfinished"),
        settings=settings,
        figures={name: value for name, value in values.items() if value is not None},
        curves=recorded,
    )


def ended(out: Path) -> dict[str, Any]:
    """What result.json says; nothing while there is none."""
    made = result.read(out)
    if made is None and (out / result.FILE).exists():
        raise UserError(f"{out / result.FILE}: cannot be read as JSON; leave this folder out, or mend the file")
    return made or {}


def settings_of(out: Path) -> dict[str, str]:
    """The flat settings in <out>/config.yaml as text; empty if there is none, or not of a training."""
    path = out / "config.yaml"
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML; leave this folder out, or mend the file") from error
    settings = dict(flat(content))
    return settings if {"model.name", "batch"} <= set(settings) else {}


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of every leaf, as `comparison.flat` names them and MLflow keeps them."""
    if isinstance(node, dict) and prefix != OPEN and (node or not prefix):
        for name, value in node.items():
            yield from flat(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, str(node)


def curves(path: Path) -> dict[str, Curve]:
    """The curves in a metrics.jsonl. Of a step that was taken twice, because the run went on from before it, the later counts."""
    points: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number_of_line, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            for name in points.keys() & record.keys():
                if (value := number(record[name])) is not None:
                    points[name][int(record["step"])] = value
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number_of_line < len(lines):  # a last line may be cut short where a run was killed
                raise UserError(
                    f"{path}: line {number_of_line} is not a record of metrics; mend it, or leave this folder out"
                ) from error
    return {name: sorted(found.items()) for name, found in points.items() if found}


def note(out: Path) -> dict[str, Any]:
    """What the folder knows of its MLflow run: its id, and how it ended if it has."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads((out / store.IDENTITY).read_text()))
    return {}
