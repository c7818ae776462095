"""Groups, options and knobs: how --help lists them, and how a run differs from the recipe that it came from."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any

from resnet import files
from resnet.config.run import VARIANTS, Run
from resnet.config.sweep import Slurm, Sweep

TEMPLATE = """Train a ResNet: python -m resnet.train [group=option ...] [knob=value ...]
${help_text:}

This run (override any knob with knob=value):

$CONFIG
-m knob=a,b            a sweep: a job in a process of its own for every combination; sweep.* are its settings
sweep.resume=<folder>  resume a sweep; jobs that finished are skipped
best_of=<folder>       train with the settings of the best job of a sweep
--cfg job --resolve    print the run and stop
--hydra-help           what else Hydra can do

"""


def options() -> Iterator[tuple[str, str, str]]:
    """(group, option, its first comment line) of every option below conf/ and experiments/."""
    for top in (files.tree("conf"), files.tree("experiments")):
        for path in sorted(top.glob("*/*.yaml")):
            comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
            texts = (line for line in comments if not line.startswith("@package"))
            yield path.parent.name, path.stem, next(texts, "")


def help_text() -> str:
    """Every group and option, one line each, in the order of the defaults list."""
    lines = []
    for group, members in itertools.groupby(options(), lambda option: option[0]):
        lines += ["", group, *(f"  {f'{group}={name}':<29} {text}".rstrip() for _, name, text in members)]
    return "\n".join(lines)


def recipe_text(name: str) -> str:
    """The recipe's file behind those that it builds on; empty for one that is not in experiments/."""
    path = files.tree("experiments") / "recipe" / f"{name}.yaml"
    text = path.read_text() if re.fullmatch(r"\w+", name) and path.is_file() else ""
    return "".join(map(recipe_text, re.findall(r"^  - (\w+)$", text, re.M))) + text


def recipe_notes(run: Run) -> list[str]:
    """Where a run departs from its recipe in what decides the numbers, and what its batch divides: a line each."""
    text = recipe_text(run.recipe or "")
    named = dict(re.findall(r"override /(\w+): (\w+)", text))
    start, optim, lines = f"recipe={run.recipe}", run.optim, []
    if named.get("optim", optim.name) != optim.name:
        lines.append(
            f"{start}: its rate and decay are for optim={named['optim']} and do not count; optim={optim.name} trains with a "
            f"peak lr of {optim.lr:g} and a weight decay of {optim.weight_decay:g}"
        )
    if named.get("schedule", run.schedule.name) != run.schedule.name:
        lines.append(
            f"{start}: of its schedule={named['schedule']} only the warm-up counts; the curve is {run.schedule.name}"
        )
    if named.get("augment", run.augment.name) != run.augment.name:
        lines.append(
            f"{start}: its augment={named['augment']} does not count; images are augmented by {run.augment.name}"
        )
    cards, each = (re.findall(r"^# machine: (\d+) cards?(?: of (\d+))?", text, re.M) or [("0", "")])[-1]
    cards, each = int(cards), int(each or 256)
    if cards and named.get("model", run.model.name) != run.model.name:
        lines.append(f"{start}: its settings are for model={named['model']}, and train {run.model.name} here")
    if cards and cards != run.cluster.ranks and run.batch == cards * each:
        ranks = f"{run.cluster.ranks} rank{'s' * (run.cluster.ranks > 1)}"
        clusters = {1: "gpu1 or gaudi1", 8: "gpu8 or hls1", 32: "slurm or hls1x4"}.get(cards, "slurm")
        alone = str(run.recipe).replace("_8x", "_1x")
        smaller = f"batch={run.cluster.ranks * each}" + (
            " and an optim.lr for it" if re.search(r"\blr: \d", text) else ""
        )
        if run.cluster.ranks == 1 and alone != run.recipe and recipe_text(alone):
            smaller = f"recipe={alone}"
        lines.append(
            f"{start}: for {cards} card{'s' * (cards > 1)} of {each} images; here {ranks} of {run.local_batch}, with other "
            f"batch-norm statistics and memory. For {cards} use cluster={clusters}; for {ranks}, {smaller}"
        )
    if run.batch % run.augment.repeats:
        lines.append(
            f"augment.repeats={run.augment.repeats}: does not divide batch={run.batch}, so the copies of some images are in two "
            "batches"
        )
    return lines


def knobs(kind: Any) -> list[str]:
    """Names of a dataclass's fields."""
    return [knob.name for knob in dataclasses.fields(kind)]


def known_names() -> list[str]:
    """Groups, and knobs of every variant, for an error that came before a configuration was composed."""
    names = [*knobs(Run), "sweep", *(f"{kind.GROUP}{knob}" for kind in (Sweep, Slurm) for knob in knobs(kind))]
    for group, variants in VARIANTS.items():
        names += sorted({f"{group}.{knob}" for kind in variants.values() for knob in knobs(kind)})
    return names
