"""What every benchmark measures: rows of two sides and their ratio, as a page of Markdown and as JSON."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from resnet import files
from resnet.cli import knob
from resnet.config.checks import Settings

HEAD = "what", "ours", "theirs", "against", "ratio", "of the limit"


@dataclass(kw_only=True)
class Knobs(Settings):
    rounds: int = knob(5, "interleaved rounds; results are medians")
    out: str | None = knob(None, "folder for the result as JSON and Markdown")

    def __post_init__(self) -> None:
        self.check_above(0, "rounds")


@dataclass(kw_only=True)
class NetworkKnobs(Knobs):
    model: str = knob("resnet50", "network")
    dtype: Literal["bf16", "fp32"] = knob("bf16", "arithmetic")
    batch: int = knob(32, "images per step")
    size: int = knob(224, "side of the images, pixels")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "batch")
        self.check("size", self.size >= 32, "must be at least 32 pixels")

    @property
    def label(self) -> str:
        return f"{self.model} {self.dtype}"

    def words(self, *data: str) -> list[str]:
        """Words of a training of this network, on synthetic images, which cost nothing to read, unless `data` says others."""
        network = f"model={self.model}", f"dtype={self.dtype}", f"batch={self.batch}"
        return [*network, *(data or ["data=synthetic"]), f"data.image_size={self.size}"]


@dataclass(frozen=True)
class Row:
    """Two sides by rounds: the values of a round were measured one right after the other. `theirs` is empty for ours alone."""

    what: str  # with the unit
    ours: Sequence[float]
    theirs: Sequence[float] = ()
    against: str = ""
    limit: Sequence[float] = ()  # the best that the machine could do, by rounds
    less_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' own ratios, ours to theirs."""
        return median_ratio(self.ours, self.theirs) if self.theirs else None

    @property
    def fraction(self) -> float | None:
        """The share of the machine's limit that ours reaches, the median over the rounds; 1 is all of it."""
        best, worst = (self.limit, self.ours) if self.less_is_better else (self.ours, self.limit)
        return median_ratio(best, worst) if self.limit else None

    def cells(self) -> list[str]:
        """In the order of HEAD."""
        ratio, fraction = ("" if value is None else f"{value:.3f}" for value in (self.ratio, self.fraction))
        ours, theirs = (brief(statistics.median(side)) if side else "" for side in (self.ours, self.theirs))
        return [self.what, ours, theirs, self.against, ratio, fraction]


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios of pairs."""
    return statistics.median(one / other for one, other in zip(values, others, strict=True))


def brief(value: float) -> str:
    """Four digits, or the whole number where it has more."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells under their titles."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


@dataclass
class Result:
    """A benchmark's result, filled in while it runs: what an interruption leaves is printed as well."""

    command: str = ""
    about: str = ""  # what is compared, and how, in sentences
    rows: list[Row] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)  # of the machine and its software
    tables: list[str] = field(default_factory=list)  # more, in Markdown
    notes: list[str] = field(default_factory=list)  # such as a side that was left out
    interrupted: bool = False

    def measure(self, sides: Mapping[str, Callable[[], float]], rounds: int, what: str) -> dict[str, list[float]]:
        """The values of every side, measured once a round, so that a busy machine disturbs all of them alike.

        Each round is reported on stderr. Ctrl-C ends it: the complete rounds are returned, and `interrupted` is set. Raises
        KeyboardInterrupt if there is none.
        """
        values: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(1, rounds + 1):
            try:
                for name, side in sides.items():
                    values[name].append(side())
            except KeyboardInterrupt:
                if number == 1:
                    raise
                self.interrupted = True
                self.notes.append(f"Interrupted: {what}: {number - 1} of {rounds} rounds.")
                return {name: measured[: number - 1] for name, measured in values.items()}
            newest = ", ".join(f"{name} {measured[-1]:.4g}" for name, measured in values.items())
            print(f"{what}, round {number} of {rounds}: {newest}", file=sys.stderr, flush=True)
        return values

    def markdown(self) -> str:
        """A page, or a part of one."""
        facts = "; ".join(f"{name} {value}" for name, value in self.facts.items())
        rows = [markdown_table(HEAD, (row.cells() for row in self.rows))] if self.rows else []
        return "\n\n".join([f"`{self.command}`", " ".join(self.about.split()), facts, *rows, *self.tables, *self.notes])

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write <name>.json and <name>.md in `folder`, which is created. Raises UserError where it can't be."""
        rows = [{**asdict(row), "ratio": row.ratio, "fraction_of_limit": row.fraction} for row in self.rows]
        paths = [folder / f"{name}.json", folder / f"{name}.md"]
        with files.writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            paths[0].write_text(json.dumps({**asdict(self), "rows": rows}, indent=1) + "\n")
            paths[1].write_text(f"# {name}\n\n{self.markdown()}\n")
        return paths
