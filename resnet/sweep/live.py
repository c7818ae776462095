"""How a sweep goes: one live table on a terminal, a line for each start and end elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from resnet.config.run import Run
from resnet.sweep.job import Job

REFRESH_S = 0.5
MOST = 30  # rows: more do not fit on a terminal


class Display:
    """What a person sees of several jobs at a time."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.total = total
        self.shown_at = -math.inf
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        if self.live:
            self.live.start()

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, emoji=False)

    def show(self, running: Sequence[Job], finished: int) -> None:
        """Redraw the table, now and then."""
        if self.live and time.monotonic() - self.shown_at > REFRESH_S:
            self.shown_at = time.monotonic()
            title = f"{finished} of {self.total} finished, {len(running)} running"
            self.live.update(table(running, title), refresh=True)

    def close(self) -> None:
        if self.live:
            self.live.stop()
            self.live = None


def table(jobs: Sequence[Job], title: str) -> Table:
    view = Table(title=title, title_justify="left", box=None)
    for name in ("job", "overrides", "epoch", "top-1", "images/s", "left"):
        view.add_column(name, no_wrap=True, overflow="ellipsis", justify="left" if name == "overrides" else "right")
    for job in jobs[:MOST]:
        view.add_row(str(job.number), " ".join(job.varying), *progress(job.run, job.latest))
    return view


def progress(run: Run, latest: dict[str, float]) -> tuple[str, str, str, str]:
    """(epoch, best top-1, images/s, time left) for people, from the newest metrics of a run."""
    epoch, speed, top1 = latest.get("train/epoch"), latest.get("train/images_per_s"), latest.get("best/top1")
    images, left = latest.get("train/images"), ""
    if epoch and images and speed:
        total = min(run.epochs * images / epoch, (run.steps or math.inf) * run.batch)
        seconds = round(max(0.0, total - images) / speed)
        left = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return (
        "" if epoch is None else f"{epoch:.2f}/{run.epochs:g}",
        "" if top1 is None else f"{100 * top1:.2f} %",
        "" if speed is None else f"{speed:,.1f}",
        left,
    )
