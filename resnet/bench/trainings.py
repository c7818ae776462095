"""Whole trainings, each `python -m resnet.train` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet import UserError
from resnet.rundir import result


def result_of(words: Sequence[str], out: Path, called: str = "a training") -> dict[str, Any]:
    """Train with these words in the folder `out`; the result. Raises UserError, with its last line, if it fails."""
    command = [sys.executable, "-m", "resnet.train", *words, f"out={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    made = result.read(out)
    if done.returncode or made is None:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"{called}: {said[-1] if said else f'exit status {done.returncode}, and not a word'}")
    return made


def words(asked: Any, steps: int, data: str = "synthetic", saved: int | None = None) -> list[str]:
    """Those of a training of so many steps that does nothing else; with `saved` it keeps a checkpoint every so many.

    `asked` has a model, dtype, batch and size. The images are synthetic, which cost nothing to read, or those of a folder.
    """
    images = ["data=synthetic"] if data == "synthetic" else ["data=imagenet", f"data.dir={data}"]
    return [
        f"model={asked.model}",
        f"dtype={asked.dtype}",
        f"batch={asked.batch}",
        *images,
        f"data.image_size={asked.size}",
        f"steps={steps}",
        f"epochs={steps}",
        "schedule=constant",
        "optim=sgd",
        "optim.lr=1e-4",
        "eval=false",
        f"save_every_steps={saved or 10 * steps}",
    ]


def times(out: Path) -> dict[int, float]:
    """Seconds since 1970 at which each step that was logged had been done."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["time_ms"] / 1000 for line in lines if "train/loss" in line}


def first_step_s(words: Sequence[str], out: Path) -> float:
    """Seconds from the start of a training's process to the end of its first step."""
    began = time.time()
    result_of(words, out)
    return min(times(out).values()) - began
