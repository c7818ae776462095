"""`knob=value` words to a checked dataclass, for commands that are too small for Hydra. Typed and strict as training's are."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from types import NoneType
from typing import Any, Literal, TypeVar

from resnet import UserError

Knobs = TypeVar("Knobs")
REQUIRED = dataclasses.MISSING
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def knob(default: Any, said: str) -> Any:
    """A field of such a dataclass, with its line of --help."""
    return dataclasses.field(default=default, metadata={"said": said})


def split(words: Sequence[str]) -> dict[str, str]:
    """`knob=value` words by knob."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UserError(f"{word}: write knob=value; --help lists the knobs")
        if name in found:
            raise UserError(f"{name}: given twice, as {found[name]!r} and {text!r}")
        found[name] = text
    return found


def parse(kind: type[Knobs], given: dict[str, str], command: str) -> Knobs:
    """A `kind` made of these; its own checks run. `command` is what it is called, for errors. Raises UserError."""
    types = hints(kind)
    for name in given:
        if name not in types:
            raise UserError(f"{name}: {command} has no such knob; {nearest(name, list(types))}")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.default is REQUIRED and field.name not in given:
            raise UserError(f"{field.name}: {command} needs it ({field.metadata['said']})")
    return kind(**{name: value(name, text, types[name]) for name, text in given.items()})


def hints(kind: type) -> dict[str, Any]:
    """The knobs of a dataclass by name, with their types."""
    return typing.get_type_hints(kind)


def nearest(word: str, words: Sequence[str]) -> str:
    """`did you mean ...?` and what exists, as one clause."""
    close = difflib.get_close_matches(word, words, 1, 0.6)
    return f"{f'did you mean {close[0]}? There' if close else 'there'} are: {', '.join(words)}"


def value(name: str, text: str, kind: Any) -> Any:
    """`text` as a value of type `kind`."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        if text not in options:
            raise UserError(f"{name}={text}: {nearest(text, options)}")
        return text
    if NoneType in options:
        return None if text == "null" else value(name, text, options[0])
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise UserError(f"{name}={text}: must be {KINDS[kind]}") from None


def lines(kind: type, names: Sequence[str]) -> list[str]:
    """A line of --help for each of these knobs, with its default."""
    told = []
    for field in dataclasses.fields(kind):
        default = "" if field.default is REQUIRED or field.default is None else field.default
        shown = str(default).lower() if isinstance(default, bool) else default
        if field.name in names:
            told.append(f"  {f'{field.name}={shown}':<20} {field.metadata['said']}")
    return told
