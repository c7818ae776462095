"""What tracking and progress cost a loop of ten steps a second: CPU time, of the loop's thread and of the whole process."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resnet import UserError
from resnet.bench.result import Kept, Outcome, Row, at_most
from resnet.bench.sides import facts, interleaved
from resnet.cli import knob
from resnet.config.checks import check
from resnet.config.track import Mlflow

READY_S = 180.0  # for MLflow to be imported and a run to be there


@dataclass(kw_only=True)
class Tracking(Kept):
    """metrics, MLflow (SQLite) and progress beside steps that do nothing else: their share of a step's time"""

    steps: int = knob(100, "of each round")
    step_ms: float = knob(100.0, "how long a step takes, ms")
    rounds: int = knob(5, "interleaved; the table shows medians")

    def __post_init__(self) -> None:
        for name in ("steps", "step_ms", "rounds"):
            check(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")


def measure(asked: Tracking) -> Outcome:
    """What lines cost, beside nothing."""
    from rich.console import Console

    from resnet.track import tracker as track
    from resnet.training import progress  # which imports TensorFlow

    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        own: dict[str, list[float]] = {}
        made = iter(range(10**6))

        def cpu_s(name: str, every: int) -> Callable[[], float]:
            """CPU seconds a step of this process, with a line logged every so many steps; 0: neither tracking nor progress."""

            def once() -> float:
                out = Path(folder, str(next(made)))
                out.mkdir()
                (out / "config.yaml").touch()
                with Path("/dev/null").open("w") as nowhere:
                    tracker = track.Tracker(out, Mlflow(uri=uri, run_name=name), {}, {}) if every else None
                    display = (
                        progress.Display(asked.steps, 0, 1, Console(file=nowhere, force_terminal=True))
                        if every
                        else None
                    )
                    if tracker:
                        tracker.log(0, {"train/loss": 1.0})  # MLflow waits for it
                    waited = time.monotonic()
                    while tracker and tracker.run_id is None:
                        if time.monotonic() - waited > READY_S:
                            raise UserError(f"MLflow has made no run within {READY_S:.0f} s")
                        time.sleep(0.1)
                    time.sleep(1)  # what follows the opening of a run
                    whole, mine = time.process_time(), 0.0
                    for step in range(1, asked.steps + 1):
                        time.sleep(asked.step_ms / 1000)
                        began = time.thread_time()
                        if tracker and display:
                            display.move(step)
                            if step % every == 0:
                                tracker.log(
                                    step,
                                    dict.fromkeys(("train/loss", "train/lr", "train/images_per_s", "train/epoch"), 1.0),
                                )
                                display.step(step, 1.0, 1.0, 1.0, 1.0)
                        mine += time.thread_time() - began
                    used = time.process_time() - whole
                    if tracker and display:
                        display.close()
                        tracker.close("FINISHED")
                own.setdefault(name, []).append(mine / asked.steps)
                return used / asked.steps

            return once

        sides = {
            "nothing": cpu_s("nothing", 0),
            "a line every 50 steps": cpu_s("a line every 50 steps", 50),
            "a line every step": cpu_s("a line every step", 1),
        }
        used = interleaved(sides, asked.rounds, "CPU seconds a step")
    step_s = asked.step_ms / 1000
    rows = [
        Row(
            f"step with {name}, s",
            [step_s + mine - idle for mine, idle in zip(used[name], used["nothing"], strict=True)],
            [step_s] * asked.rounds,
            "nothing",
            at_most(1.01),
            less_is_better=True,
        )
        for name in used
        if name != "nothing"
    ]
    about = (
        f"{asked.steps} steps of {asked.step_ms:g} ms that do nothing else, median of {asked.rounds} rounds. What the whole "
        "process computes beyond that is counted as if it held the step up."
    )
    return Outcome(about, rows, facts(), [table(used, own, step_s)])


def table(used: dict[str, list[float]], own: dict[str, list[float]], step_s: float) -> str:
    """Markdown: CPU time a step, what is more than with nothing, and its share of the step."""
    idle = statistics.median(used["nothing"])
    lines = ["| | loop's thread, us a step | whole process, us a step | share of a step |", "|---|---|---|---|"]
    for name, values in used.items():
        more = statistics.median(values) - idle
        lines.append(
            f"| {name} | {1e6 * statistics.median(own[name]):.0f} | {1e6 * more:.0f} | {100 * more / step_s:.2f} % |"
        )
    return "\n".join(lines)
