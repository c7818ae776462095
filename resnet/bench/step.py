"""The train step beside Keras's and PyTorch's, and what LARS and everything around the step add to it."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from resnet.bench.result import NetworkKnobs, Result, Row
from resnet.bench.workers import Child, Unavailable
from resnet.cli import knob
from resnet.config.training import Ema

# Our step beside itself: the row, the words of ours, those of the other side, and its name. The child adds the folder.
VARIANTS = {
    "onednn": ("step, images/s", ["sgd", ""], ["sgd", "plain"], "plain layers (no gradients of conv.py, no RowNorm)"),
    "lars": ("LARS step, s", ["lars", ""], ["sgd", ""], "SGD step"),
    "lamb": ("LAMB step, s", ["lamb", ""], ["sgd", ""], "SGD step"),
    "clip": ("step with clipping, s", ["sgd", "clip"], ["sgd", ""], "without"),
    "all": ("step with EMA, metrics, MLflow and progress, s", ["sgd", "tracked"], ["sgd", ""], "without"),
}
GROUPS = "keras", "timm", *VARIANTS
TIMM = {"resnext50": "resnext50_32x4d", "resnext101": "resnext101_32x4d"}  # others have our names
KERAS = "keras.applications, model.fit"
ABOUT = """
One optimizer step on synthetic images. Every side is a process of its own that lives through all rounds and waits
while another works; a turn is a step to warm up and then `steps` by the clock. Keras trains its v1 of the network
(22.9 GFLOP an image at 224 px; ours has 24.3), so those two are compared in GFLOP/s. The limit is the best of square
matrix products of 1024, 2048 and 4096 in the same arithmetic, measured in the same rounds.
"""


@dataclass(kw_only=True)
class Step(NetworkKnobs):
    """the train step against keras.applications with model.fit, timm on PyTorch, and itself with other options"""

    steps: int = knob(10, "steps of each side per round, after one to warm up")
    against: str = knob(
        "keras,timm,onednn,lars,all", "what to compare with, separated by commas; all: our step with EMA and tracking"
    )
    torch_python: str | None = knob(None, "Python with torch and timm; without it timm is skipped")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "steps")
        known = bool(self.groups) and set(self.groups) <= set(GROUPS)
        every = Ema.every_steps
        way_out = f"with against=all a multiple of {every}: weights are averaged every {every} steps"
        self.check("steps", "all" not in self.groups or self.steps % every == 0, way_out)
        self.check("against", known, f"name some of {', '.join(GROUPS)}, with commas between them")

    @property
    def groups(self) -> list[str]:
        return [word for word in self.against.replace(" ", "").split(",") if word]


def measure(knobs: Step, result: Result) -> None:
    """Every comparison in turn, each with fresh processes."""
    result.about = ABOUT
    for group in knobs.groups:
        if not result.interrupted:
            {"keras": keras, "timm": timm}.get(group, partial(variant, group))(knobs, result)


def ours(knobs: Step, *words: str) -> Child:
    return Child("children", ["step", " ".join(knobs.words()), *words])


def seconds_of(knobs: Step, result: Result, children: dict[str, Child], what: str) -> dict[str, list[float]]:
    """Seconds a step of these children by rounds; a GFLOP's of the `peak`."""
    versions = [result.facts["sides"]] if "sides" in result.facts else []
    with contextlib.ExitStack() as stack:
        for name, child in children.items():
            print(f"starting {name}", file=sys.stderr, flush=True)
            versions.append(stack.enter_context(child).facts["versions"])
        result.facts["sides"] = ", ".join(dict.fromkeys(", ".join(versions).split(", ")))
        turns = {
            name: partial(child.step_time, 1 if name == "peak" else knobs.steps) for name, child in children.items()
        }
        return result.measure(turns, knobs.rounds, f"{knobs.label} {what}, s a step")


def rates(work: float, seconds: Sequence[float]) -> list[float]:
    return [work / spent for spent in seconds]


def keras(knobs: Step, result: Result) -> None:
    """Keras's step, the machine's peak, and the memory of both sides."""
    label, batch = knobs.label, knobs.batch
    children = {"ours": ours(knobs), "peak": Child("children", ["peak", knobs.dtype])}
    if knobs.model == "resnet50":
        children["keras"] = Child("keras_child", ["step", knobs.dtype, str(batch), str(knobs.size)])
    else:
        result.notes.append(f"keras.applications has no {knobs.model}; left out.")
    seconds = seconds_of(knobs, result, children, "to Keras")
    mine, peak = rates(batch * children["ours"].facts["gflop"], seconds["ours"]), rates(1, seconds["peak"])
    result.rows.append(Row(f"{label} step, GFLOP/s", mine, peak, "the matrix products' peak", peak))
    if "keras" in children:
        theirs = rates(batch * children["keras"].facts["gflop"], seconds["keras"])
        memory, other = ([children[side].facts["peak_mb"]] for side in ("ours", "keras"))
        images, others = (rates(batch, seconds[side]) for side in ("ours", "keras"))
        result.rows += [
            Row(f"{label} step, GFLOP/s", mine, theirs, KERAS, peak),
            Row(f"{label} step, images/s", images, others, KERAS),
            Row(f"{label} peak resident memory, MB", memory, other, KERAS, less_is_better=True),
        ]


def timm(knobs: Step, result: Result) -> None:
    """timm's network of the same name on PyTorch, eager and compiled; a note in place of rows where it is not available."""
    if not knobs.torch_python:
        result.notes.append("timm left out: torch_python= names no Python that has it.")
        return
    name = TIMM.get(knobs.model, knobs.model)
    words = [name, knobs.dtype, str(knobs.batch), str(knobs.size)]
    modes = {mode: Child("timm_child", [mode, *words], knobs.torch_python) for mode in ("compiled", "eager")}
    try:
        seconds = seconds_of(knobs, result, {**modes, "ours": ours(knobs)}, "to timm")
    except Unavailable as error:
        result.notes.append(f"timm left out: {error}.")
        return
    mine = rates(knobs.batch, seconds["ours"])
    for mode in ("eager", "compiled"):
        theirs = rates(knobs.batch, seconds[mode])
        result.rows.append(Row(f"{knobs.label} step, images/s", mine, theirs, f"timm {name}, {mode}"))


def variant(group: str, knobs: Step, result: Result) -> None:
    """Our step beside itself with something added or taken away."""
    what, left, right, against = VARIANTS[group]
    with tempfile.TemporaryDirectory() as folder:
        children = {"ours": ours(knobs, *left, folder), against: ours(knobs, *right, folder)}
        mine, theirs = seconds_of(knobs, result, children, what.rpartition(",")[0]).values()
    times = what.endswith(", s")
    if not times:
        mine, theirs = rates(knobs.batch, mine), rates(knobs.batch, theirs)
    result.rows.append(Row(f"{knobs.label} {what}", mine, theirs, against, less_is_better=times))
