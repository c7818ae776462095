"""What a person sees while a run goes on: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shlex
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from resnet.config.optim import Lars
from resnet.config.run import Run
from resnet.config.track import Mlflow
from resnet.training import lr_find


def null_console() -> Console:
    """Where every rank but the first shows what it does."""
    return Console(quiet=True)


class Display:
    """`say` is a line that stays; `step` is the state of the loop, redrawn on a terminal and printed as a line elsewhere."""

    def __init__(self, total_steps: int, done: int, epochs: float, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.total, self.epochs = total_steps, epochs
        self.first, self.began = done, time.monotonic()
        self.bar = (
            Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
                refresh_per_second=4,
            )
            if self.console.is_terminal
            else None
        )
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task("train", total=total_steps, completed=done, epoch="", text="building")

    def say(self, text: str) -> None:
        """A line that stays."""
        (self.bar.console if self.bar else self.console).print(text, markup=False, emoji=False)

    def move(self, done: int) -> None:
        """The bar alone: cheap enough for every step."""
        if self.bar:
            self.bar.update(self.task, completed=done)

    def step(self, done: int, epoch: float, loss: float, lr: float, images_per_s: float | None) -> None:
        """New figures."""
        speed = "" if images_per_s is None else f"  {images_per_s:,.1f} images/s"
        text = f"loss {loss:.4f}  lr {lr:.4g}{speed}"
        if self.bar:
            self.bar.update(self.task, completed=done, epoch=f"{epoch:.1f}/{self.epochs:g}", text=text)
        else:
            left = (time.monotonic() - self.began) / max(done - self.first, 1) * (self.total - done)
            self.say(f"step {done}/{self.total}  epoch {epoch:.2f}/{self.epochs:g}  {text}  left {clock(left)}")

    def scores(self, done: int, epoch: float, scores: Any, averaged: Any = None) -> None:
        """An evaluation's result (`scores.Scores`), and that of the averaged weights."""
        for found, of in ((scores, ""), (averaged, "averaged weights: ")):
            if found:
                self.say(
                    f"epoch {epoch:g}  step {done}  {of}top-1 {100 * found.top1:.2f} %  top-5 {100 * found.top5:.2f} %  "
                    f"loss {found.loss:.4f}  ({found.seen:,} images)"
                )

    def close(self) -> None:
        """Give the terminal back."""
        if self.bar:
            self.bar.stop()
            self.bar = None


def headline(run: Run, plan: Any, source: Any, device: str, done: int) -> list[str]:
    """What is about to happen, and on what (`schedule.Plan`, `data.Source`)."""
    lines = [
        f"{run.model.name}, {run.optim.name}, {run.schedule.name}, {run.dtype.name}, batch {run.batch} on {device}",
        f"{run.data.name}: {source.train_images:,} training and {source.eval_images:,} evaluation images of "
        f"{run.data.classes} classes, {run.data.image_size} px",
        f"{plan.total_steps:,} steps, {plan.steps_per_epoch:,} to the epoch, peak lr {run.optim.lr:g}; folder {run.out}",
    ]
    rows = run.optim.rows if isinstance(run.optim, Lars) else []
    row = next((row for row in rows if row.up_to is None or run.batch <= row.up_to), None)
    if row and row.lr == run.optim.lr:
        batches = f"up to {row.up_to}" if row.up_to else "above all others"
        lines.append(f"LARS lr, warm-up and decay: the row of global batches {batches} ({row.source})")
    if run.progressive.start_size is not None:
        grown = f"{run.progressive.start_epochs:g} to {run.progressive.end_epochs:g}"
        lines.append(f"training crops of {plan.size(0)} px, growing over the epochs {grown} to {run.train_size}")
    if done:
        lines.append(f"going on from step {done:,}, epoch {plan.epoch(done):.2f}")
    return lines


def report(made: dict[str, Any], run: Run) -> None:
    """Print the result (`result.conclusion`) as a small table, and how to open the MLflow store."""
    if made["status"] == lr_find.STATUS:
        print(lr_find.told(made))
        return
    uri = run.track.uri if isinstance(run.track, Mlflow) else None

    def percent(share: float | None) -> str:
        return "not evaluated" if share is None else f"{100 * share:.2f} %"

    mean, median = made["final/images_per_s"], made["final/images_per_s_median"]
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("top-1", percent(made["final/top1"]))
    table.add_row("top-5", percent(made["eval/top5"]))
    table.add_row("images/s", "-" if mean is None else f"{mean:,.1f} (steady median {median:,.1f})")
    digits = 1 if made["final/minutes"] >= 1 else 2
    trained, whole = made["final/training_minutes"], made["final/minutes"]
    table.add_row("minutes", f"{trained:.{digits}f} of training, {whole:.{digits}f} in all")
    table.add_row("run", Text(made["out"]))  # Text: a folder's brackets are no markup
    # As wide as it takes where there is no terminal: a path in one piece can be copied.
    Console(highlight=False, width=None if sys.stdout.isatty() else 10_000).print(table)
    if uri:
        local = uri.startswith("sqlite:")
        print(f"Compare runs: mlflow ui --backend-store-uri {shlex.quote(uri)}" if local else f"Compare runs at {uri}")


def clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
