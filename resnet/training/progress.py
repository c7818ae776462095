"""What a person sees of a run: one live line on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import math
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from resnet import uris
from resnet.config.data import Cache, Data, Records
from resnet.config.help import recipe_notes
from resnet.config.optim import Lars
from resnet.config.run import Run
from resnet.config.track import Mlflow, Track

if TYPE_CHECKING:  # the process that launches ranks prints report(), and does without TensorFlow
    from resnet.data.source import Source
    from resnet.optim.schedule import Plan
    from resnet.training.evaluation import EvalResult

SHOWN_WAIT = 0.05  # share of the time; less is no news
RANGE_TEST_CSV, RANGE_TEST_PNG = "lr_find.csv", "lr_find.png"


def null_console() -> Console:
    return Console(quiet=True)


class Display:
    """`print` writes a line that stays; the state of the loop is redrawn on a terminal and printed as a line elsewhere."""

    def __init__(self, total_steps: int, epochs: float, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.total, self.epochs = total_steps, epochs
        # After the first graph call, which traces the graph: it says nothing about the time left.
        self.first: tuple[int, float] | None = None  # (step, time)
        self.bar: Progress | None = None
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
                refresh_per_second=4,
            )
            self.bar.start()
            self.task = self.bar.add_task("train", total=total_steps, epoch="", text="building")

    def print(self, text: str) -> None:
        (self.bar.console if self.bar else self.console).print(text, markup=False, emoji=False)

    def advance(self, step: int) -> None:
        """Move the bar alone: cheap enough for every step."""
        self.first = self.first or (step, time.monotonic())
        if self.bar:
            self.bar.update(self.task, completed=step)

    def train_line(
        self,
        step: int,
        epoch: float,
        loss: float,
        lr: float,
        images_per_s: float | None,
        data_wait: float | None = None,
        top1: float = math.nan,
    ) -> None:
        """Show new figures; `data_wait`, in 0..1, if it is worth a word."""
        speed = "" if images_per_s is None else f"  {images_per_s:,.1f} images/s"
        wait = f"  {data_wait:.0%} waiting for data" if data_wait and data_wait >= SHOWN_WAIT else ""
        accuracy = "" if math.isnan(top1) else f"  top-1 {100 * top1:.1f} %"
        text = f"loss {loss:.4f}{accuracy}  lr {lr:.4g}{speed}{wait}"
        if self.bar:
            self.bar.update(self.task, completed=step, epoch=f"{epoch:.1f}/{self.epochs:g}", text=text)
            return
        first, since = self.first or (step, 0.0)
        seconds = (time.monotonic() - since) / max(step - first, 1) * (self.total - step)
        left = f"  left {clock(seconds)}" if step > first else ""
        self.print(f"step {step}/{self.total}  epoch {epoch:.2f}/{self.epochs:g}  {text}{left}")

    def evaluation_lines(self, step: int, epoch: float, result: EvalResult, averaged: EvalResult | None = None) -> None:
        """Print the result of an evaluation, and that of the averaged weights."""
        for scores, prefix in ((result, ""), (averaged, "averaged weights: ")):
            if scores:
                self.print(
                    f"epoch {epoch:g}  step {step}  {prefix}top-1 {100 * scores.top1:.2f} %  "
                    f"top-5 {100 * scores.top5:.2f} %  loss {scores.loss:.4f}  ({scores.images:,} images)"
                )

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


def headline(run: Run, plan: Plan, source: Source, device: str, step: int) -> list[str]:
    """What is about to happen, from `step` on, and on what."""
    lines = [
        f"{run.model.name}, {run.optim.name}, {run.schedule.name}, {run.dtype.name}, batch {run.batch} on {device}",
        f"{run.data.name}: {source.train_images:,} training and {source.eval_images:,} evaluation images of "
        f"{run.data.classes} classes, {run.data.image_size} px",
        f"{plan.total_steps:,} steps, {plan.steps_per_epoch:,} to the epoch, peak lr {run.optim.lr:g}; folder {run.out}",
    ]
    lines += [*cached(run.data, source), *tracking(run.track)]
    rows = run.optim.rows if isinstance(run.optim, Lars) else []
    row = next((row for row in rows if row.up_to is None or run.batch <= row.up_to), None)
    if row and row.lr == run.optim.lr:
        batches = f"up to {row.up_to}" if row.up_to else "above all others"
        same = {
            "warm-up": row.warmup_epochs == run.schedule.warmup_epochs,
            "decay": row.weight_decay == run.optim.weight_decay,
        }
        columns = ", ".join(["lr", *(name for name in same if same[name])])
        lines.append(f"LARS {columns}: the row of global batches {batches} ({row.source})")
    if run.progressive.start_size is not None:
        epochs = f"{run.progressive.start_epochs:g} to {run.progressive.end_epochs:g}"
        lines.append(f"training crops of {plan.size(0)} px, growing over the epochs {epochs} to {run.train_size}")
    lines += recipe_notes(run)
    if step:
        lines.append(f"resuming at step {step:,}, epoch {plan.epoch(step):.2f}")
    return lines


def cached(settings: Data, source: Source) -> list[str]:
    """Where data.cache=disk stores what is read, and whether all of it has room."""
    if not isinstance(settings, Records) or settings.cache is not Cache.disk:
        return []
    assert source.train_reader and source.train_reader.disk and source.train and source.val
    gigabytes = (int(source.train.length.sum()) + int(source.val.length.sum())) / 1e9
    small = "" if gigabytes < settings.cache_gb else f", and the shards have {gigabytes:.3g} GB: some is read again"
    return [f"data.cache=disk: at most {settings.cache_gb:g} GB in {source.train_reader.disk.folder}{small}"]


def tracking(settings: Track) -> list[str]:
    """Where the metrics go, if MLflow's own variable names a store; and which of the two counts."""
    uri = uris.strip(uris.from_environment() or "")
    if not uri:
        return []
    if not isinstance(settings, Mlflow):
        return [f"{uris.TRACKING}={uri} is not used: track={settings.name}"]
    note = f"from {uris.TRACKING}" if settings.uri == uri else f"track.uri counts; {uris.TRACKING}={uri} is not used"
    return [f"MLflow: {settings.uri} ({note}), experiment {settings.experiment}"]


