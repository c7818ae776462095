"""Groups, options and knobs, and how --help lists them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from resnet import files
from resnet.config.run import VARIANTS, Run

TEMPLATE = """Train a ResNet: python -m resnet.train [group=option ...] [knob=value ...]
${help_text:}

This run (override any knob with knob=value):

$CONFIG
-m knob=a,b            a sweep: a job in a fresh process for every combination
sweep.resume=<folder>  resume a sweep; jobs that finished are skipped
--cfg job --resolve    print the run and stop
--hydra-help           what else Hydra can do

"""


def options() -> Iterator[tuple[str, str, str]]:
    """(group, option, its first comment line) of every option below conf/ and experiments/."""
    for top in (files.tree("conf"), files.tree("experiments")):
        for path in sorted(top.glob("*/*.yaml")):
            comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
            texts = (line for line in comments if not line.startswith("@package"))
            yield path.parent.name, path.stem, next(texts, "")


def help_text() -> str:
    """Every group and option, one line each, in the order of the defaults list."""
    lines = []
    for group, members in itertools.groupby(options(), lambda option: option[0]):
        lines += ["", group, *(f"  {f'{group}={name}':<29} {text}".rstrip() for _, name, text in members)]
    return "\n".join(lines)


def knobs(kind: Any) -> list[str]:
    """Names of a dataclass's fields."""
    return [knob.name for knob in dataclasses.fields(kind)]


def known_names() -> list[str]:
    """Groups, and knobs of every variant, for an error that came before a configuration was composed."""
    names = knobs(Run)
    for group, variants in VARIANTS.items():
        names += sorted({f"{group}.{knob}" for kind in variants.values() for knob in knobs(kind)})
    return names
