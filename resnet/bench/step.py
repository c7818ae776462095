"""The train step against Keras's own and PyTorch's, and what LARS and everything around the step add to it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from resnet.bench.result import Goal, Kept, Outcome, Row, at_least, at_most
from resnet.bench.sides import facts, interleaved
from resnet.bench.turns import Child, Lacking, entered
from resnet.cli import knob
from resnet.config.checks import check

GROUPS = "keras", "timm", "onednn", "lars", "all"
TIMM = {"resnext50": "resnext50_32x4d", "resnext101": "resnext101_32x4d"}  # others have our names
KERAS = "resnet50"  # the one of ours that keras.applications has, nearly
ABOUT = """
One optimizer step on synthetic images. Every side is a process of its own that lives through all rounds and waits
while another works; a turn is a step to warm up and then `steps` by the clock. Keras trains its v1 of the network
(22.9 GFLOP an image at 224 px; ours has 24.3), so those two are compared in GFLOP/s. The limit is the best of square
matrix products of 1024, 2048 and 4096 in the same arithmetic, measured in the same rounds.
"""


@dataclass(kw_only=True)
class Step(Kept):
    """the train step against keras.applications with model.fit, timm on PyTorch, and itself without LARS, EMA and tracking"""

    model: str = knob("resnet50", "network")
    dtype: Literal["bf16", "fp32"] = knob("bf16", "arithmetic")
    batch: int = knob(32, "images a step")
    size: int = knob(224, "side of the images, pixels")
    rounds: int = knob(5, "interleaved; ratios are medians over them")
    steps: int = knob(10, "of each side in a round, after one to warm up")
    against: str = knob("keras,timm,onednn,lars,all", "sides, with commas between; all: our step with EMA and tracking")
    torch_python: str | None = knob(None, "Python that has torch and timm; timm is left out without")

    def __post_init__(self) -> None:
        for name in ("batch", "rounds", "steps"):
            check(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        check(self.size >= 32, "size", self.size, "must be at least 32 pixels")
        known = bool(self.groups) and set(self.groups) <= set(GROUPS)
        check(known, "against", self.against, f"name some of {', '.join(GROUPS)}, with commas between them")

    @property
    def groups(self) -> list[str]:
        """The comparisons asked for."""
        return [word for word in self.against.replace(" ", "").split(",") if word]


@dataclass
class Measured:
    """What the comparisons came to so far."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, None] = field(default_factory=dict)  # in order


def measure(asked: Step) -> Outcome:
    """Every comparison in turn, each with fresh processes."""
    made = Measured()
    comparisons: dict[str, Callable[[Step, Measured], None]] = {
        "keras": keras,
        "timm": timm,
        "onednn": onednn,
        "lars": lars,
        "all": everything,
    }
    for group in asked.groups:
        comparisons[group](asked, made)
    return Outcome(ABOUT, made.rows, {**facts(), "sides": ", ".join(made.versions)}, notes=made.notes)


def ours(asked: Step, optim: str = "sgd", store: str = "", ways: str = "") -> Child:
    """Our side."""
    words = f"model={asked.model} dtype={asked.dtype} data=synthetic data.image_size={asked.size} batch={asked.batch}"
    return Child("our_step", [words, optim, store, ways])


def against(asked: Step, children: dict[str, Child], made: Measured, what: str) -> dict[str, list[float]]:
    """Seconds a step of these warm sides, by rounds."""
    made.versions |= {child.facts["versions"]: None for child in children.values()}
    turns = {name: partial(child.pace, steps_of(child, asked)) for name, child in children.items()}
    return interleaved(turns, asked.rounds, f"{what}, s a step")


def steps_of(child: Child, asked: Step) -> int:
    """Of a turn. The peak is found in one, and is as seconds a GFLOP."""
    return 1 if child.name == "flops" else asked.steps


def rates(work: float, seconds: Sequence[float]) -> list[float]:
    """`work` a second."""
    return [work / spent for spent in seconds]


def goal_of(goals: dict[str, float], asked: Step, make: Callable[[float], Goal] = at_least) -> Goal | None:
    """The issue's goal for this arithmetic, if it has one."""
    return make(goals[asked.dtype]) if asked.dtype in goals else None


