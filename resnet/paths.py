"""Where things lie: the folders of YAML files, and what a user means by a path."""

from __future__ import annotations

import os
from pathlib import Path

from resnet import UserError

HERE = Path(__file__).resolve().parent


def tree(name: str) -> Path:
    """The folder of YAML files `name`: inside an installed package, beside it in a checkout."""
    return HERE / name if (HERE / name).is_dir() else HERE.parent / name


def absolute(path: str, base: Path) -> str:
    """`path` with ~ expanded and taken from `base`; a URL such as gs://bucket/folder stays as it is.

    ~nobody stays a name, as in a shell; Path.expanduser() would raise.
    """
    if "\0" in path:
        raise UserError(f"{path!r}: no path; it has a NUL in it")
    return path if "://" in path else os.path.normpath(base / os.path.expanduser(path))  # noqa: PTH111
