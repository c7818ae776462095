"""A whole training on JPEG shards against what its parts allow; evaluation against forward passes; the cost of checkpoints."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from resnet import UserError
from resnet.bench import images
from resnet.bench.result import NetworkKnobs, Result, Row
from resnet.bench.workers import Child
from resnet.cli import knob
from resnet.rundir import metrics
from resnet.rundir import result as result_file

PHOTOS = 64  # different ones
EPOCH_STEPS = 100  # for which the cost of a checkpoint is reported
STOP_S = 20  # for an interrupted training to save and end
ABOUT = """
resnet.train on shards of random JPEG (500x375, about 100 KB), and again on synthetic images, which gives
t_step; in the same rounds one core reads the same shards as training does, which gives t_input. Ideal, and the limit,
is 1 / (t_step + t_input / cores): all cores busy with either. Evaluation is a whole one of synthetic images, opened
anew each time, beside forward passes over one batch. Checkpoints: in one training a checkpoint every second stretch
of steps; the pair is the stretch after it, with all that is written meanwhile, and the next one.
"""


@dataclass(kw_only=True)
class Train(NetworkKnobs):
    """a whole training on JPEG shards against its parts; evaluation against forward passes; the cost of checkpoints"""

    steps: int = knob(50, "steps of each training; the first is not counted")
    eval_steps: int = knob(20, "batches per evaluation")
    stretch: int = knob(10, "steps with a checkpoint, and as many without")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "stretch")
        self.check_above(2, "steps", "eval_steps")


# --------------------------------------------------------------------------------------- trainings, for other benchmarks too
def run_trainings(
    jobs: Sequence[tuple[Sequence[str], Path]], cores: Sequence[Sequence[int]] = ()
) -> list[dict[str, Any]]:
    """The results of trainings that run at once: (words, out) of each, and the cores that it is bound to.

    Raises UserError, with its last line, if one fails, or did not do all its steps. Interrupted, it stops them.
    """
    processes: list[subprocess.Popen[str]] = []
    try:
        for (words, out), own in itertools.zip_longest(jobs, cores):
            command = [sys.executable, "-m", "resnet.train", *words, f"out={out}"]
            bind = partial(os.sched_setaffinity, 0, own) if own else None
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=bind
            )
            processes.append(process)
        errors = [process.communicate()[1].strip().splitlines() for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()
    results = []
    for (words, out), process, lines in zip(jobs, processes, errors, strict=True):
        content = result_file.read(out)
        if process.returncode or content is None:
            last = lines[-1] if lines else f"exit status {process.returncode} without a message"
            raise UserError(f"a training failed: {last}")
        check_training(words, out, content)
        results.append(content)
    return results


def check_training(words: Sequence[str], out: Path, content: dict[str, Any]) -> None:
    """Raise UserError unless a training did the steps that `words` name, on so many ranks, with finite losses."""
    knobs = dict(word.split("=", 1) for word in words)
    logs = max(1, len(list((out / "logs").glob("rank-*.json"))))
    losses = metrics.read(out / metrics.FILE).get("train/loss", {})  # without those that are not finite
    for what, count, right in (
        ("steps", content.get("steps"), int(knobs["steps"])),
        ("ranks", logs, int(knobs.get("cluster.ranks", 1))),
        ("last step with a finite loss", next(reversed(losses), None), int(knobs["steps"])),
    ):
        if count != right:
            raise UserError(f"a training was not what it should be: {what} {count}, not {right}")


def words_of(knobs: NetworkKnobs, steps: int, *more: str, data: Sequence[str] = (), save_every: int = 0) -> list[str]:
    """Words of a training of so many steps and nothing else."""
    length = f"steps={steps} epochs={steps} save_every_steps={save_every or 10 * steps}"
    return [*knobs.words(*data), *f"{length} schedule=constant optim=sgd optim.lr=1e-4 eval=false".split(), *more]


def step_times(out: Path) -> dict[int, float]:
    """time.time() at the end of each step whose loss is in <out>/metrics.jsonl."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["time_ms"] / 1000 for line in lines if "train/loss" in line}


