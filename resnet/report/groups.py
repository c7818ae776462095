"""Trainings put together: repetitions that only their seed tells apart, beside the published row of their recipe."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from resnet.report.published import Published
from resnet.report.run import FINISHED, Training, differing, shown

FIGURES = ("top1", "images_per_s", "minutes")  # what is averaged and compared
SHOWN = ("model.name", "optim.name", "cluster.ranks", "track.")  # by the table's columns, or not worth it


@dataclass(frozen=True)
class Spread:
    """Of a figure over repetitions: mean, sample standard deviation (None of one), and of how many."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Group:
    """One training with all its seeds. `settings` are the knobs that tell it from the other groups: batch=32."""

    runs: list[Training]
    row: Published | None
    settings: list[str]

    @property
    def recipe(self) -> str | None:
        """Of all its runs."""
        return self.runs[0].recipe

    @property
    def label(self) -> str:
        """What it is called in a picture."""
        name = self.recipe or self.runs[0].name
        seeds = [f"({len(self.runs)} seeds: mean ± deviation)"] if len(self.runs) > 1 else []
        return " ".join([name, *(word for word in self.settings if word not in name), *seeds])

    def spread(self, figure: str) -> Spread | None:
        """Of the runs that have this figure; None if none has."""
        values = [value for run in self.runs if (value := getattr(run, figure)) is not None]
        if not values:
            return None
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def curve(self, name: str, scale: float = 1.0) -> list[tuple[float, float, float]]:
        """(epoch, mean, sample standard deviation) where all runs have a point; of those that ended, if any has."""
        runs = [run for run in self.runs if run.status in FINISHED] or self.runs
        curves = [dict(run.curves.get(run.judged if name == "top1" else name, [])) for run in runs]
        curves, steps_per_epoch = [curve for curve in curves if curve], runs[0].steps_per_epoch
        if not curves or not steps_per_epoch:
            return []
        steps = sorted(set.intersection(*map(set, curves)))
        values = np.array([[curve[step] for step in steps] for curve in curves]) * scale
        deviations = values.std(0, ddof=1) if len(curves) > 1 else np.zeros(len(steps))
        epochs = [step / steps_per_epoch for step in steps]
        return list(zip(epochs, values.mean(0).tolist(), deviations.tolist(), strict=True))


def groups(trainings: Iterable[Training], rows: dict[str, Published]) -> list[Group]:
    """Groups of the same recipe stand together, in the order of the published table; those of none at the end."""
    found: dict[object, list[Training]] = {}
    for run in {run.key: run for run in trainings}.values():  # once, though two words named it
        found.setdefault((run.recipe, run.identity), []).append(run)
    made = []
    for runs in found.values():
        others = [others[0] for others in found.values() if others[0].recipe == runs[0].recipe]
        made.append(Group(runs, rows.get(str(runs[0].recipe)), told(runs[0], others)))
    order = list(rows)
    return sorted(made, key=lambda group: order.index(group.row.recipe) if group.row else len(order))


def by_recipe(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """By the headline of their recipe."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(f"recipe={group.recipe}" if group.recipe else "without a recipe", []).append(group)
    return found


def told(run: Training, others: Sequence[Training]) -> list[str]:
    """knob=value of what tells `run` from the others and no column of the table does; schedule=cosine of schedule.name."""
    knobs = [knob for knob in differing(*(other.settings for other in others)) if not knob.startswith(SHOWN)]
    return [f"{knob.removesuffix('.name')}={shown(run.settings[knob])}" for knob in knobs]
