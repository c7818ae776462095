"""The tables: a row for each run, the spread over seeds, every point of the curves; and their text beside published rows."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from resnet.report import published
from resnet.report.load import Training, number
from resnet.report.published import differing, typed

FIGURES = ["top1", "images_per_s", "minutes"]  # what is averaged and compared
PUBLISHED = ["source", "epochs", "cards", "batch_per_card", "top1_low", "top1_high", "images_per_s", "minutes"]
DIFFERENCES = ["difference_top1", "difference_images_per_s_share", "difference_minutes"]
# Not in a CSV file:
INTERNAL = ["words", "label", "title", "remarks", "finished", "other_training", "other_machine", "training"]
POINT = ["configuration", "run", "place", "seed", "metric", "step", "images", "epoch", "value"]
IN_COLUMNS = ("model.name", "optim.name", "cluster.ranks", "track.")  # knobs with a column, or of no interest

HEADER: tuple[str, ...] = ("run", "status", "model", "API", "epochs", "cards", "batch per card")
HEADER += ("top-1, %", "images/s", "minutes to train")
READING = (
    "top-1: of the last weights (of their average, if there is one) over all evaluation images; empty while a run has not ended",
    "images/s: the mean over all iterations but the first, as in the published tables; evaluation and checkpoints are not in it",
    "minutes to train: from the first line of the training to its end, evaluation and checkpoints included",
    "±: sample standard deviation over runs that only their seed tells apart",
    "small, or in brackets: the difference to the published row in points of top-1, percent of images/s, and minutes; only where "
    "the training, and for the last two the number of cards and the arithmetic, are those that were published",
)


# ----------------------------------------------------------------------------------------------------------------- frames
def run_table(trainings: Iterable[Training]) -> pd.DataFrame:
    """A row for each run. A configuration is all runs that only their seed tells apart; recipes are in the published order."""
    order = {recipe: place for place, recipe in enumerate(published.rows().index)}
    configurations: dict[object, list[Training]] = {}
    unique = {run.key: run for run in trainings}.values()  # two words may name the same run
    for run in sorted(unique, key=lambda run: order.get(run.recipe, len(order))):
        knobs = [knob for knob in run.settings if knob not in published.ASIDE and not knob.startswith("track.")]
        identity = frozenset((knob, run.settings[knob]) for knob in knobs)
        configurations.setdefault((run.recipe, identity), []).append(run)
    records = []
    for count, members in enumerate(configurations.values(), 1):
        first = members[0]
        siblings = [others[0].settings for others in configurations.values() if others[0].recipe == first.recipe]
        knobs = [knob for knob in differing(*siblings) if not knob.startswith(IN_COLUMNS)]
        words = [f"{knob.removesuffix('.name')}={typed(first.settings[knob])}" for knob in knobs]
        name = first.recipe or first.name
        seeds = [f"({len(members)} seeds: mean ± deviation)"] if len(members) > 1 else []
        label = " ".join([name, *(word for word in words if word not in name), *seeds])
        shared = {"configuration": count, "recipe": first.recipe, "settings": " ".join(words), "words": words}
        records += [{**shared, "label": label, **describe(run)} for run in members]
    kinds = {"cards": "Int64", "batch_per_card": "Int64", **dict.fromkeys(["epochs", *FIGURES], float)}
    return compare(pd.DataFrame(records).astype(kinds))


def describe(run: Training) -> dict[str, object]:
    """The columns of one run. What is not known is None: figures of a run that has not ended, minutes of several starts."""
    final, settings, row = run.final if run.finished else {}, run.settings, published.row(run.recipe)
    batch, cards, minutes = number(settings["batch"]), number(settings.get("cluster.ranks")), final.get("final/minutes")
    resumed = minutes is not None and final.get("final/training_minutes", 0.0) > minutes  # the clock of the last start
    return {
        "seed": settings.get("seed", ""),
        "run": run.name,
        "place": run.place,
        "status": run.status,
        "model": settings["model.name"].replace("resnet", "ResNet").replace("resnext", "ResNeXt"),
        "api": settings.get("optim.name", "").upper(),
        "epochs": run.epochs,
        "cards": cards,
        "batch_per_card": batch // cards if batch and cards else None,
        "top1": final.get("final/top1"),
        "images_per_s": final.get("final/images_per_s"),
        "minutes": None if resumed else minutes,
        "title": f"recipe={run.recipe}" if run.recipe else "without a recipe",
        "remarks": ["went on in several starts, so its minutes are not known"] if resumed else [],
        "finished": run.finished,
        "other_training": published.other_training(run, row) if run.finished and row is not None else [],
        "other_machine": published.other_machine(run, row) if run.finished and row is not None else [],
        "training": run,
    }


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the published rows and the differences to them: of top-1 to the nearest end of what was published."""
    table = table.join(published.rows()[PUBLISHED].add_prefix("published_"), on="recipe")
    low, high = table["published_top1_low"], table["published_top1_high"]
    same = ~table["other_training"].astype(bool)
    top1 = table["top1"] - table["top1"].clip(low.fillna(0.0), high.fillna(1.0))
    table["difference_top1"] = top1.where(same & (low.notna() | high.notna()))
    same &= ~table["other_machine"].astype(bool)
    share = table["images_per_s"] / table["published_images_per_s"] - 1
    table["difference_images_per_s_share"] = share.where(same)
    table["difference_minutes"] = (table["minutes"] - table["published_minutes"]).where(same)
    return table


