"""What ranks cost: the same share of work for one rank alone, for several processes, and for several ranks."""

from __future__ import annotations

import os
import statistics
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from resnet import UserError
from resnet.bench.result import NetworkKnobs, Result, Row, markdown_table, median_ratio
from resnet.bench.train import run_trainings, words_of
from resnet.cli import knob


@dataclass(kw_only=True)
class Scaling(NetworkKnobs):
    """scaling efficiency: ranks on one core each against one rank, with the same local batch"""

    ranks: int = knob(2, "number of ranks, each on its own core")
    batch: int = knob(8, "images per rank")
    size: int = knob(160, "side of the images, pixels")
    steps: int = knob(20, "steps of each training; the first is not counted")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(1, "ranks")
        self.check_above(2, "steps")


def measure(knobs: Scaling, result: Result) -> None:
    """Images/s of one rank, of as many processes as ranks that do not communicate, and of the ranks."""
    cores, many = sorted(os.sched_getaffinity(0)), knobs.ranks
    if len(cores) < many:
        raise UserError(f"ranks={many}: this process may use {len(cores)} cores; each rank takes one")
    result.about = (
        f"{knobs.model} {knobs.dtype}, {knobs.batch} synthetic images of {knobs.size} px a rank, a core a rank, trained by "
        "resnet.train. The limit is as many processes that do not communicate."
    )
    with tempfile.TemporaryDirectory() as place:

        def images_per_s(ranks: int, copies: int) -> float:
            """The sum over `copies` trainings at once, each of so many ranks, on a core a rank."""
            more = "log_every_steps=1", "track=off", f"cluster.ranks={ranks}", "cluster.threads=1"
            words = words_of(replace(knobs, batch=knobs.batch * ranks), knobs.steps, *more)
            jobs = [(words, Path(tempfile.mkdtemp(dir=place))) for _ in range(copies)]
            contents = run_trainings(jobs, [cores[copy * ranks : (copy + 1) * ranks] for copy in range(copies)])
            return sum(float(content["final/images_per_s_median"]) for content in contents)

        sides = {
            "1 rank": partial(images_per_s, 1, 1),
            f"{many} processes": partial(images_per_s, 1, many),
            f"{many} ranks": partial(images_per_s, many, 1),
        }
        rates = result.measure(sides, knobs.rounds, "images/s")
    alone, processes, together = rates.values()
    times = [many * one for one in alone]
    result.rows.append(Row(f"{many} ranks, images/s", together, times, f"{many} times 1 rank", processes))
    result.tables.append(table(rates, many))


def table(rates: dict[str, list[float]], ranks: int) -> str:
    """Markdown: images/s, and efficiency against one rank and against the separate processes; medians of the rounds."""
    alone, processes, _ = rates.values()
    rows = []
    for name, values in rates.items():
        times = 1 if values is alone else ranks
        to_alone = median_ratio(values, [times * one for one in alone])
        to_processes = "" if values is alone else f"{median_ratio(values, processes):.3f}"
        rows.append([name, f"{statistics.median(values):.2f}", f"{to_alone:.3f}", to_processes])
    return markdown_table(["", "images/s", "to 1 rank, times as many", "to separate processes"], rows)
