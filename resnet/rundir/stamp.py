"""What a run's folder says of the program that wrote it; a newer program reads what an older one wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from resnet import UserError, __version__

SCHEMA = 1  # of config.yaml, result.json and commit.json; raised when an older program would misread them
LINE = re.compile(r"# resnet (?P<resnet>\S+), schema (?P<schema>\d+)\n")


def stamp() -> dict[str, Any]:
    """For a JSON file."""
    return {"schema": SCHEMA, "resnet": __version__}


def line() -> str:
    """For the head of a YAML file."""
    return f"# resnet {__version__}, schema {SCHEMA}\n"


def of_text(text: str) -> dict[str, Any]:
    """The stamp at the head of a YAML file; empty if there is none."""
    found = LINE.match(text)
    return {"schema": int(found["schema"]), "resnet": found["resnet"]} if found else {}


def check(path: Path, found: dict[str, Any]) -> None:
    """Raise UserError if `path`, which has this stamp, was written by a program that this one is too old to read."""
    schema = found.get("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise UserError(
            f"{path}: written by resnet {found.get('resnet')} (schema {schema}), and this is resnet {__version__} (schema "
            f"{SCHEMA}); go on with that version or a newer one"
        )
