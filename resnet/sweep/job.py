"""One run of a sweep: how it goes, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet import cli
from resnet.config.run import Run
from resnet.launch.forked import LOST
from resnet.rundir import metrics, result

GOAL, SPEED = "final/top1", "final/images_per_s"


@dataclass
class Job:
    """One run of a sweep; `varying` are the overrides that not all jobs share, `code` its exit status once it has one."""

    number: int
    run: Run
    varying: list[str]
    code: int | None = None
    note: str = ""  # why it did not end well, if not by its exit status
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
        if self.code in (None, cli.STOPPED, cli.INTERRUPTED, LOST):
            return "interrupted"
        if self.code == cli.PRUNED:
            return "pruned"
        return str(self.result.get("status", "failed"))

    @property
    def top1(self) -> float | None:
        """The final top-1 of a job that ended well, the best of a pruned one as far as follow() has read it."""
        return self.latest.get("best/top1") if self.code == cli.PRUNED else self.value(GOAL)

    def value(self, goal: str) -> float | None:
        """The metric of a goal, which stands with - before it if less is better."""
        value = self.result.get(goal.removeprefix("-"))
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    def loss(self, goal: str) -> float:
        """The metric of a goal as a number of which less is better; infinite without one."""
        value = self.value(goal)
        return math.inf if value is None else value if goal.startswith("-") else -value

    def follow(self) -> list[tuple[int, dict[str, float]]]:
        """(step, metrics) of each line that it has logged since the last call; `latest` has the last value of each metric."""
        try:
            with (self.out / metrics.FILE).open("rb") as file:
                file.seek(self.position)
                rows = []
                for line, self.position in metrics.lines(file):
                    if parsed := metrics.parse(line):
                        rows.append((parsed[0], parsed[2]))
                        self.latest.update(parsed[2])
                return rows
        except OSError:
            return []


def best(jobs: Sequence[Job], goal: str = GOAL) -> Job | None:
    """The best job by a goal, the first of several."""
    done = [job for job in jobs if job.value(goal) is not None]
    return min(done, key=lambda job: job.loss(goal), default=None)


def front(jobs: Sequence[Job], goals: Sequence[str]) -> list[Job]:
    """Pareto's front: the jobs with all goals, for which no other one is as good in each and better in one."""
    losses = [[job.loss(goal) for goal in goals] for job in jobs]

    def beaten(own: list[float]) -> bool:
        return any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in losses)

    return [job for job, own in zip(jobs, losses, strict=True) if math.inf not in own and not beaten(own)]


def table(jobs: Sequence[Job], goals: Sequence[str] = (GOAL,)) -> str:
    """Markdown: every job, the best by the first goal first, those without a result last; of several goals Pareto's front."""
    more = [goal.removeprefix("-") for goal in goals if goal.removeprefix("-") not in (GOAL, SPEED)]
    best_ones = front(jobs, goals) if len(goals) > 1 else []
    rows = []
    for job in jobs:
        content, status, loss, speed = job.result, job.status, job.loss(goals[0]), job.value(SPEED)
        if job.code == cli.PRUNED:
            job.follow()
            loss = math.inf if job.top1 is None else -job.top1
        top1 = job.top1
        if "suggested_lr" in content:
            status = f"suggests lr {content['suggested_lr']:.3g}"
        shown = ["-" if top1 is None else f"{100 * top1:.2f} %", "-" if speed is None else f"{speed:,.1f}"]
        shown += ["-" if (value := job.value(goal)) is None else f"{value:.4g}" for goal in more]
        shown += ["*" if job in best_ones else ""] * (len(goals) > 1)
        rows.append((loss, job.number, [str(job.number), " ".join(job.varying), *shown, status]))
    head = ["job", "overrides", "top-1", "images/s", *more, *["Pareto"] * (len(goals) > 1), "status"]
    body = [head, *(cells for _, _, cells in sorted(rows))]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in body]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
