"""What varied in a sweep against what came of it, as pictures, in the colours of the report's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet.sweep.job import GOAL, Job

PARALLEL, IMPORTANCES = "parallel.png", "importances.png"


def values_of(jobs: Sequence[Job], names: Sequence[str]) -> dict[str, list[str]]:
    """The value of each knob in each job, as it was typed."""
    rows = [dict(word.partition("=")[::2] for word in job.varying) for job in jobs]
    return {name: [row.get(name, "") for row in rows] for name in names}


def scale(values: Sequence[str]) -> tuple[np.ndarray[Any, Any], list[tuple[float, str]]]:
    """Positions [n] in 0..1 of a knob's values, and (position, label) of its ticks; logarithmic over two decades."""
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        names = sorted(set(values))
        place = {name: number / max(1, len(names) - 1) for number, name in enumerate(names)}
        return np.array([place[value] for value in values]), [(place[name], name) for name in names]
    low, high = numbers.min(), numbers.max()
    log = low > 0 and high / low >= 100
    line = np.log(numbers) if log else numbers
    span = np.ptp(line) or 1.0
    ends = sorted({(float((line[i] - line.min()) / span), f"{numbers[i]:.3g}") for i in (line.argmin(), line.argmax())})
    return (line - line.min()) / span, ends


def parallel_coordinates(jobs: Sequence[Job], names: Sequence[str], path: Path) -> None:
    """A line for each job that has a top-1, through its knobs to its top-1; the best ones are dark and on top."""
    from matplotlib.figure import Figure

    results = [(job, job.result[GOAL]) for job in jobs if job.result.get(GOAL) is not None]
    if len(results) < 2 or not names:
        return
    results.sort(key=lambda pair: pair[1])
    columns = {**values_of([job for job, _ in results], names), "top-1": [str(top1) for _, top1 in results]}
    figure = Figure(figsize=(2.2 * len(columns) + 1, 4), layout="constrained")
    axes = figure.subplots()
    lines = np.stack([scale(values)[0] for values in columns.values()], axis=1)
    ranks = np.linspace(0.15, 1, len(results))
    for line, share in zip(lines, ranks, strict=True):
        axes.plot(range(len(columns)), line, color=(0.1, 0.25, 0.55, share), linewidth=1 + share)
    for x, values in enumerate(columns.values()):
        axes.axvline(x, color="#999999", linewidth=0.8)
        for y, label in scale(values)[1]:
            axes.annotate(label, (x, y), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center")
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=120)


def importances(shares: Mapping[str, float], path: Path) -> None:
    """A bar for each knob: its share of the variance of the goal (optuna.importance)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1 + 0.4 * len(shares)), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(shares.items(), key=lambda pair: pair[1])
    axes.barh([name for name, _ in ordered], [share for _, share in ordered], color="#1a408c")
    axes.set_xlabel("share of the variance of top-1")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
