"""How much sooner a fast recipe is where a slow one gets to: whole trainings, each in a process of its own."""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet import UserError
from resnet.bench import trainings
from resnet.bench.result import Kept, Outcome, Row
from resnet.bench.sides import facts
from resnet.cli import knob
from resnet.config.checks import check


@dataclass(kw_only=True)
class Accuracy(Kept):
    """a recipe against a faster one: top-1, minutes of the whole run, and how many times sooner"""

    slow: str = knob("quickstart", "recipe to compare with")
    fast: str = knob("quickstart_fast", "recipe that should get there sooner")
    seeds: int = knob(5, "trainings of each, with seeds 1, 2, ...")
    words: str = knob("", "more words for both, such as 'data=folder data.dir=shards'")
    out: str | None = knob(None, "folder for the outcome, and to keep the runs in; those go to a temporary one without")

    def __post_init__(self) -> None:
        check(self.seeds > 0, "seeds", self.seeds, "must be above 0")


def measure(asked: Accuracy) -> Outcome:
    """Every training, then medians, and the ratio of pairs with the same seed."""
    with tempfile.TemporaryDirectory() as scratch:
        runs: dict[str, list[dict[str, Any]]] = {asked.slow: [], asked.fast: []}
        for seed in range(1, asked.seeds + 1):
            for recipe, made in runs.items():
                made.append(trained(recipe, seed, asked.words.split(), Path(asked.out or scratch)))
                print(f"{recipe} seed {seed}: {cells(made[-1])}", file=sys.stderr, flush=True)
    minutes, top1 = (
        [[one[key] for one in runs[recipe]] for recipe in (asked.fast, asked.slow)]
        for key in ("final/minutes", "final/top1")
    )
    rows = [
        Row(f"{asked.fast}, minutes in all", minutes[0], minutes[1], asked.slow, less_is_better=True),
        Row(f"{asked.fast}, top-1", top1[0], top1[1], asked.slow),
    ]
    about = f"Whole trainings, each in a process of its own, in turn with seeds 1 to {asked.seeds}; medians."
    return Outcome(about, rows, facts(), [table(runs, asked.slow)])


def trained(recipe: str, seed: int, words: list[str], folder: Path) -> dict[str, Any]:
    """The result of one training. Raises UserError if it fails."""
    known = [f"recipe={recipe}", f"seed={seed}"]
    made = trainings.result_of([*known, "track=off", *words], folder / f"{recipe}-{seed}", " ".join(known))
    if made["final/top1"] is None:
        raise UserError(f"words={' '.join(words)}: recipe={recipe} was not evaluated at its end; leave eval=false out")
    return made


def cells(made: dict[str, Any]) -> str:
    """A training's top-1, minutes of training alone, and of the whole."""
    return f"{100 * made['final/top1']:.2f} % | {made['final/training_minutes']:.2f} | {made['final/minutes']:.2f}"


def table(runs: dict[str, list[dict[str, Any]]], slow: str) -> str:
    """Markdown: medians of each recipe, and how many times sooner than `slow` it has ended."""
    columns = ("final/top1", "final/training_minutes", "final/minutes")
    medians = {
        recipe: {key: statistics.median(one[key] for one in made) for key in columns} for recipe, made in runs.items()
    }
    lines = ["| recipe | top-1 | minutes of training | minutes in all | times sooner |", "|---|---|---|---|---|"]
    for recipe, made in medians.items():
        sooner = medians[slow]["final/minutes"] / made["final/minutes"]
        lines.append(f"| {recipe} | {cells(made)} | {sooner:.2f} |")
    return "\n".join(lines)
