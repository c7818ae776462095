"""Commands and knobs that a user copies from a line of ours into a shell."""

from __future__ import annotations

import re
import shlex

PLAIN = re.compile(r"[A-Za-z0-9_./:+-]*/[A-Za-z0-9_./:+-]*|(?!(?i:null|true|false|inf|nan)$)[A-Za-z][A-Za-z0-9_-]*")


def quoted(text: str) -> str:
    """A text as Hydra's grammar and OmegaConf read this very text. A plain one goes without quotes."""
    if PLAIN.fullmatch(text):
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # OmegaConf's escape of an interpolation
    return '"' + re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), text) + '"'


def override(knob: str, value: object) -> str:
    """The override by which Hydra sets `knob` to the text of `value`, whatever is in it."""
    return f"{knob}={quoted(str(value))}"


def word(knob: str, value: object) -> str:
    """override(), quoted for a shell."""
    return shlex.quote(override(knob, value))


def command(module: str, *words: str) -> str:
    """`python -m MODULE WORDS`, quoted for a shell. Words for Hydra, which resnet.train gives to it, come from override()."""
    return shlex.join(["python", "-m", module, *words])