def spread_table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each configuration: mean, sample standard deviation and count of each figure over its seeds."""
    seeds = runs.groupby("configuration")
    table = seeds[["recipe", "settings", "words"]].first()
    table["runs"], table["finished"] = seeds.size(), seeds["finished"].sum()
    for name in ("other_training", "other_machine"):
        table[name] = seeds[name].agg(lambda reasons: list(dict.fromkeys(itertools.chain(*reasons))))
    for name, part in itertools.product(FIGURES, ("mean", "deviation", "count")):
        table[f"{name}_{part}"] = seeds[name].agg("std" if part == "deviation" else part)
    means = {f"{name}_mean": name for name in FIGURES}
    return compare(table.rename(columns=means)).rename(columns={name: mean for mean, name in means.items()})


def point_table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each point of each curve, as it was logged."""
    points = []
    for count, run, seed in runs[["configuration", "training", "seed"]].itertuples(index=False):
        batch, per_epoch = number(run.settings["batch"]), run.steps_per_epoch
        for metric, curve in run.curves.items():
            for step, value in curve.items() if metric != "train/epoch" else ():
                images, epoch = batch and step * batch, per_epoch and step / per_epoch
                points.append((count, run.name, run.place, seed, metric, step, images, epoch, value))
    return pd.DataFrame(points, columns=POINT).astype({"images": "Int64"})


def csv_files(runs: pd.DataFrame, spread: pd.DataFrame) -> dict[str, str]:
    """runs.csv, spread.csv and curves.csv: numbers in full, top-1 in 0..1, empty what is not known."""
    tables = {"runs.csv": runs, "spread.csv": spread.reset_index(), "curves.csv": point_table(runs)}
    tables = {name: table.drop(columns=INTERNAL, errors="ignore") for name, table in tables.items()}
    return {name: table.to_csv(index=False, lineterminator="\n") for name, table in tables.items()}


# ------------------------------------------------------------------------------------------------------------------- text
@dataclass(frozen=True)
class Row:
    """A row of text. `kind`: recipe (a heading), published, run or mean. A cell is a text and its difference to the published."""

    kind: str
    name: str
    notes: list[str] = field(default_factory=list)
    status: str = ""
    cells: list[tuple[str, str]] = field(default_factory=list)


