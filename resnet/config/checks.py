"""What settings must satisfy; UserError names the knob, its value and the way out."""

from __future__ import annotations

import math

from resnet import UserError

MISSING = "???"  # OmegaConf's mark for "must be given"


def check(ok: bool, knob: str, value: object, way_out: str) -> None:
    """Raise UserError naming the knob, its value and the way out unless `ok`."""
    if not ok:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        raise UserError(f"{knob}={shown}: {way_out}")


def check_range(knob: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """`value` must lie in [low, high), or in (low, high) with `open_low`."""
    above = value > low if open_low else value >= low
    bounds = f"{'above' if open_low else 'at least'} {low:g}" + (f" and below {high:g}" if high < math.inf else "")
    check(math.isfinite(value) and above and value < high, knob, value, f"must be {bounds}")
