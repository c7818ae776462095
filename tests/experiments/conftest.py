"""Runs that nobody trained: composed as real ones are, their figures made up, in folders and in an MLflow store."""

import json
import math
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from resnet import rundir
from resnet.config import fingerprint

WHEN = 1_700_000_000_000  # ms since 1970


@dataclass
class Made:
    """A run's folder, its configuration, and what is recorded of it: (step, {metric: value}), and how it ended."""

    out: Path
    run: object
    records: list
    final: dict


def made_up(run, out, steps_per_epoch, top1, images_per_s, minutes, reached=1.0):
    """Records of a run of which the share `reached` was trained; top-1 and figures at its end, if it got there."""
    noise = random.Random(f"{run.seed} {top1}")
    total = round(steps_per_epoch * run.epochs * reached)
    every = max(1, steps_per_epoch // 4)
    records = []
    for step in sorted({*range(every, total, every), *range(steps_per_epoch, total, steps_per_epoch), total}):
        epoch = step / steps_per_epoch
        done = (1 - math.exp(-5 * epoch / run.epochs)) / (1 - math.exp(-5))
        loss = 7 - 5 * done + noise.gauss(0, 0.05)
        records.append(
            (step, {"train/loss": loss, "train/lr": 0.1, "train/images_per_s": images_per_s, "train/epoch": epoch})
        )
        if step % steps_per_epoch == 0:
            score = top1 if step == total and reached == 1 else top1 * done + noise.gauss(0, 0.002)
            records.append((step, {"eval/top1": score, "eval/top5": min(1, score + 0.1), "eval/loss": 6 - 4.5 * done}))
    final = {
        "final/top1": top1,
        "final/images_per_s": images_per_s,
        "final/images_per_s_median": images_per_s + 1,
        "final/training_minutes": 0.9 * minutes,
        "final/minutes": minutes,
    }
    return Made(out, run, records, final if reached == 1 else {})


def kept(made):
    """Write the run's folder, as training does."""
    rundir.save(made.run, made.out)
    lines = [json.dumps({"step": step, "time_ms": WHEN + step, **metrics}) for step, metrics in made.records]
    (made.out / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if made.final:
        ended = {"status": "finished", "steps": made.records[-1][0], "epochs": made.run.epochs, **made.final}
        (made.out / "result.json").write_text(json.dumps(ended))
    return made


def shipped(client, experiment, made, name, status="FINISHED", **tags):
    """The same run in MLflow, by its own client; the id."""
    from mlflow.entities import Metric, Param, RunTag

    params = {knob: str(value)[:6000] for knob, value in fingerprint.flat(made.run).items()}
    info = client.create_run(experiment, start_time=WHEN, run_name=name, tags=tags).info
    listed = [Param(knob, value) for knob, value in params.items()]
    points = [(step, key, value) for step, metrics in made.records for key, value in metrics.items()]
    points += [(made.records[-1][0], key, value) for key, value in made.final.items()]
    metrics = [Metric(key, value, WHEN + step, step) for step, key, value in points]
    for first in range(0, max(len(listed), len(metrics)), 100):
        client.log_batch(
            info.run_id, metrics[first : first + 100], listed[first : first + 100], [RunTag("seen", "yes")]
        )
    client.set_terminated(info.run_id, status, end_time=WHEN + 10_000)
    return info.run_id


@pytest.fixture(scope="session")
def invent(run_at):
    """`invent(folder, (steps_per_epoch, top1, images_per_s, minutes), "recipe=...", reached=0.5)`: a run, in its folder too."""

    def make(out, figures, *words, reached=1.0):
        run = replace(run_at(out.parent, *words), out=str(out))
        return kept(made_up(run, out, *figures, reached=reached))

    return make


@pytest.fixture(scope="session")
def ship():
    return shipped


@pytest.fixture(scope="session")
def wait():
    """`wait(question, seconds)`: its first answer that is true."""

    def until(question, seconds):
        end = time.monotonic() + seconds
        while not (answer := question()):
            assert time.monotonic() < end, f"not within {seconds} s"
            time.sleep(0.2)
        return answer

    return until