def rows(runs: pd.DataFrame, spread: pd.DataFrame) -> Iterator[Row]:
    """Recipe by recipe: the published row, if there is one, the runs, and the mean of those that only their seed tells apart."""
    for title, members in runs.groupby("title", sort=False):
        yield Row("recipe", title)
        row = published.row(members["recipe"].iloc[0])
        if row is not None:
            texts = [*described(row), top1_range(row), show_speed(row["images_per_s"]), show_minutes(row["minutes"])]
            yield Row("published", row["source"], cells=[(text, "") for text in texts])
        for count, seeds in members.groupby("configuration"):
            for run in seeds.to_dict("records"):
                notes = [word for word in run["words"] if word not in run["run"]]
                notes += [f"seed {run['seed']}"] if run["seed"] else []
                notes += [run["place"], *run["remarks"], *(not_compared(run) if len(seeds) == 1 else [])]
                cells = [*((text, "") for text in described(run)), *figures(run)]
                yield Row("run", run["run"], notes, run["status"], cells)
            if len(seeds) > 1:
                mean = spread.loc[count].to_dict()
                some = mean["finished"] < len(seeds)
                name = f"mean of the {mean['finished']} finished of {len(seeds)}" if some else f"mean of {len(seeds)}"
                yield Row("mean", name, [*mean["words"], *not_compared(mean)], cells=[("", "")] * 5 + figures(mean))


def described(row: Mapping[str, Any]) -> list[str]:
    """Cells of what was trained, on what."""
    return [row["model"], row["api"], show(round(row["epochs"], 2)), show(row["cards"]), show(row["batch_per_card"])]


def figures(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Cells of top-1, images/s and minutes, of a run or the mean of several."""
    means = [row.get(name, row.get(f"{name}_mean")) for name in FIGURES]
    deviations = [row.get(f"{name}_deviation", math.nan) for name in FIGURES]
    forms = zip((show_percent, show_speed, show_minutes), means, deviations, strict=True)
    texts = [" ± ".join(filter(None, (form(mean), form(deviation)))) for form, mean, deviation in forms]
    top1, images, minutes = (row[name] for name in DIFFERENCES)
    low, high = row["published_top1_low"], row["published_top1_high"]
    inside = "=" if low == high else "within" if pd.notna(low) and pd.notna(high) else "reached"
    difference = inside if top1 == 0 else show(100 * top1, "+.2f")
    return list(zip(texts, (difference, show(images, "+.1%").replace("%", " %"), show(minutes, "+.1f")), strict=True))


def not_compared(row: Mapping[str, Any]) -> list[str]:
    """Why a difference to the published row is missing, if one is."""
    if row["other_training"]:
        return [f"not compared: {', '.join(row['other_training'])}"]
    timed = pd.notna(row["published_images_per_s"]) or pd.notna(row["published_minutes"])
    reasons = row["other_machine"] if timed else []
    return [f"images/s and minutes not compared: {', '.join(reasons)}"] if reasons else []


def show(value: Any, form: str = "g") -> str:
    """A number; nothing if it is not known."""
    return "" if pd.isna(value) else format(value, form)


def show_percent(share: float) -> str:
    return show(100 * share, ".2f")


def show_speed(value: float) -> str:
    return show(value, ",.1f").removesuffix(".0")


def show_minutes(value: float) -> str:
    return show(value, ".2f") if value < 10 else show_speed(value)


def top1_range(row: Mapping[str, Any]) -> str:
    """A published top-1 in percent: one, a range, at least or below."""
    low, high = show(100 * row["top1_low"]), show(100 * row["top1_high"])
    if low and high:
        return low if low == high else f"{low} to {high}"
    return f"at least {low}" if low else f"below {high}" if high else ""


def markdown(title: str, rows: Sequence[Row], charts: Sequence[str]) -> str:
    """The table, how to read it, and the overlaid curves."""
    lines = [f"# {inert(title)}", "", f"| {' | '.join(HEADER)} |", "|---|---|---|---|" + "---:|" * (len(HEADER) - 4)]
    for row in rows:
        mark = {"recipe": "**", "run": ""}.get(row.kind, "*")
        notes = f" ({inert('; '.join(row.notes))})" if row.notes else ""
        cells = [row.status, *(f"{text} ({difference})" if difference else text for text, difference in row.cells)]
        cells += [""] * (len(HEADER) - 1 - len(cells))
        lines.append(f"| {' | '.join([f'{mark}{inert(row.name)}{mark}{notes}', *map(inert, cells)])} |")
    lines += ["", *(f"- {line}" for line in READING), ""]
    return "\n".join([*lines, *(f"![{chart.removesuffix('.svg')}]({chart})" for chart in charts)]) + "\n"


def inert(text: str) -> str:
    """Text that Markdown takes as such."""
    return re.sub(r"[\\`*\[\]<>|~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))
