"""`python -m resnet.report`, or `python -m experiments.report` in a checkout: runs beside the published results."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet import UserError, __version__, cli, files, home
from resnet.cli import knob
from resnet.config.track import Mlflow

FILES = {"report.html", "report.md", "runs.csv", "spread.csv", "curves.csv", "loss.svg", "top1.svg", "curves"}
CURVE = re.compile(r"\d{3,}-.+-(loss|top1)\.svg")
CONTROL = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 127])  # characters that no file may hold, least of all SVG

HELP = """Compare trainings with the published results: python -m experiments.report [WHAT ...] [knob=value ...]

WHAT is a run's folder, a folder of runs, an MLflow experiment, or the id of an MLflow run or sweep; several are compared
together. Default: the experiment `{experiment}`, in which training logs.

{knobs}

Written: report.html (a single file), report.md, runs.csv (one row per run, full precision), spread.csv (mean and
sample standard deviation over seeds), curves.csv, loss.svg and top1.svg (all runs), curves/ (each run)."""


@dataclass(kw_only=True)
class Report:
    """The command's knobs."""

    out: str = knob("report", "folder to write; an earlier report in it is replaced")
    uri: str | None = knob(None, "MLflow's store: a SQLite file or http://host:port (default: ./mlflow.db)")
    title: str | None = knob(None, "headline (default: WHAT)")


def write(words: Sequence[str]) -> None:
    """Write the report that the words of the command line ask for."""
    from resnet.report import load, tables

    knobs = [word for word in words if re.match(r"\w+=", word) and not home.expand(word).is_dir()]
    what = [word for word in words if word not in knobs] or [Mlflow.experiment]
    settings = cli.parse(Report, cli.split(knobs), "experiments.report")
    out = home.expand(settings.out)
    check_out(out)
    runs = tables.run_table(load.trainings(what, settings.uri or "mlflow.db"))
    replace(out, contents(settings.title or f"Report: {', '.join(what)}", runs))
    configurations = runs["configuration"].nunique()
    print(
        f"{len(runs)} run{'s'[: len(runs) != 1]} of {configurations} configuration{'s'[: configurations != 1]}: "
        f"{out / 'report.html'}, report.md, runs.csv, spread.csv, curves.csv, loss.svg, top1.svg, curves/"
    )


def contents(title: str, runs: Any) -> dict[str, str]:
    """Every file of the report by its name."""
    from resnet.report import page, plots, tables

    spread = tables.spread_table(runs)
    rows = list(tables.rows(runs, spread))
    overlay = plots.overlay(runs)
    singles = [plots.single(run) for run in runs["training"]]
    charts = {f"{metric}.svg": svg for metric, svg in overlay.items() if svg}
    when = time.strftime("%Y-%m-%d %H:%M %Z")
    subtitle = f"{len(runs)} run{'s'[: len(runs) != 1]}, {when}, resnet-experiments {__version__}"
    texts = {
        "report.html": page.html(title, subtitle, rows, runs, overlay, singles),
        "report.md": tables.markdown(title, rows, list(charts)),
        **tables.csv_files(runs, spread),
        **charts,
    }
    for count, (name, single) in enumerate(zip(runs["run"], singles, strict=True), 1):
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60] or "run"
        texts |= {f"curves/{count:03d}-{slug}-{metric}.svg": svg for metric, svg in single.items() if svg}
    return texts


def check_out(out: Path) -> None:
    """Raise UserError unless a report may be written there."""
    if out.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UserError(f"out={out}: the working folder is in it; give a folder of the report's own")
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out}: is a file; give a folder")
    others = sorted({path.name for path in out.iterdir()} - FILES) if out.is_dir() else []
    others += [f"curves/{path.name}" for path in (out / "curves").glob("*") if not CURVE.fullmatch(path.name)]
    if others:
        raise UserError(f"out={out}: holds {others[0]}, which is no part of a report; give another folder")


def replace(out: Path, contents: dict[str, str]) -> None:
    """Make `out` a folder of these files: written beside it, then renamed, so that it is whole or as it was before."""
    try:
        with files.atomic_dir(out.resolve(), replace=True) as fresh:
            (fresh / "curves").mkdir()
            for name, text in contents.items():
                text = text.translate(CONTROL)
                (fresh / name).write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as error:
        raise UserError(f"out={out}: cannot be written to ({error.strerror}); give another folder") from error


def main() -> None:
    """The command."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        knobs = "\n".join(cli.help_lines(Report, list(cli.hints(Report))))
        print(HELP.format(experiment=Mlflow.experiment, knobs=knobs))
        return
    with cli.reported():
        write(sys.argv[1:])


if __name__ == "__main__":
    main()