def report(content: dict[str, Any], run: Run) -> None:
    """Print the result of a run (the content of result.json) as a small table, and how to open the MLflow store."""
    if run.lr_find:
        print(
            f"suggested peak: optim.lr={content['suggested_lr']:.3g} (the averaged loss falls steepest at "
            f"{content['steepest_lr']:.3g} and is least at {content['least_loss_lr']:.3g}: the first, but at most a tenth of the "
            f"second)\n{Path(content['out']) / RANGE_TEST_PNG}, {RANGE_TEST_CSV} beside it; to train give another out="
        )
        return
    mean, median = content["final/images_per_s"], content["final/images_per_s_median"]
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, share in (("top-1", content["final/top1"]), ("top-5", content["eval/top5"])):
        table.add_row(name, "not evaluated" if share is None else f"{100 * share:.2f} %")
    table.add_row("images/s", "-" if mean is None else f"{mean:,.1f} (steady median {median:,.1f})")
    digits = 1 if content["final/minutes"] >= 1 else 2
    training, total = content["final/training_minutes"], content["final/minutes"]
    table.add_row("minutes", f"{training:.{digits}f} of training, {total:.{digits}f} in all")
    table.add_row("run", Text(content["out"]))  # Text: a folder's brackets are no markup
    # As wide as it takes where there is no terminal: a path in one piece can be copied.
    Console(highlight=False, width=None if sys.stdout.isatty() else 10_000).print(table)
    if isinstance(run.track, Mlflow):
        local = run.track.uri.startswith("sqlite:")
        command = f"Compare runs: mlflow ui --backend-store-uri {shlex.quote(run.track.uri)}"
        print(command if local else f"Compare runs at {run.track.uri}")


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
