"""Sides measured in one run, interleaved, and their ratio."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable


def interleaved(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Every side once a round, so that a busy machine disturbs all of them alike."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, go in sides.items():
            rates[name].append(go())
    return rates


def table(rates: dict[str, list[float]], against: str, cores: int) -> str:
    """Markdown; the ratio is the median of the rounds' own ratios."""
    lines = ["| pipeline | images/s a core | to naive |", "|---|---|---|"]
    for name, values in rates.items():
        ratio = statistics.median(mine / other for mine, other in zip(values, rates[against], strict=True))
        lines.append(f"| {name} | {statistics.median(values) / cores:,.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def machine() -> str:
    """Processor, versions."""
    import tensorflow as tf

    from resnet.device import cpu_name

    return f"{cpu_name()}; Python {platform.python_version()}, TensorFlow {tf.__version__}"
