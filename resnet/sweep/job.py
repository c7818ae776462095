"""One run of a sweep: how it goes, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet import cli
from resnet.config.run import Run
from resnet.rundir import metrics, result

GOAL = "final/top1"


@dataclass
class Job:
    """One run of a sweep; `varying` are the overrides that not all jobs share, `code` its exit status once it has one."""

    number: int
    run: Run
    varying: list[str]
    code: int | None = None
    note: str = ""  # why it did not end well, if not by its exit status
    trial: int | None = None  # of a search: its number in the study
    latest: dict[str, float] = field(default_factory=dict)  # metrics, as far as follow() has read them
    position: int = 0  # in metrics.jsonl

    @property
    def out(self) -> Path:
        return Path(self.run.out)

    @property
    def name(self) -> str:
        return f"job {self.number} ({' '.join(self.varying)})"

    @property
    def log(self) -> Path:
        """What it prints, if several jobs run at a time."""
        return self.out / "output.log"

    @property
    def result(self) -> dict[str, Any]:
        """Content of its result.json, if it ended well."""
        return (result.read(self.out) or {}) if self.code == cli.DONE else {}

    @property
    def status(self) -> str:
        if self.code in (None, cli.STOPPED, cli.INTERRUPTED):
            return "interrupted"
        if self.code == cli.PRUNED:
            return "pruned"
        return str(self.result.get("status", "failed"))

    def follow(self) -> list[dict[str, float]]:
        """The metrics of each line that it has logged since the last call; `latest` has the last value of each."""
        try:
            with (self.out / metrics.FILE).open("rb") as file:
                file.seek(self.position)
                rows = []
                for line, self.position in metrics.lines(file):
                    if parsed := metrics.parse(line):
                        rows.append(parsed[2])
                        self.latest.update(parsed[2])
                return rows
        except OSError:
            return []


def best(jobs: Sequence[Job]) -> Job | None:
    """The job with the highest top-1, the first of several."""
    return max(
        (job for job in jobs if job.result.get(GOAL) is not None), key=lambda job: float(job.result[GOAL]), default=None
    )


def table(jobs: Sequence[Job]) -> str:
    """Markdown: every job, the best top-1 first, those without one last."""
    rows = []
    for job in jobs:
        content, status = job.result, job.status
        top1, speed = content.get("final/top1"), content.get("final/images_per_s")
        if job.code == cli.PRUNED:
            job.follow()
            top1 = job.latest.get("best/top1")
        if "suggested_lr" in content:
            status = f"suggests lr {content['suggested_lr']:.3g}"
        shown = ("-" if top1 is None else f"{100 * top1:.2f} %", "-" if speed is None else f"{speed:,.1f}")
        cells = [str(job.number), " ".join(job.varying), *shown, status]
        rows.append((1.0 if top1 is None else -top1, job.number, cells))
    body = [["job", "overrides", "top-1", "images/s", "status"], *(cells for _, _, cells in sorted(rows))]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in body]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
