"""`python -m resnet.report`, or `python -m experiments.report` in a checkout: runs beside the published results."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet import UserError, __version__, cli
from resnet.cli import knob
from resnet.config.track import Mlflow
from resnet.report import figures, groups, load, page, published, tables, tracked
from resnet.report.plots import standing_alone
from resnet.report.run import Training

PARTS = {"report.html", "report.md", "runs.csv", "spread.csv", "curves.csv", "loss.svg", "top1.svg", "curves"}

CONTROL = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 127])  # characters that no file may hold, least of all SVG
CURVE = re.compile(r"\d{3,}-.+-(loss|top1)\.svg")

HELP = """Report on trainings beside the published results: python -m experiments.report [WHAT ...] [knob=value ...]

WHAT is a run's folder, a folder that holds some (runs), an experiment in MLflow, or the id of a run or of a sweep there;
several of them together. Left out: the experiment `{experiment}`, in which training records.

{knobs}

Written: report.html (one file, to be shown to others), report.md, runs.csv (a row a run, numbers in full), spread.csv (mean and
sample standard deviation over seeds), curves.csv, loss.svg and top1.svg (all runs), curves/ (each run)."""


@dataclass(kw_only=True)
class Report:
    """What is asked for beside the runs."""

    out: str = knob("report", "folder to write; an earlier report in it is replaced")
    uri: str | None = knob(None, "MLflow's store: a SQLite file or http://host:port (default: ./mlflow.db)")
    title: str | None = knob(None, "headline (default: WHAT)")


def go(words: Sequence[str]) -> None:
    """The command without the reporting of errors."""
    what, given = separated(words)
    asked = cli.parse(Report, cli.split(given), "experiments.report")
    out = Path(asked.out).expanduser()
    check_out(out)
    what = what or [Mlflow.experiment]
    found = groups.groups(trainings(what, asked.uri or "mlflow.db"), published.rows())
    replace(out, files(asked.title or f"Report: {', '.join(what)}", found))
    runs, seeds = sum(len(group.runs) for group in found), len(found)
    print(
        f"{runs} run{'s'[: runs != 1]} of {seeds} configuration{'s'[: seeds != 1]}: {out / 'report.html'}, report.md, "
        "runs.csv, spread.csv, curves.csv, loss.svg, top1.svg, curves/"
    )


def separated(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what to report on, knob=value words); a folder whose name has a = in it is a folder."""
    given = [word for word in words if re.match(r"\w+=", word) and not Path(word).expanduser().is_dir()]
    return [word for word in words if word not in given], given


def trainings(what: Iterable[str], uri: str) -> list[Training]:
    """Those that the words name. Raises UserError if one names none. MLflow is asked only for what is no folder of runs."""
    found: list[Training] = []
    for word in what:
        place = Path(word).expanduser()
        here = load.trainings(place) if place.is_dir() else []
        if not here and place.is_dir() and ("/" in word or word.startswith(".")):
            raise UserError(f"{word}: no run in this folder, nor in folders up to {load.DEPTH} deep in it")
        if not here and not place.is_dir() and "/" in word:
            raise UserError(f"{word}: no such folder")
        found += here or tracked.trainings([word], uri)
    return found


def files(title: str, found: Sequence[groups.Group]) -> dict[str, str]:
    """Every file of the report by its name."""
    when = time.strftime("%Y-%m-%d %H:%M %Z")
    runs = sum(len(group.runs) for group in found)
    made = f"{runs} run{'s'[: runs != 1]}, {when}, resnet-experiments {__version__}"
    blocks = tables.blocks(found)
    pictures = {f"{name}.svg": svg for name, svg in figures.overlaid(found).items() if svg}
    number = 0
    for group in found:
        for run in group.runs:
            number += 1
            for name, svg in figures.alone(group, run).items():
                if svg:
                    pictures[f"curves/{number:03d}-{slug(run.name)}-{name}.svg"] = svg
    return {
        "report.html": page.html(title, made, blocks, found),
        "report.md": tables.markdown(title, blocks, [name for name in pictures if "/" not in name]),
        "runs.csv": tables.runs_csv(found),
        "spread.csv": tables.spread_csv(found),
        "curves.csv": tables.curves_csv(found),
        **{name: standing_alone(svg) for name, svg in pictures.items()},
    }


def slug(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60] or "run"


def check_out(out: Path) -> None:
    """Raise UserError unless a report may be written there."""
    if out.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UserError(f"out={out}: the working folder is in it; give a folder of the report's own")
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out}: is a file; give a folder")
    others = sorted({path.name for path in out.iterdir()} - PARTS) if out.is_dir() else []
    others += [f"curves/{path.name}" for path in (out / "curves").glob("*") if not CURVE.fullmatch(path.name)]
    if others:
        raise UserError(f"out={out}: holds {others[0]}, which is no part of a report; give another folder")


def replace(out: Path, content: dict[str, str]) -> None:
    """Make `out` a folder of these files: beside it first, then renamed, so that it is whole or as it was before."""
    out = out.resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            fresh, old = Path(scratch) / "fresh", Path(scratch) / "old"
            for name, text in content.items():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                (fresh / name).write_text(
                    text.translate(CONTROL), encoding="utf-8", errors="backslashreplace", newline=""
                )
            if out.exists():
                out.rename(old)
            try:
                fresh.rename(out)
            except OSError:
                if old.exists():
                    old.rename(out)
                raise
    except OSError as error:
        raise UserError(f"out={out}: cannot be written to ({error.strerror}); give another folder") from error


def main() -> int:
    """Exit status."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        told = "\n".join(cli.help_lines(Report, list(cli.hints(Report))))
        print(HELP.format(experiment=Mlflow.experiment, knobs=told))
        return 0
    try:
        go(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
