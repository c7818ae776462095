"""Which curves are drawn: loss and top-1, overlaid by configuration and of each run alone."""

from __future__ import annotations

from collections.abc import Sequence

from resnet.report.groups import Group
from resnet.report.plots import Level, Line, chart
from resnet.report.run import Training
from resnet.report.tables import expected

X = "epochs"
LOSS, TOP1 = "loss, nats", "top-1, %"
PARTS = {"train/loss": "training", "eval/loss": "evaluation", "ema/loss": "evaluation, averaged weights"}
JUDGED = {"eval/top1": "weights", "ema/top1": "averaged weights"}


def overlaid(groups: Sequence[Group]) -> dict[str, str]:
    """`loss` and `top1`: a line for each configuration, the mean of its seeds with a band of the standard deviation."""
    loss = [line(group, number, "train/loss", 1) for number, group in enumerate(groups)]
    top1 = [line(group, number, "top1", 100) for number, group in enumerate(groups)]
    levels = {level(group) for group in groups}
    shared = levels.pop() if len(levels) == 1 else None
    return {
        "loss": chart("Training loss", X, LOSS, loss),
        "top1": chart("Top-1 of the evaluations", X, TOP1, top1, shared),
    }


def line(group: Group, number: int, name: str, scale: float) -> Line:
    """A configuration's mean."""
    points = group.curve(name, scale)
    return Line(
        group.label,
        number,
        [(epoch, mean) for epoch, mean, _ in points],
        [(epoch, mean - deviation, mean + deviation) for epoch, mean, deviation in points],
    )


def level(group: Group) -> Level | None:
    """The published top-1 of the recipe, if the run is of the same network and data."""
    row, run = group.row, group.runs[0]
    if row is None or (row.data, row.model) != (run.settings.get("data.name"), run.model):
        return None
    ends = [100 * end for end in (row.low, row.high) if end is not None]
    return Level(f"{expected(row)} ({row.source})", min(ends), max(ends)) if ends else None


def alone(group: Group, run: Training) -> dict[str, str]:
    """`loss` and `top1` of one run."""
    loss = [Line(said, number, run.over_epochs(name)) for number, (name, said) in enumerate(PARTS.items())]
    top1 = [Line(said, number, run.over_epochs(name, 100)) for number, (name, said) in enumerate(JUDGED.items())]
    return {"loss": chart("Loss", X, LOSS, loss), "top1": chart("Top-1", X, TOP1, top1, level(group))}
