"""How long a start takes: to the first finished step against a plain Keras script, to --help, and to a refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from resnet import UserError
from resnet.bench import trainings
from resnet.bench.result import Kept, Outcome, Row, at_most
from resnet.bench.sides import facts, interleaved
from resnet.bench.turns import ROOT
from resnet.cli import knob
from resnet.config.checks import check

HELP, REFUSED = ["--help"], ["optim.momentm=0.9"]  # a typing error, as people make them
ANSWER_S = 1.0  # the goal for both
ABOUT = """
Wall time from the start of a process, everything read from the disk's cache. The first step: resnet.train on
synthetic images with track=off, and with MLflow in a new SQLite file as is its default, beside a plain script with
the same network, model.compile and model.fit on random images. The limit is importing TensorFlow, and nothing else.
Answers: resnet.train --help, and with a knob that does not exist.
"""


@dataclass(kw_only=True)
class Start(Kept):
    """process start to first finished step, against a plain Keras script with the same network; and --help and refusals"""

    model: str = knob("resnet50", "network")
    dtype: Literal["bf16", "fp32"] = knob("fp32", "arithmetic")
    batch: int = knob(32, "images a step")
    size: int = knob(224, "side of the images, pixels")
    rounds: int = knob(5, "interleaved; ratios are medians over them")

    def __post_init__(self) -> None:
        for name in ("batch", "rounds"):
            check(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        check(self.size >= 32, "size", self.size, "must be at least 32 pixels")


def measure(asked: Start) -> Outcome:
    """Both parts."""
    return Outcome(ABOUT, [*first_steps(asked), *answers(asked)], facts())


def first_steps(asked: Start) -> list[Row]:
    """To the end of the first step."""
    network = row_of(asked.model)
    with tempfile.TemporaryDirectory() as place:
        number = iter(range(10**6))

        def ours(*words: str) -> float:
            return trainings.first_step_s([*trainings.words(asked, 1), *words], Path(place, str(next(number))))

        sides: dict[str, Callable[[], float]] = {
            "ours": lambda: ours("track=off"),
            "with MLflow": lambda: ours(f"track.uri=sqlite:///{place}/{next(number)}.db", "track.log_model=false"),
            "keras": lambda: keras_s([network, asked.dtype, str(asked.batch), str(asked.size)]),
            "import": lambda: wall_s_of([sys.executable, "-c", "import tensorflow"], 0),
        }
        seconds = interleaved(sides, asked.rounds, f"{asked.model} {asked.dtype} first step, s")
    return [
        Row(
            f"{asked.model} {asked.dtype}, start to first step {how}, s",
            seconds[side],
            seconds["keras"],
            "a plain Keras script",
            at_most(1.0),
            seconds["import"],
            less_is_better=True,
        )
        for side, how in (("ours", "with track=off"), ("with MLflow", "with MLflow"))
    ]


def row_of(model: str) -> str:
    """The network's row of conf/model, as JSON."""
    from resnet.config import compose

    row = asdict(compose.for_inference([f"model={model}"]).model)
    return json.dumps({**row, "block": row["block"].name})


def keras_s(words: Sequence[str]) -> float:
    """Seconds from the start of the plain script to the end of its first step."""
    began = time.time()
    _, done = wall_s([sys.executable, "-m", "resnet.benchmarks.keras_start", *words], 0, str(ROOT))
    return float(done.stdout.strip().splitlines()[-1]) - began


def wall_s(
    command: Sequence[str], status: int, path: str | None = None
) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds of a whole process, and what it said. Raises UserError unless it ends with this status."""
    env = {**os.environ, "PYTHONPATH": path} if path else None
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    spent = time.monotonic() - began
    if done.returncode != status:
        last = (done.stderr.strip().splitlines() or ["not a word"])[-1]
        raise UserError(f"{' '.join(command[1:4])}: exit status {done.returncode}, not {status}: {last}")
    return spent, done


def wall_s_of(command: Sequence[str], status: int) -> float:
    """The seconds alone."""
    return wall_s(command, status)[0]


def answers(asked: Start) -> list[Row]:
    """--help and a refusal, and how many modules of TensorFlow they imported."""
    command = [sys.executable, "-m", "resnet.train"]
    cases = (("--help", HELP, 0), ("a refused configuration", REFUSED, 1))
    sides = {name: partial(wall_s_of, [*command, *words], status) for name, words, status in cases}
    seconds = interleaved(sides, asked.rounds, "answers, s")
    rows = [Row(f"{name}, s", seconds[name], goal=at_most(ANSWER_S), less_is_better=True) for name in sides]
    for name, words, status in cases:
        count = float(imported("tensorflow", words, status))
        rows.append(Row(f"{name}, modules of TensorFlow imported", [count], goal=at_most(0), less_is_better=True))
    return rows


def imported(package: str, words: Sequence[str], status: int) -> int:
    """How many modules of a package `python -m resnet.train` imports with these words."""
    _, done = wall_s([sys.executable, "-X", "importtime", "-m", "resnet.train", *words], status)
    names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    return sum(name == package or name.startswith(f"{package}.") for name in names)