def keras(asked: Step, made: Measured) -> None:
    """Keras's step, the machine's peak, and the memory of both sides."""
    label = f"{asked.model} {asked.dtype}"
    sides = [("ours", ours(asked)), ("peak", Child("flops", [asked.dtype]))]
    if asked.model == KERAS:
        sides.append(("keras", Child("keras_step", [asked.dtype, str(asked.batch), str(asked.size)])))
    else:
        made.notes.append(f"keras.applications has no {asked.model}; left out.")
    with entered(*sides) as children:
        seconds = against(asked, children, made, label)
        own = asked.batch * children["ours"].facts["gflop"]
        mine, peak = rates(own, seconds["ours"]), rates(1, seconds["peak"])
        goal = goal_of({"bf16": 0.62, "fp32": 0.70}, asked) if asked.model == KERAS else None
        made.rows.append(Row(f"{label} step, GFLOP/s", mine, peak, "the matrix products' peak", goal, peak))
        if "keras" not in children:
            return
        theirs = rates(asked.batch * children["keras"].facts["gflop"], seconds["keras"])
        made.rows += [
            Row(f"{label} step, GFLOP/s", mine, theirs, "keras.applications, model.fit", at_least(1.05), peak),
            Row(
                f"{label} step, images/s",
                rates(asked.batch, seconds["ours"]),
                rates(asked.batch, seconds["keras"]),
                "keras.applications, model.fit",
            ),
            Row(
                f"{label} peak resident memory, MB",
                [children["ours"].facts["peak_mb"]],
                [children["keras"].facts["peak_mb"]],
                "keras.applications, model.fit",
                goal_of({"bf16": 1.0}, asked, at_most),
                less_is_better=True,
            ),
        ]


def timm(asked: Step, made: Measured) -> None:
    """timm's network of the same name on PyTorch, eager and compiled; a note in place of rows where it is not to be had."""
    if not asked.torch_python:
        made.notes.append("timm left out: torch_python= names no Python that has it.")
        return
    label, name = f"{asked.model} {asked.dtype}", TIMM.get(asked.model, asked.model)
    goals = {
        "resnet50": {"eager": {"bf16": 1.25}, "compiled": {"bf16": 1.15}},
        "resnext50": {mode: {"bf16": 1.3, "fp32": 1.5} for mode in ("eager", "compiled")},
    }
    sides = [("ours", ours(asked))]
    for mode in ("eager", "compiled"):
        words = [name, asked.dtype, str(asked.batch), str(asked.size), mode]
        sides.append((mode, Child("timm_step", words, asked.torch_python)))
    try:
        with entered(*reversed(sides)) as children:
            seconds = against(asked, children, made, f"{label} to timm")
            mine = rates(asked.batch, seconds["ours"])
            for mode in ("eager", "compiled"):
                goal = goal_of(goals.get(asked.model, {}).get(mode, {}), asked)
                theirs = rates(asked.batch, seconds[mode])
                made.rows.append(Row(f"{label} step, images/s", mine, theirs, f"timm {name}, {mode}", goal))
    except Lacking as lacking:
        made.notes.append(f"timm left out: {lacking}.")


def lars(asked: Step, made: Measured) -> None:
    """LARS beside SGD."""
    label = f"{asked.model} {asked.dtype}"
    with entered(("lars", ours(asked, "lars")), ("sgd", ours(asked))) as children:
        seconds = against(asked, children, made, f"{label} LARS")
    made.rows.append(
        Row(f"{label} LARS step, s", seconds["lars"], seconds["sgd"], "SGD step", at_most(1.02), less_is_better=True)
    )


def everything(asked: Step, made: Measured) -> None:
    """The step with averaged weights, metrics, MLflow and progress beside the bare one."""
    label = f"{asked.model} {asked.dtype}"
    with (
        tempfile.TemporaryDirectory() as folder,
        entered(("all", ours(asked, store=f"sqlite:///{folder}/mlflow.db")), ("bare", ours(asked))) as children,
    ):
        seconds = against(asked, children, made, f"{label} with EMA and tracking")
    row = Row(
        f"{label} step with EMA, metrics, MLflow and progress, s",
        seconds["all"],
        seconds["bare"],
        "without",
        at_most(1.01),
        less_is_better=True,
    )
    made.rows.append(row)


def onednn(asked: Step, made: Measured) -> None:
    """The step as it is on this machine beside one of Keras's batch norm, and all of whose gradients are oneDNN's own."""
    label = f"{asked.model} {asked.dtype}"
    with entered(("ours", ours(asked)), ("onednn", ours(asked, ways="onednn"))) as children:
        seconds = against(asked, children, made, f"{label} beside plain layers")
    mine, theirs = (rates(asked.batch, seconds[side]) for side in ("ours", "onednn"))
    made.rows.append(Row(f"{label} step, images/s", mine, theirs, "plain layers (no resnet.convolution, no RowNorm)"))