# ----------------------------------------------------------------------------------------------------------- the benchmark
def measure(knobs: Train, result: Result) -> None:
    result.about = ABOUT
    for part in (end_to_end, evaluation, checkpoints):
        if not result.interrupted:
            part(knobs, result)


def ideal(step_rate: float, input_rate: float, cores: int) -> float:
    """Images/s where a step's images/s are `step_rate` on all cores, and one core reads `input_rate`."""
    return 1 / (1 / step_rate + 1 / (input_rate * cores))


def end_to_end(knobs: Train, result: Result) -> None:
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        folder = images.shards(Path(place, "shards"), images.photos(PHOTOS), knobs.steps * knobs.batch)

        def images_per_s(*data: str) -> float:
            job = words_of(knobs, knobs.steps, "track=off", data=data), Path(tempfile.mkdtemp(dir=place))
            return float(run_trainings([job])[0]["final/images_per_s"])

        words = ["read", str(folder), str(knobs.batch), str(knobs.size)]
        with Child("children", words, cores={cores[0]}) as reader:
            sides = {
                "shards": lambda: images_per_s("data=imagenet", f"data.dir={folder}"),
                "synthetic": images_per_s,
                "reading": lambda: knobs.batch / reader.step_time(knobs.steps),
            }
            rates = result.measure(sides, knobs.rounds, f"{knobs.label} training, images/s")
    best = [ideal(*pair, len(cores)) for pair in zip(rates["synthetic"], rates["reading"], strict=True)]
    what = f"{knobs.label} training on JPEG, images/s"
    result.rows += [
        Row(what, rates["shards"], best, "ideal of its parts", best),
        Row(what, rates["shards"], rates["synthetic"], "on synthetic images"),
        Row("reading, images/s on one core", rates["reading"]),
    ]


def evaluation(knobs: Train, result: Result) -> None:
    """A whole evaluation beside forward passes, and the graphs that all of them took."""
    with Child("children", ["evaluate", " ".join(knobs.words())]) as child:
        sides = {side: partial(child.step_time, knobs.eval_steps, side) for side in ("evaluation", "forward")}
        seconds = result.measure(sides, knobs.rounds, f"{knobs.label} evaluation, s a batch")
    ours, forward = ([knobs.batch / spent for spent in seconds[side]] for side in sides)
    what = f"graphs traced in {len(ours) + 1} evaluations"
    result.rows += [
        Row(f"{knobs.label} evaluation, images/s", ours, forward, "forward passes alone", forward),
        Row(what, [float(child.facts["graphs"])], less_is_better=True),
    ]


def checkpoints(knobs: Train, result: Result) -> None:
    """An epoch of EPOCH_STEPS with one checkpoint beside one without; the pairs that there are of an interrupted training."""
    every = 2 * knobs.stretch
    more = "track=off", f"log_every_steps={knobs.stretch}"
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "run")
        try:
            run_trainings([(words_of(knobs, every * (knobs.rounds + 1), *more, save_every=every), out)])
        except KeyboardInterrupt:
            if not (out / "metrics.jsonl").exists():
                raise
            result.interrupted = True
        times = step_times(out)
        saved = {int(path.name.rpartition("-")[2]) for path in (out / "checkpoints").glob("step-*")}
    if not result.interrupted and every * (knobs.rounds + 1) not in saved:
        raise UserError(
            f"the checkpoint of step {every * (knobs.rounds + 1)} was not written: there are {sorted(saved)}"
        )
    ours, without = [], []
    for start in range(every, every * knobs.rounds + 1, every):
        if start + every in times:  # the end of the second stretch
            before, between, after = (times[start + number * knobs.stretch] for number in range(3))
            without.append((after - between) * EPOCH_STEPS / knobs.stretch)
            ours.append(without[-1] + (between - before) - (after - between))
    if result.interrupted:
        result.notes.append(f"Interrupted: checkpoints: {len(ours)} of {knobs.rounds} rounds.")
    if ours:
        what = f"{knobs.label}, {EPOCH_STEPS} steps with a checkpoint, s"
        result.rows.append(Row(what, ours, without, "without one", less_is_better=True))
