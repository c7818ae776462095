"""Words of Hydra's grammar, and of a shell's."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet.compat.request import Request
from resnet.config import compose


def joined(words: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in words.items()]


def one_group(group: str, more: Sequence[str], words: Mapping[str, str], request: Request) -> Any:
    """The dataclass of a group under the words, the extra ones too, that set it, or one of the groups and knobs `more`."""
    names = (group, *more)
    words_of = [word for word in (*joined(words), *request.extra) if re.split("[.=]", word.lstrip("+~"))[0] in names]
    return compose.one_group(group, *words_of)


def shell_line(lines: Sequence[Sequence[str]], env: Mapping[str, str]) -> str:
    """One line for a shell."""
    first = shutil.which("python")
    python = "python" if first and Path(first).parent == Path(sys.executable).parent else sys.executable
    before = ["env", *joined(env)] if env else []
    return " && ".join(shlex.join([*before, python, "-m", *words]) for words in lines)
