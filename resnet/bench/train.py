"""A whole training on JPEG shards against what its parts allow; evaluation against forward passes; the cost of checkpoints."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from resnet.bench import images, trainings
from resnet.bench.result import Kept, Outcome, Row, at_least, at_most
from resnet.bench.sides import facts, interleaved
from resnet.bench.turns import Child, entered
from resnet.cli import knob
from resnet.config.checks import check

PHOTOS = 64  # different ones
EPOCH_STEPS = 100  # in which the goal for checkpoints is told
ABOUT = """
resnet.train on shards of JPEG made on the spot (500x375, about 100 KB), and again on synthetic images, which gives
t_step; in the same rounds one core reads the same shards as training does, which gives t_input. Ideal, and the limit,
is 1 / (t_step + t_input / cores): all cores busy with either. Evaluation is a whole one of synthetic images, opened
anew each time, beside forward passes over one batch. Checkpoints: in one training a checkpoint every second stretch
of steps; the pair is the stretch after it, with all that is written meanwhile, and the next one.
"""


@dataclass(kw_only=True)
class Train(Kept):
    """a whole training on JPEG shards against the ideal of its parts; evaluation against forward passes; what checkpoints cost"""

    model: str = knob("resnet50", "network")
    dtype: Literal["bf16", "fp32"] = knob("bf16", "arithmetic")
    batch: int = knob(32, "images a step")
    size: int = knob(224, "side of the images, pixels")
    rounds: int = knob(5, "interleaved; ratios are medians over them")
    steps: int = knob(50, "of each training; the first is not counted")
    eval_steps: int = knob(20, "batches of each evaluation")
    stretch: int = knob(10, "steps beside a checkpoint, and as many without")

    def __post_init__(self) -> None:
        for name in ("batch", "rounds", "stretch"):
            check(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        for name in ("steps", "eval_steps"):
            check(getattr(self, name) > 2, name, getattr(self, name), "must be above 2")
        check(self.size >= 32, "size", self.size, "must be at least 32 pixels")

    @property
    def label(self) -> str:
        """Of its rows."""
        return f"{self.model} {self.dtype}"


def measure(asked: Train) -> Outcome:
    """The three of them, one after the other."""
    rows = [*end_to_end(asked), *evaluation(asked), checkpoints(asked)]
    return Outcome(ABOUT, rows, facts())


def ideal(step_rate: float, input_rate: float, cores: int) -> float:
    """Images/s where a step's images/s are `step_rate` on all cores, and one core reads `input_rate`."""
    return 1 / (1 / step_rate + 1 / (input_rate * cores))


def end_to_end(asked: Train) -> list[Row]:
    """Training on shards, and what could be."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        folder = images.shards(Path(place, "shards"), images.several(PHOTOS), asked.steps * asked.batch)
        number = iter(range(10**6))

        def images_per_s(data: str) -> float:
            words = [*trainings.words(asked, asked.steps, data), "track=off"]
            return float(trainings.result_of(words, Path(place, str(next(number))))["final/images_per_s"])

        reading = Child("our_input", [str(folder), str(asked.batch), str(asked.size)], cores={cores[0]})
        with entered(("reading on one core", reading)):
            sides: dict[str, Callable[[], float]] = {
                "shards": lambda: images_per_s(str(folder)),
                "synthetic": lambda: images_per_s("synthetic"),
                "reading": lambda: asked.steps * asked.batch / reading.turn(asked.steps),
            }
            rates = interleaved(sides, asked.rounds, f"{asked.label} training, images/s")
    best = [ideal(*pair, len(cores)) for pair in zip(rates["synthetic"], rates["reading"], strict=True)]
    what = f"{asked.label} training on JPEG, images/s"
    return [
        Row(what, rates["shards"], best, "ideal of its parts", at_least(0.95), best),
        Row(what, rates["shards"], rates["synthetic"], "on synthetic images"),
        Row("reading, images/s on one core", rates["reading"]),
    ]


def evaluation(asked: Train) -> list[Row]:
    """A whole evaluation beside forward passes, and the graphs that all of them took."""
    words = f"model={asked.model} dtype={asked.dtype} batch={asked.batch} data=synthetic data.image_size={asked.size}"
    sides = {name: Child("our_evaluation", [words, name]) for name in ("evaluation", "forward")}
    with entered(*sides.items()) as children:
        turns = {name: partial(child.pace, asked.eval_steps) for name, child in children.items()}
        seconds = interleaved(turns, asked.rounds, f"{asked.label} evaluation, s a batch")
        graphs = [float(children["evaluation"].facts["graphs"])]
    ours, forward = ([asked.batch / spent for spent in seconds[side]] for side in ("evaluation", "forward"))
    return [
        Row(f"{asked.label} evaluation, images/s", ours, forward, "forward passes alone", at_least(0.9), forward),
        Row(f"graphs traced in {asked.rounds + 1} evaluations", graphs, goal=at_most(1), less_is_better=True),
    ]


def checkpoints(asked: Train) -> Row:
    """An epoch of EPOCH_STEPS with one checkpoint beside one without."""
    every = 2 * asked.stretch
    steps = every * (asked.rounds + 1)
    words = trainings.words(asked, steps, saved=every)
    with tempfile.TemporaryDirectory() as place:
        trainings.result_of([*words, "track=off", f"log_every_steps={asked.stretch}"], Path(place, "run"))
        times = trainings.times(Path(place, "run"))
    pairs = [stretches(times, number * every, asked.stretch) for number in range(1, asked.rounds + 1)]
    without = [free * EPOCH_STEPS / asked.stretch for _, free in pairs]
    ours = [epoch + saving - free for epoch, (saving, free) in zip(without, pairs, strict=True)]
    return Row(
        f"{asked.label}, {EPOCH_STEPS} steps with a checkpoint, s",
        ours,
        without,
        "without one",
        at_most(1.01),
        less_is_better=True,
    )


def stretches(times: dict[int, float], saved: int, stretch: int) -> tuple[float, float]:
    """Seconds of the stretch of steps after the checkpoint of step `saved`, and of the next one."""
    before, between, after = (times[saved + number * stretch] for number in range(3))
    return between - before, after - between
