"""How long a start takes: to the end of the first step against a plain Keras script, to --help, and to a refusal."""

from __future__ import annotations

import json
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
from resnet.bench.result import NetworkKnobs, Result, Row
from resnet.bench.train import run_trainings, step_times, words_of
from resnet.bench.workers import Child
from resnet.cli import knob
from resnet.config import compose

# Name, words and exit status; the second is a typing error, as people make them.
ANSWERS = (("--help", ["--help"], 0), ("a refused configuration", ["optim.momentm=0.9"], 1))
IN_BOTH = "nesterov"  # --help lists every knob, a refusal those of the group
ABOUT = """
Wall time from the start of a process, everything read from the disk's cache. The first step: resnet.train on
synthetic images with track=off, and with MLflow in a new SQLite file as is its default, beside a plain script with
the same network, model.compile and model.fit on random images. The limit is importing TensorFlow, and nothing else.
Answers: resnet.train --help, and with a knob that does not exist.
"""


@dataclass(kw_only=True)
class Start(NetworkKnobs):
    """process start to first finished step, against a plain Keras script with the same network; and --help and refusals"""

    dtype: Literal["bf16", "fp32"] = knob("fp32", "arithmetic")


def measure(knobs: Start, result: Result) -> None:
    result.about = ABOUT
    first_steps(knobs, result)
    if not result.interrupted:
        answers(knobs, result)


def first_steps(knobs: Start, result: Result) -> None:
    """To the end of the first step."""
    row = asdict(compose.for_inference([f"model={knobs.model}"]).model)
    network = json.dumps(row, default=lambda option: option.name)
    with tempfile.TemporaryDirectory() as place:

        def ours(*words: str) -> float:
            out, began = Path(tempfile.mkdtemp(dir=place)), time.time()
            run_trainings([(words_of(knobs, 1, *words), out)])
            return step_times(out)[1] - began

        def mlflow() -> float:
            return ours(f"track.uri=sqlite:///{tempfile.mkdtemp(dir=place)}/mlflow.db", "track.log_model=false")

        def keras() -> float:
            began = time.time()
            words = ["start", network, knobs.dtype, str(knobs.batch), str(knobs.size)]
            with Child("keras_child", words) as child:
                return float(child.facts["first_step_at"]) - began

        sides: dict[str, Callable[[], float]] = {
            "track=off": lambda: ours("track=off"),
            "MLflow": mlflow,
            "keras": keras,
            "import": lambda: run_process([sys.executable, "-c", "import tensorflow"], 0)[0],
        }
        seconds = result.measure(sides, knobs.rounds, f"{knobs.label} first step, s")
    theirs, limit = seconds["keras"], seconds["import"]
    for side in ("track=off", "MLflow"):
        what = f"{knobs.label}, start to first step with {side}, s"
        result.rows.append(Row(what, seconds[side], theirs, "a plain Keras script", limit, less_is_better=True))


def answers(knobs: Start, result: Result) -> None:
    """--help and a refusal, and how many modules of TensorFlow they imported."""

    def answer_s(words: Sequence[str], status: int) -> float:
        seconds, output = run_process([sys.executable, "-m", "resnet.train", *words], status)
        if IN_BOTH not in output:
            raise UserError(f"resnet.train {' '.join(words)}: does not answer with {IN_BOTH}")
        return seconds

    sides = {name: partial(answer_s, words, status) for name, words, status in ANSWERS}
    seconds = result.measure(sides, knobs.rounds, "answers, s")
    result.rows += [Row(f"{name}, s", seconds[name], less_is_better=True) for name in sides]
    for name, words, status in ANSWERS:
        count = float(imported("tensorflow", words, status))
        result.rows.append(Row(f"{name}, modules of TensorFlow imported", [count], less_is_better=True))


def imported(package: str, words: Sequence[str], status: int) -> int:
    """How many modules of a package `python -m resnet.train` imports with these words."""
    _, output = run_process([sys.executable, "-X", "importtime", "-m", "resnet.train", *words], status)
    names = [line.rpartition("|")[2].strip() for line in output.splitlines() if line.startswith("import time:")]
    if "resnet.cli" not in names:
        raise UserError("python -X importtime does not list the modules that are imported")
    return sum(name == package or name.startswith(f"{package}.") for name in names)


def run_process(command: Sequence[str], status: int) -> tuple[float, str]:
    """Seconds of a whole process, and what it printed. Raises UserError unless it ends with this status."""
    began = time.monotonic()
    process = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if process.returncode != status:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(command[1:4])}: exit status {process.returncode}, not {status}: {last}")
    return seconds, process.stdout + process.stderr
