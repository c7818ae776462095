"""What settings must satisfy; UserError names the knob, its value and the way out."""

from __future__ import annotations

import functools
import math
from enum import Enum
from typing import Any, ClassVar

from resnet import UserError

MISSING: Any = "???"  # OmegaConf's mark for "must be given"


def check(ok: bool, knob: str, value: object, way_out: str) -> None:
    """Raise UserError naming the knob, its value and the way out unless `ok`."""
    if not ok:
        shown = value.name if isinstance(value, Enum) else value
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else shown
        raise UserError(f"{knob}={shown}: {way_out}")


def check_range(knob: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """`value` must lie in [low, high), or in (low, high) with `open_low`."""
    above = value > low if open_low else value >= low
    bounds = f"{'above' if open_low else 'at least'} {low:g}" + (f" and below {high:g}" if high < math.inf else "")
    check(above and value < high, knob, value, f"must be {bounds}")


class Settings:
    """Base of the dataclasses of settings."""

    GROUP: ClassVar[str] = ""  # what stands before the knobs in errors, as in `optim.`

    def check(self, knob: str, ok: bool, way_out: str) -> None:
        check(ok, self.GROUP + knob, getattr(self, knob), way_out)

    def check_at_least(self, low: float, *knobs: str, below: float = math.inf, open_low: bool = False) -> None:
        """Each of the knobs must be null or in [low, below), or in (low, below) with `open_low`."""
        for knob in knobs:
            if (value := getattr(self, knob)) is not None:
                check_range(self.GROUP + knob, value, low, below, open_low=open_low)

    def check_at_most(self, high: int, *knobs: str) -> None:
        """Each of the knobs must be null or at most `high`: beyond it nothing was ever trained, and memory ends."""
        for knob in knobs:
            value = getattr(self, knob)
            self.check(knob, value is None or value <= high, f"must be at most {high:,}")

    check_above = functools.partialmethod(check_at_least, open_low=True)
