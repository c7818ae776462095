"""What every benchmark comes to: rows of two sides and their ratio, beside a goal; as a page of Markdown and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from resnet import UserError
from resnet.cli import knob

HEAD = "| what | ours | theirs | against | ratio | goal | | of the limit |"


@dataclass(kw_only=True)
class Kept:
    """The knobs of every benchmark: where its outcome goes, beside the terminal."""

    out: str | None = knob(None, "folder for the outcome as JSON and Markdown")
    track: Literal["off", "mlflow"] = knob("off", "mlflow: enter it in ./mlflow.db too, experiment `bench`")


@dataclass(frozen=True)
class Goal:
    """What a ratio should be; of a row without another side, what its own value should be."""

    sense: Literal[">=", "<="]
    value: float

    def verdict(self, reached: float) -> str:
        """`reached`, or by how much it was missed."""
        short = self.value - reached if self.sense == ">=" else reached - self.value
        return "reached" if short <= 0 else f"missed by {brief(short)}"


def at_least(value: float) -> Goal:
    """The goal of being no less."""
    return Goal(">=", value)


def at_most(value: float) -> Goal:
    """The goal of being no more."""
    return Goal("<=", value)


@dataclass(frozen=True)
class Row:
    """Two sides, by rounds: the values of a round were measured one right after the other. `theirs` is empty for ours alone."""

    what: str  # with the unit
    ours: Sequence[float]
    theirs: Sequence[float] = ()
    against: str = ""
    goal: Goal | None = None
    limit: Sequence[float] = ()  # what the machine could do at best, by rounds
    less_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' own ratios, ours to theirs."""
        return paired(self.ours, self.theirs) if self.theirs else None

    @property
    def fraction(self) -> float | None:
        """How much of the machine's limit ours came to, the median over the rounds; 1 is all of it."""
        if not self.limit:
            return None
        return paired(self.limit, self.ours) if self.less_is_better else paired(self.ours, self.limit)

    @property
    def verdict(self) -> str:
        """Of the goal, if there is one."""
        reached = statistics.median(self.ours) if self.ratio is None else self.ratio
        return self.goal.verdict(reached) if self.goal else ""

    def cells(self) -> list[str]:
        """In the order of HEAD."""
        ratio, fraction = ("" if value is None else f"{value:.3f}" for value in (self.ratio, self.fraction))
        goal = f"{self.goal.sense} {self.goal.value:g}" if self.goal else ""
        theirs = brief(statistics.median(self.theirs)) if self.theirs else ""
        return [
            self.what,
            brief(statistics.median(self.ours)),
            theirs,
            self.against,
            ratio,
            goal,
            self.verdict,
            fraction,
        ]

    def plain(self) -> dict[str, Any]:
        """For JSON: what was measured, and what it comes to."""
        return {**asdict(self), "ratio": self.ratio, "fraction_of_limit": self.fraction, "verdict": self.verdict}


def paired(mine: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios of pairs."""
    return statistics.median(one / other for one, other in zip(mine, others, strict=True))


def brief(value: float) -> str:
    """Four digits, or the whole number where it has more."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class Outcome:
    """One benchmark, measured. `about` says what is compared, and how, in sentences."""

    about: str
    rows: Sequence[Row]
    facts: dict[str, str]  # of the machine and what ran on it
    tables: Sequence[str] = ()  # more of it, in Markdown
    notes: Sequence[str] = ()  # what else is to be known, such as a side left out
    command: str = field(default="")

    def markdown(self) -> str:
        """A page, or a part of one."""
        parts = [
            f"`{self.command}`",
            " ".join(self.about.split()),
            "; ".join(f"{name} {value}" for name, value in self.facts.items()),
        ]
        if self.rows:
            rows = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
            parts.append("\n".join([*rows, *(f"| {' | '.join(row.cells())} |" for row in self.rows)]))
        return "\n\n".join([*parts, *self.tables, *self.notes])

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "rows": [row.plain() for row in self.rows]}


def write(outcome: Outcome, folder: Path, name: str) -> list[Path]:
    """<name>.json and <name>.md in `folder`, which is made. Raises UserError where it can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = [folder / f"{name}.json", folder / f"{name}.md"]
        made[0].write_text(json.dumps(outcome.plain(), indent=1) + "\n")
        made[1].write_text(f"# {name}\n\n{outcome.markdown()}\n")
    except OSError as error:
        raise UserError(f"out={folder}: cannot be written to ({error.strerror}); give another folder") from error
    return made
