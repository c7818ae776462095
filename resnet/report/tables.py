"""The published tables' columns for our own runs, beside the published row: as rows of text, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from resnet.report.groups import FIGURES, Group, Spread, by_recipe
from resnet.report.published import Published
from resnet.report.run import FINISHED, Training

COLUMNS = ("model", "API", "epochs", "cards", "batch per card", "top-1, %", "images/s", "minutes to train")
READING = (
    "top-1: of the last weights (of their average, if there is one) over all evaluation images; empty while a run has not ended",
    "images/s: the mean over all iterations but the first, as in the published tables; evaluation and checkpoints are not in it",
    "minutes to train: from the first line of the training to its end, evaluation and checkpoints included",
    "±: sample standard deviation over runs that only their seed tells apart",
    "small, or in brackets: the difference to the published row in points of top-1, percent of images/s, and minutes; only where "
    "the training, and for the last two the number of cards and the arithmetic, are those that were published",
)


@dataclass(frozen=True)
class Row:
    """`kind`: published, run or mean. A cell is what it says and the difference to the published row."""

    kind: str
    name: str
    notes: list[str]
    status: str
    cells: list[tuple[str, str]]


@dataclass(frozen=True)
class Block:
    """A recipe with its published row, if there is one, and all its runs."""

    title: str
    rows: list[Row]


def blocks(groups: Sequence[Group]) -> list[Block]:
    """One for every recipe, in the order of the groups."""
    made = []
    for title, members in by_recipe(groups).items():
        row = members[0].row
        rows = [published_row(row)] if row else []
        made.append(Block(title, rows + [row for group in members for row in of(group)]))
    return made


# ------------------------------------------------------------------------------------------------------------------- rows
def published_row(row: Published) -> Row:
    """As it was published."""
    cells = [
        row.model,
        row.api,
        plain(row.epochs),
        str(row.cards),
        str(row.batch_per_card),
        expected(row),
        speed(row.images_per_s),
        minutes(row.minutes),
    ]
    return Row("published", row.source, [], "", [(cell, "") for cell in cells])


def of(group: Group) -> Iterator[Row]:
    """A row for each run, and their mean if there are several."""
    several = len(group.runs) > 1
    for run in group.runs:
        notes = [word for word in group.settings if word not in run.name]
        notes += [f"seed {run.seed}"] if run.seed else []
        notes += [run.place, *remarks(run)]
        notes += [] if several else not_compared(group)
        figures = [Spread(value, None, 1) if (value := getattr(run, name)) is not None else None for name in FIGURES]
        yield Row("run", run.name, notes, run.status, [*described(run), *compared(figures, group, [run])])
    if several:
        spreads = [group.spread(name) for name in FIGURES]
        ended = sum(run.status in FINISHED for run in group.runs)
        name = f"mean of {ended}" if ended == len(group.runs) else f"mean of the {ended} finished of {len(group.runs)}"
        cells = [("", "")] * len(described(group.runs[0])) + compared(spreads, group, group.runs)
        yield Row("mean", name, [*group.settings, *not_compared(group)], "", cells)


def described(run: Training) -> list[tuple[str, str]]:
    """What was trained, on what."""
    numbers = [None if run.epochs is None else round(run.epochs, 2), run.cards, run.batch_per_card]
    return [(cell, "") for cell in (run.model, run.api, *map(plain, numbers))]


def compared(figures: Sequence[Spread | None], group: Group, runs: Sequence[Training]) -> list[tuple[str, str]]:
    """Cells of top-1, images/s and minutes."""
    texts = [spread_text(figure, form) for figure, form in zip(figures, (percent, speed, minutes), strict=True)]
    apart = differences([mean(figure) for figure in figures], group.row, runs)
    top1, images, took = apart
    signs = [
        "" if top1 is None else met(group.row) if top1 == 0 else f"{100 * top1:+.2f}",
        "" if images is None else f"{100 * images:+.1f} %",
        "" if took is None else f"{took:+.1f}",
    ]
    return list(zip(texts, signs, strict=True))


def differences(
    figures: Sequence[float | None], row: Published | None, runs: Sequence[Training]
) -> tuple[float | None, float | None, float | None]:
    """To the published row: of top-1 in 0..1, of images/s as a share of it, of minutes. None where it would say nothing."""
    if row is None or any(row.another_training(run) for run in runs if run.status in FINISHED):
        return None, None, None
    top1, images, took = figures
    known = row.low is not None or row.high is not None
    difference = row.top1_difference(top1) if known and top1 is not None else None
    if any(row.another_machine(run) for run in runs if run.status in FINISHED):
        return difference, None, None
    return (
        difference,
        images / row.images_per_s - 1 if images is not None and row.images_per_s else None,
        took - row.minutes if took is not None and row.minutes else None,
    )


def met(row: Published | None) -> str:
    """Said of a top-1 that is within what was published."""
    return "=" if row and row.low == row.high else "within" if row and row.low and row.high else "reached"


def not_compared(group: Group) -> list[str]:
    """Why there is no difference to the published row, if there is none."""
    ended = [run for run in group.runs if run.status in FINISHED]
    if group.row is None or not ended:
        return []
    if other := list(dict.fromkeys(told for run in ended for told in group.row.another_training(run))):
        return [f"not compared: {', '.join(other)}"]
    timed = ended if group.row.images_per_s or group.row.minutes else []
    machine = list(dict.fromkeys(told for run in timed for told in group.row.another_machine(run)))
    return [f"images/s and minutes not compared: {', '.join(machine)}"] if machine else []


def remarks(run: Training) -> list[str]:
    """What a reader would ask."""
    hidden = run.minutes is None and run.figure("final/minutes") is not None
    return ["went on in several starts, so its minutes are not known"] if hidden else []


# ---------------------------------------------------------------------------------------------------------------- numbers
def plain(value: float | None) -> str:
    """As few digits as it takes."""
    return "" if value is None else f"{value:g}"


def percent(share: float | None) -> str:
    """Of a share."""
    return "" if share is None else f"{100 * share:.2f}"


def speed(value: float | None) -> str:
    """Images/s."""
    return "" if value is None else f"{value:,.1f}".removesuffix(".0")


def minutes(value: float | None) -> str:
    """Minutes."""
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:,.1f}".removesuffix(".0")


def spread_text(spread: Spread | None, form: Any) -> str:
    """The mean, and ± where there are several."""
    if spread is None:
        return ""
    return str(form(spread.mean)) + ("" if spread.deviation is None else f" ± {form(spread.deviation)}")


def mean(spread: Spread | None) -> float | None:
    """Of a spread, if there is one."""
    return None if spread is None else spread.mean


def expected(row: Published) -> str:
    """The published top-1 in percent: one, a range, at least or below."""
    low, high = (None if end is None else f"{100 * end:g}" for end in (row.low, row.high))
    if low and high:
        return low if low == high else f"{low} to {high}"
    return f"at least {low}" if low else f"below {high}" if high else ""


# ------------------------------------------------------------------------------------------------------------------ files
def markdown(title: str, blocks: Sequence[Block], pictures: Sequence[str]) -> str:
    """The table, how to read it, and the overlaid curves."""
    lines = [
        f"# {inert(title)}",
        "",
        "| run | status | " + " | ".join(COLUMNS) + " |",
        "|---|---|---|---|" + "---:|" * (len(COLUMNS) - 2),
    ]
    for block in blocks:
        lines.append(f"| **{inert(block.title)}** |" + " |" * (len(COLUMNS) + 1))
        for row in block.rows:
            name = inert(row.name) if row.kind == "run" else f"*{inert(row.name)}*"
            notes = f" ({inert('; '.join(row.notes))})" if row.notes else ""
            cells = [f"{text} ({apart})" if apart else text for text, apart in row.cells]
            lines.append("| " + " | ".join([name + notes, inert(row.status), *map(inert, cells)]) + " |")
    lines += ["", *(f"- {line}" for line in READING), ""]
    lines += [f"![{picture.removesuffix('.svg')}]({picture})" for picture in pictures]
    return "\n".join(lines) + "\n"


def inert(text: str) -> str:
    """Text that Markdown takes as such."""
    return re.sub(r"[\\`*\[\]<>|~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))


def runs_csv(groups: Sequence[Group]) -> str:
    """A row for each run, numbers in full; top-1 in 0..1; `configuration` counts groups from 1, as in the other CSV file."""
    return written(
        {
            "configuration": number,
            "recipe": run.recipe,
            "settings": " ".join(group.settings),
            "seed": run.seed,
            "run": run.name,
            "place": run.place,
            "status": run.status,
            "model": run.model,
            "api": run.api,
            "epochs": run.epochs,
            "cards": run.cards,
            "batch_per_card": run.batch_per_card,
            **{name: getattr(run, name) for name in FIGURES},
            **beside(group, [getattr(run, name) for name in FIGURES], [run]),
        }
        for number, group in enumerate(groups, 1)
        for run in group.runs
    )


def spread_csv(groups: Sequence[Group]) -> str:
    """A row for each configuration: mean, sample standard deviation and count of each figure over its seeds."""
    rows = []
    for number, group in enumerate(groups, 1):
        spreads = {name: group.spread(name) for name in FIGURES}
        rows.append(
            {
                "configuration": number,
                "recipe": group.recipe,
                "settings": " ".join(group.settings),
                "runs": len(group.runs),
                **{
                    f"{name}_{part}": getattr(spread, part) if spread else 0 if part == "count" else None
                    for name, spread in spreads.items()
                    for part in ("mean", "deviation", "count")
                },
                **beside(group, [mean(spread) for spread in spreads.values()], group.runs),
            }
        )
    return written(rows)


def beside(group: Group, figures: Sequence[float | None], runs: Sequence[Training]) -> dict[str, object]:
    """The published row and the differences to it."""
    names = ("source", "epochs", "cards", "batch_per_card", "low", "high", "images_per_s", "minutes")
    row = asdict(group.row) if group.row else {}
    words = {"low": "top1_low", "high": "top1_high"}
    apart = differences(figures, group.row, runs)
    return {f"published_{words.get(name, name)}": row.get(name) for name in names} | {
        f"difference_{name}": value
        for name, value in zip(("top1", "images_per_s_share", "minutes"), apart, strict=True)
    }


def curves_csv(groups: Sequence[Group]) -> str:
    """A row for each point of each curve, as it was recorded."""
    return written(
        {
            "configuration": number,
            "run": run.name,
            "place": run.place,
            "seed": run.seed,
            "metric": metric,
            "step": step,
            "images": None if run.number("batch") is None else step * int(run.number("batch") or 0),
            "epoch": step / run.steps_per_epoch if run.steps_per_epoch else None,
            "value": value,
        }
        for number, group in enumerate(groups, 1)
        for run in group.runs
        for metric, curve in run.curves.items()
        if metric != "train/epoch"
        for step, value in curve
    )


def written(rows: Iterable[dict[str, object]]) -> str:
    """CSV with a head; None is an empty field."""
    listed = list(rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(listed[0]) if listed else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return file.getvalue()
