"""One long training of a tiny network, watched from outside: what it holds at its end, and held after the first tenth."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from resnet import UserError
from resnet.bench.sides import machine
from resnet.cli import knob
from resnet.config.checks import check

BATCH, IMAGES = 32, 1437  # of the digits
LOOK_S = 0.5
HELD = {"memory, MB": 1e6, "open files": 1, "threads": 1}  # what is watched, and its unit


@dataclass(kw_only=True)
class Soak:
    """a long training: growth of memory, open files and threads from the end of its first tenth to its end"""

    steps: int = knob(20_000, "of the training")
    evaluations: int = knob(200, "spread over them, each of all images, with a checkpoint after it")
    checkpoints: int = knob(50, "spread over them, beside those")
    limit: float = knob(0.02, "share of itself by which any of them may grow; more is a failure")
    words: str = knob("", "more words, such as 'track=mlflow cluster=cpu2'")
    out: str | None = knob(None, "folder of the training; a temporary one if left out")

    def __post_init__(self) -> None:
        for name in ("evaluations", "checkpoints"):
            check(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        most = max(self.evaluations, self.checkpoints, 100)
        check(self.steps >= most, "steps", self.steps, f"must be at least {most}")
        check(self.limit > 0, "limit", self.limit, "must be above 0")


@dataclass(frozen=True)
class Look:
    """What the training and its processes held when it was at `step`; in the order of HELD."""

    step: int
    held: tuple[float, float, float]


def measure(asked: Soak) -> None:
    """Print the table. Raises UserError if the training fails, or what it holds grows by more than the limit."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(asked.out or scratch, "soak")
        began = time.monotonic()
        looks = list(watched(command(asked, out), out))
        minutes = (time.monotonic() - began) / 60
        saved = sum(1 for line in lines(out) if "eval/top1" in line)
    print(
        f"{machine()}; {asked.steps:,} steps, {saved} evaluations, {minutes:.1f} minutes, looked at {len(looks)} times\n"
    )
    early, late = held(looks, 0.05, 0.1, asked.steps), held(looks, 0.95, 1.0, asked.steps)
    print(table(early, late, looks))
    for name, before, after in zip(HELD, early, late, strict=True):
        if after / before - 1 > asked.limit:
            raise UserError(
                f"limit={asked.limit:g}: {name} grown by {after / before - 1:.3f} of itself; something is kept that should not be"
            )


def command(asked: Soak, out: Path) -> list[str]:
    """The training."""
    per_epoch = IMAGES // BATCH
    words = [
        "model=tiny",
        "data=digits",
        f"batch={BATCH}",
        f"epochs={asked.steps / per_epoch + 1:.0f}",
        "schedule=constant",
        f"steps={asked.steps}",
        f"eval_every_epochs={asked.steps / asked.evaluations / per_epoch}",
        "optim.lr=0.01",
        f"save_every_steps={asked.steps // asked.checkpoints}",
        "track=off",
    ]
    return [sys.executable, "-m", "resnet.train", *words, *asked.words.split(), f"out={out}"]


def watched(words: Sequence[str], out: Path) -> Iterator[Look]:
    """Run the training, and look at it until it has ended. Raises UserError if it fails."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        first = psutil.Process(process.pid)
        try:
            while process.poll() is None:
                step = int(max((line["step"] for line in lines(out, 4096)), default=0))
                with contextlib.suppress(psutil.Error):  # one has just ended
                    family = [first, *first.children(recursive=True)]
                    sums = (
                        sum(p.memory_info().rss for p in family),
                        sum(p.num_fds() for p in family),
                        sum(p.num_threads() for p in family),
                    )
                    if step:
                        yield Look(step, sums)
                time.sleep(LOOK_S)
        finally:
            process.kill()
        said = process.stderr.read() if process.stderr else ""
    if process.returncode:
        last = (said.strip().splitlines() or [f"exit status {process.returncode}, and not a word"])[-1]
        raise UserError(f"the training failed: {last}")


def lines(out: Path, end: int | None = None) -> Iterator[dict[str, float]]:
    """The lines of metrics.jsonl; only those in its last `end` bytes, if that is given."""
    with contextlib.suppress(FileNotFoundError), (out / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - (end or sys.maxsize)))
        for line in file:
            with contextlib.suppress(ValueError):  # torn at either end
                yield json.loads(line)


def held(looks: Sequence[Look], start: float, end: float, steps: int) -> list[float]:
    """Medians between these shares of the training."""
    parts = [look.held for look in looks if start * steps < look.step <= end * steps]
    if not parts:
        raise UserError(f"steps={steps}: too few to be looked at between {start:.0%} and {end:.0%} of them; give more")
    return [statistics.median(values) for values in zip(*parts, strict=True)]


def table(early: Sequence[float], late: Sequence[float], looks: Sequence[Look]) -> str:
    """Markdown."""
    rows = ["| | at 5 to 10 % of the steps | at 95 to 100 % | growth | most |", "|---|---|---|---|---|"]
    for number, (name, unit) in enumerate(HELD.items()):
        most = max(look.held[number] for look in looks)
        growth = f"{100 * (late[number] / early[number] - 1):+.2f} %"
        rows.append(
            f"| {name} | {early[number] / unit:,.0f} | {late[number] / unit:,.0f} | {growth} | {most / unit:,.0f} |"
        )
    return "\n".join(rows)
