"""What varied in a sweep against what came of it, as pictures, in the colours of the report's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from resnet import cli
from resnet.sweep.job import GOAL, Job

PARALLEL, IMPORTANCES = "parallel.png", "importances.png"
MOST_NAMES = 12  # labels on the axis of a knob whose values are no numbers


def values_of(jobs: Sequence[Job], names: Sequence[str]) -> dict[str, list[str]]:
    """The value of each knob in each job, as it was typed."""
    rows = [dict(word.partition("=")[::2] for word in job.varying) for job in jobs]
    return {name: [row.get(name, "") for row in rows] for name in names}


def scale(values: Sequence[str]) -> tuple[list[float], list[tuple[float, str]]]:
    """Positions in 0..1 of a knob's values, and (position, label) of its ticks; logarithmic over two decades or more."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        names = sorted(set(values))
        place = {name: number / max(1, len(names) - 1) for number, name in enumerate(names)}
        labels = [(place[name], name) for name in names]
        return [place[value] for value in values], labels[:: math.ceil(len(labels) / MOST_NAMES)]
    low, high = min(numbers), max(numbers)
    line = [math.log(number) for number in numbers] if low > 0 and high / low >= 100 else numbers
    start, span = min(line), (max(line) - min(line)) or 1.0
    ends = sorted({((line[numbers.index(end)] - start) / span, f"{end:.3g}") for end in (low, high)})
    return [(number - start) / span for number in line], ends


def parallel_coordinates(jobs: Sequence[Job], names: Sequence[str], goals: Sequence[str], out: Path) -> None:
    """<out>/parallel.png: a line for each job with a result, through its knobs to its goals; the best are dark and on top.

    Those of pruned jobs are dotted, and go to the top-1 that they had come to.
    """
    from matplotlib.figure import Figure

    pruned = [job for job in jobs if job.code == cli.PRUNED and "best/top1" in job.latest]
    done = sorted((job for job in jobs if math.isfinite(job.loss(goals[0]))), key=lambda job: -job.loss(goals[0]))
    if len(pruned) + len(done) < 2 or not names:
        return
    columns = values_of([*pruned, *done], names)
    for goal in goals:
        results = [*(job.latest["best/top1"] for job in pruned), *(job.value(goal) for job in done)]
        columns[title(goal)] = list(map(str, results))
    figure = Figure(figsize=(2.2 * len(columns) + 1, 4), layout="constrained")
    axes = figure.subplots()
    lines = list(zip(*(scale(values)[0] for values in columns.values()), strict=True))
    for number, line in enumerate(lines, 1):
        share = 0.15 + 0.85 * number / len(lines)
        style = ":" if number <= len(pruned) else "-"
        axes.plot(range(len(columns)), line, style, color=(0.1, 0.25, 0.55, share), linewidth=1 + share)
    for x, values in enumerate(columns.values()):
        axes.axvline(x, color="#999999", linewidth=0.8)
        for y, label in scale(values)[1]:
            axes.annotate(label, (x, y), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center")
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    figure.savefig(out / PARALLEL, dpi=120)


def title(goal: str) -> str:
    """A goal for people."""
    return "top-1" if goal == GOAL else goal.removeprefix("-")


def importances(shares: Mapping[str, float], goal: str, out: Path) -> None:
    """<out>/importances.png, if there are any: a bar for each knob, its share of the variance of the goal."""
    if not shares:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1 + 0.4 * len(shares)), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(shares.items(), key=lambda pair: pair[1])
    axes.barh([name for name, _ in ordered], [share for _, share in ordered], color="#1a408c")
    axes.set_xlabel(f"share of the variance of {title(goal)}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / IMPORTANCES, dpi=120)
