"""Sweeps: jobs side by side, what a job costs beside its training, pruning, and what many jobs leave in the sweep's process."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import psutil

from resnet import UserError, shell
from resnet.bench.result import Knobs, Result, Row
from resnet.cli import knob
from resnet.rundir import result as results

TINY = "model=tiny", "recipe=quickstart", "batch=64", "track=off"
SPACE = (
    "optim.lr=tag(log,interval(0.003,0.3))",
    "optim.weight_decay=tag(log,interval(1e-5,1e-2))",
    "label_smoothing=0.0,0.05,0.1",
)
WARM = 20  # jobs after which the sweep's process has what it needs
ABOUT = """
All jobs train the network `tiny` with the recipe `quickstart` on the digits, track=off. jobs: one after the other, and several
at a time; a job's cost is the time that one more job takes, less the time of its training. search: the space of sweep=asha,
with its pruner and without, at random, so that both have the same trials. many: jobs of one step, and the sweep's process
after the first 20 and at the end.
"""


@dataclass(kw_only=True)
class Sweep(Knobs):
    """sweeps: jobs side by side, the cost of a job, a search with pruning and without, and many jobs"""

    part: Literal["all", "jobs", "search", "many"] = knob("all", "what is measured")
    jobs: int = knob(2, "jobs at a time")
    count: int = knob(8, "jobs of a sweep")
    epochs: int = knob(4, "epochs of such a job")
    trials: int = knob(16, "jobs of a search")
    search_epochs: int = knob(40, "epochs of a job of a search that is not pruned")
    prune_from: int = knob(8, "the first evaluation of a job after which it may be pruned")
    reduction_factor: int = knob(4, "one job in so many goes on")
    many: int = knob(200, "jobs of one step")
    rounds: int = knob(3, "interleaved rounds, and seeds of the search")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "epochs", "search_epochs", "prune_from", "trials")
        self.check_above(1, "jobs", "count", "reduction_factor")
        self.check("many", self.many > WARM, f"must be above {WARM}")


def measure(knobs: Sweep, result: Result) -> None:
    result.about = ABOUT
    for part, work in {"jobs": jobs, "search": search, "many": many}.items():
        if knobs.part in ("all", part) and not result.interrupted:
            with tempfile.TemporaryDirectory() as place:
                work(knobs, result, (Path(place) / str(number) for number in itertools.count()))


def jobs(knobs: Sweep, result: Result, outs: Iterator[Path]) -> None:
    """Several jobs at a time against one, and the cost of a job beside its training."""
    training: list[float] = []  # s of a job, by rounds

    def sweep(count: int, at_once: int) -> float:
        out = next(outs)
        seeds = ",".join(str(seed) for seed in range(1, count + 1))
        words = [f"epochs={knobs.epochs}", "schedule.warmup_epochs=1", f"seed={seeds}", f"sweep.jobs={at_once}"]
        seconds = run_sweep(out, *TINY, *words)
        if (count, at_once) == (knobs.count, 1):
            minutes = [float(one["final/training_minutes"]) for one in finished(out, count)]
            training.append(60 * statistics.mean(minutes))
        return seconds

    sides = {
        "one after the other": partial(sweep, knobs.count, 1),
        f"{knobs.jobs} at a time": partial(sweep, knobs.count, knobs.jobs),
        "one job": partial(sweep, 1, 1),
    }
    seconds = result.measure(sides, knobs.rounds, f"sweep of {knobs.count} jobs, s")
    one_by_one, together, single = seconds.values()
    what = f"{knobs.count} jobs, {knobs.jobs} at a time, s"
    result.rows.append(Row(what, together, one_by_one, "one after the other", less_is_better=True))
    each = [(many - one) / (knobs.count - 1) for many, one in zip(one_by_one, single, strict=True)]
    cost = [all_in - trained for all_in, trained in zip(each, training, strict=False)]
    result.rows.append(Row("one more job, s", each, less_is_better=True))
    result.rows.append(Row("one more job without its training, s", cost, less_is_better=True))


def search(knobs: Sweep, result: Result, outs: Iterator[Path]) -> None:
    """A search with pruning against the same without: its time, and the best top-1 that it has."""
    best: dict[str, list[float]] = {"null": [], "halving": []}
    pruned: list[int] = []

    def sweep(pruner: str) -> float:
        out, seed = next(outs), 1 + len(best[pruner])
        words = [f"epochs={knobs.search_epochs}", "eval_every_epochs=1", f"sweep.trials={knobs.trials}", *SPACE]
        words += ["sweep.sampler=random", f"sweep.jobs={knobs.jobs}", f"seed={seed}"]
        if pruner != "null":
            words += [f"sweep.pruner={pruner}", f"sweep.prune_from={knobs.prune_from}"]
            words += [f"sweep.reduction_factor={knobs.reduction_factor}"]
        seconds = run_sweep(out, *TINY, *words)
        contents = finished(out, None)
        best[pruner].append(100 * max(float(one["final/top1"]) for one in contents))
        if pruner != "null":
            pruned.append(knobs.trials - len(contents))
        return seconds

    sides = {"without pruning": partial(sweep, "null"), "pruned": partial(sweep, "halving")}
    seconds = result.measure(sides, knobs.rounds, f"search of {knobs.trials} jobs, s")
    rounds = len(seconds["pruned"])
    what = f"pruned search of {knobs.trials} jobs"
    result.rows.append(
        Row(f"{what}, s", seconds["pruned"], seconds["without pruning"], "not pruned", less_is_better=True)
    )
    result.rows.append(Row(f"{what}, best top-1, %", best["halving"][:rounds], best["null"][:rounds], "not pruned"))
    figures = "; ".join(
        f"seed {seed}: {ours:.2f} % against {theirs:.2f} %, {count} jobs pruned"
        for seed, (ours, theirs, count) in enumerate(zip(best["halving"], best["null"], pruned, strict=False), 1)
    )
    result.notes.append(f"Best top-1 by seeds, pruned against not pruned: {figures}.")


def many(knobs: Sweep, result: Result, outs: Iterator[Path]) -> None:
    """Open files, threads and memory of the sweep's process after WARM jobs, and at its end."""
    out = next(outs)
    seeds = ",".join(str(seed) for seed in range(1, knobs.many + 1))
    words = ["-m", *TINY, "steps=1", "eval=false", f"seed={seeds}", f"sweep.jobs={knobs.jobs}", f"out={out}"]
    samples: list[tuple[int, int, float]] = []
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", "resnet.train", *words], stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                if WARM <= len(list(out.glob("*/result.json"))) < knobs.many:  # before it draws the picture
                    one = psutil.Process(process.pid)
                    samples.append((one.num_fds(), one.num_threads(), one.memory_info().rss / 2**20))
                time.sleep(1)
        finally:
            process.terminate()
            process.wait()
    count = len(finished(out, knobs.many))
    for what, before, after in zip(("open files", "threads", "memory, MiB"), samples[0], samples[-1], strict=True):
        name = f"{what} of the sweep's process after {count} jobs"
        result.rows.append(Row(name, [after], [before], f"after {WARM}", less_is_better=True))


def run_sweep(out: Path, *words: str) -> float:
    """Seconds of a whole sweep. Raises UserError with its last line if it fails."""
    began = time.monotonic()
    command = [sys.executable, "-m", "resnet.train", "-m", *words, shell.override("out", out)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(words)}: exit status {process.returncode}: {last}")
    return time.monotonic() - began


def finished(out: Path, count: int | None) -> list[dict[str, float]]:
    """The results of the jobs that finished. Raises UserError unless they are `count`, if that is known."""
    contents = [content for job in sorted(out.glob("*/result.json")) if (content := results.read(job.parent))]
    if not contents or (count is not None and len(contents) != count):
        raise UserError(f"{len(contents)} jobs of {count} finished")
    return contents
