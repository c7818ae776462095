"""Sides measured in one run, interleaved, and their ratio; and the machine they ran on."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def interleaved(sides: Mapping[str, Callable[[], float]], rounds: int, what: str = "") -> dict[str, list[float]]:
    """Every side once a round, so that a busy machine disturbs all of them alike. With `what` each round is told on stderr."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(1, rounds + 1):
        for name, go in sides.items():
            rates[name].append(go())
        if what:
            newest = ", ".join(f"{name} {values[-1]:.4g}" for name, values in rates.items())
            print(f"{what}, round {number} of {rounds}: {newest}", file=sys.stderr, flush=True)
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

    from resnet.distributed.device import cpu_name

    return f"{cpu_name()}; Python {platform.python_version()}, TensorFlow {tf.__version__}"


def facts(cores: int | None = None) -> dict[str, str]:
    """What a figure is worth nothing without. `cores` are those that were used, if not all this process may use.

    Call it last: it imports TensorFlow.
    """
    import tensorflow as tf

    from resnet.distributed import device, ranks

    threads = cores or ranks.cpu_count()
    native = sorted({"amx_bf16", "avx512_bf16", "avx512f", "avx2"} & device.cpu_flags())
    return {
        "machine": device.cpu_name(),
        "cores": str(threads),
        "threads": f"{threads}, as many as cores (TensorFlow's default)",
        "instructions": " ".join(native),
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "commit": commit(),
        "day": time.strftime("%Y-%m-%d"),
        "load at the end": f"{os.getloadavg()[0]:.1f}",
    }


def commit() -> str:
    """Of the checkout that this is, with + where tracked files differ from it; `none` outside of one."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=10"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return "none"
