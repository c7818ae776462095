"""Every benchmark, each in a process of its own, and one page of them all."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnet import UserError
from resnet.cli import knob

PAGE = "all.md"
SMALL = "model=tiny", "size=32", "batch=8", "rounds=2"
# A name, the command and its words, and those that make it small. The long training `soak` is no comparison, and left out.
BENCHMARKS: list[tuple[str, str, Sequence[str], Sequence[str]]] = [
    ("step bf16", "step", ["dtype=bf16"], [*SMALL, "steps=3"]),
    ("step fp32", "step", ["dtype=fp32"], [*SMALL, "steps=3", "against=keras"]),
    ("step resnext50 bf16", "step", ["model=resnext50", "dtype=bf16", "against=keras,timm"], []),
    ("step resnext50 fp32", "step", ["model=resnext50", "dtype=fp32", "against=keras,timm"], []),
    ("input", "input", [], ["images=64", "batch=16", "rounds=2"]),
    ("train", "train", [], [*SMALL, "steps=5", "eval_steps=3", "stretch=3"]),
    ("start", "start", [], SMALL),
    ("track", "track", [], ["steps=10", "step_ms=10", "rounds=2"]),
    ("scaling", "scaling", [], [*SMALL, "steps=3"]),
    ("accuracy", "accuracy", [], ["seeds=1", "words=model=tiny data=digits dtype=fp32 batch=64 steps=2"]),
]
FULL_ONLY = "step resnext50 bf16", "step resnext50 fp32"


@dataclass(kw_only=True)
class Everything:
    """all of these but soak, one after the other, as one page: out/all.md"""

    out: str = knob("bench", "folder for the page, and for the outcome of each as JSON and Markdown")
    quick: bool = knob(False, "small ones, that end in minutes and say little")
    track: Literal["off", "mlflow"] = knob("off", "mlflow: enter each in ./mlflow.db too, experiment `bench`")
    torch_python: str | None = knob(None, "Python that has torch and timm; timm is left out without")


def measure(asked: Everything) -> None:
    """Write the page, anew after each. Raises UserError at the end if one of them failed."""
    out = Path(asked.out)
    parts: list[str] = []
    failed: list[str] = []
    for name, command, words, small in BENCHMARKS:
        if asked.quick and name in FULL_ONLY:
            continue
        folder = out / name.replace(" ", "-")
        given = [*words, *(small if asked.quick else []), f"track={asked.track}"]
        if command == "step" and asked.torch_python:
            given.append(f"torch_python={asked.torch_python}")
        print(f"bench {name}", file=sys.stderr, flush=True)
        said = run([command, *merged(given), f"out={folder}"])
        if said:
            failed.append(f"{name}: {said}")
        parts.append(f"## {name}\n\n{f'Failed: {said}' if said else body(folder / f'{command}.md')}")
        page(out, parts)
    print((out / PAGE).read_text())
    if failed:
        raise UserError(f"{len(failed)} of {len(parts)} failed: {'; '.join(failed)}")


def merged(words: Sequence[str]) -> list[str]:
    """Knobs, each given once: the last of them stands."""
    return list({word.partition("=")[0]: word for word in words}.values())


def run(words: Sequence[str]) -> str:
    """Do one; the last line of what it said if it failed, else nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "resnet.bench", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    return (done.stderr.strip().splitlines() or ["not a word"])[-1] if done.returncode else ""


def body(path: Path) -> str:
    """A page without its heading."""
    return path.read_text().partition("\n\n")[2].strip()


def page(out: Path, parts: Sequence[str]) -> None:
    """Write what there is so far."""
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGE).write_text("\n\n".join([f"# Measured on {time.strftime('%Y-%m-%d')}", *parts]) + "\n")
