"""Curves of loss and top-1 as SVG, drawn by matplotlib: overlaid by configuration, and of each run alone."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from cycler import cycler
from matplotlib.figure import Figure

from resnet import files
from resnet.report import published
from resnet.report.load import Training
from resnet.report.tables import top1_range

LOSSES = {"train/loss": "training", "eval/loss": "evaluation", "ema/loss": "evaluation, averaged weights"}
TOP1S = {"train/top1": "training", "eval/top1": "evaluation", "ema/top1": "evaluation, averaged weights"}
WIDTH, HEIGHT, ENTRY = 7.0, 3.4, 0.2  # inches: of a chart without its legend, and of a line of the legend
MARKED = 60  # a line of at most so many points shows each
LONGEST = 88  # characters of a name in the legend
COLOURS = ["#2563c9", "#c9480e", "#12805c", "#9333a8", "#a87400", "#0b7f8f", "#c22545", "#5b6270"]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # names may have a $
    "svg.hashsalt": "report",  # the same chart is the same file
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=COLOURS),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), "#5f6775"),
}
Line = tuple[str, pd.DataFrame]  # its name; `mean` and `std`, epochs as index
Level = tuple[str, float, float]  # its name; from, to


def overlay(runs: pd.DataFrame) -> dict[str, str]:
    """`loss` and `top1` of some rows of the run table: a line for each configuration, the mean of its seeds."""
    groups = [(seeds["label"].iloc[0], list(seeds["training"])) for _, seeds in runs.groupby("configuration")]
    levels = {published_top1(members[0]) for _, members in groups}
    loss = [(label, average(members, 1, "train/loss")) for label, members in groups]
    top1 = [(label, average(members, 100, "ema/top1", "eval/top1")) for label, members in groups]
    level = levels.pop() if len(levels) == 1 else None
    return {
        "loss": chart("Training loss", "loss, nats", loss),
        "top1": chart("Top-1 of the evaluations", "top-1, %", top1, level),
    }


def single(run: Training) -> dict[str, str]:
    """`loss` and `top1` of one run."""
    loss = [(name, average([run], 1, metric)) for metric, name in LOSSES.items()]
    top1 = [(name, average([run], 100, metric)) for metric, name in TOP1S.items()]
    return {"loss": chart("Loss", "loss, nats", loss), "top1": chart("Top-1", "top-1, %", top1, published_top1(run))}


def average(runs: Sequence[Training], factor: float, *metrics: str) -> pd.DataFrame:
    """Mean and sample standard deviation over runs, of those that have finished if any has, where all have a point.

    Of each run it is the first of `metrics` that it has, times `factor`.
    """
    runs = [run for run in runs if run.finished] or runs
    curves = [next((run.curves[metric] for metric in metrics if metric in run.curves), {}) for run in runs]
    frame = pd.concat([pd.Series(curve, dtype=float) for curve in curves if curve] or [pd.Series(dtype=float)], axis=1)
    frame = frame.dropna().sort_index() * factor
    frame.index = frame.index / (runs[0].steps_per_epoch or math.nan)
    return pd.DataFrame({"mean": frame.mean(axis=1), "std": frame.std(axis=1)})


def published_top1(run: Training) -> Level | None:
    """The published top-1 of its recipe in percent, if the run is of the same network and data."""
    row = published.row(run.recipe)
    if row is None or (row["model"].lower(), row["data"]) != (run.settings["model.name"], run.settings["data.name"]):
        return None
    ends = [100 * end for end in (row["top1_low"], row["top1_high"]) if pd.notna(end)]
    return (f"published: {top1_range(row)} ({row['source']})", min(ends), max(ends)) if ends else None


def chart(title: str, y_label: str, lines: Sequence[Line], level: Level | None = None) -> str:
    """An SVG file with a legend below; empty if there is no point at all. `level` is a horizontal stripe."""
    lines = [(name, curve) for name, curve in lines if len(curve)]
    if not lines:
        return ""
    names = [files.escape(name) for name in [*(name for name, _ in lines), *(level or ())[:1]]]
    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    file = io.StringIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that matplotlib's font lacks: the reader's may have them
        legend_height = ENTRY * len(names)
        height = HEIGHT + legend_height
        figure = Figure(figsize=(WIDTH, height))  # placed by hand: matplotlib's layouts take three times as long
        figure.subplots_adjust(0.09, (0.6 + legend_height) / height, 0.99, 1 - 0.3 / height)
        end = max(line.index[-1] for _, line in lines)
        axes = figure.add_subplot(xlabel="epochs", ylabel=y_label, xlim=(0, 1.01 * end))
        axes.set_title(title, loc="left", weight="bold")
        axes.grid(axis="y", color="#e3e6eb")
        for _, line in lines:
            (drawn,) = axes.plot(line["mean"], linewidth=1.6, marker="." if len(line) <= MARKED else None)
            low, high = line["mean"] - line["std"], line["mean"] + line["std"]
            if low.notna().any():
                axes.fill_between(line.index, low, high, color=drawn.get_color(), alpha=0.18, linewidth=0)
        stripe = [axes.axhspan(*level[1:], color="#5f6775", alpha=0.35)] if level else []
        figure.legend([*axes.lines, *stripe], names, loc="lower left")
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return file.getvalue()
