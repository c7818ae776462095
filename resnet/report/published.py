"""The published row of a recipe (experiments/published.csv), and how far a training may be held beside it."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass

from resnet import files
from resnet.config import compose, errors, fingerprint
from resnet.report.load import flat
from resnet.report.run import Training, differing, number, shown


@dataclass(frozen=True)
class Published:
    """One row. Top-1, in 0..1, lies from `low` to `high`; with one of them None it is at least, or below, the other."""

    recipe: str
    model: str
    api: str
    epochs: float
    cards: int
    batch_per_card: int
    dtype: str
    data: str
    low: float | None
    high: float | None
    images_per_s: float | None
    minutes: float | None
    source: str

    def another_training(self, run: Training) -> list[str]:
        """What makes `run` another training than the published one, whose top-1 says nothing of it."""
        ours, theirs = run.settings, recipe(self.recipe)
        found = [
            knob
            for knob in differing(ours, theirs)
            if not fingerprint.may_change_on_resume(knob) and not knob.startswith("dtype.")
        ]
        told = [f"{knob.removesuffix('.name')} {shown(ours[knob])}, not {shown(theirs[knob])}" for knob in found]
        if "epochs" not in found and run.epochs is not None and round(run.epochs, 2) != self.epochs:
            told.append(f"stopped after {run.epochs:.4g} of {self.epochs:g} epochs")
        if ours.get("eval_steps", "None") != "None":
            told.append(f"evaluated on {ours['eval_steps']} batches only")
        return told

    def another_machine(self, run: Training) -> list[str]:
        """What makes its speed another thing."""
        compared = ("cards", run.cards, self.cards), ("dtype", run.settings.get("dtype.name"), self.dtype)
        return [f"{name} {ours}, not {theirs}" for name, ours, theirs in compared if ours != theirs]

    def top1_difference(self, top1: float) -> float:
        """To the nearest end of what was published; 0 within."""
        if self.low is not None and top1 < self.low:
            return top1 - self.low
        return top1 - self.high if self.high is not None and top1 > self.high else 0.0


@functools.cache
def recipe(name: str) -> dict[str, str]:
    """The flat settings of a recipe as it is, as text."""
    import hydra
    from omegaconf import OmegaConf

    compose.register()
    with errors.explain(), hydra.initialize_config_dir(str(files.tree("conf")), version_base="1.3"):
        config = hydra.compose("config", [f"recipe={name}", "track=off"])
        config.recipe, config.out = name, ""
        return dict(flat(OmegaConf.to_container(config, resolve=True, enum_to_str=True)))


def rows() -> dict[str, Published]:
    """Every published row by its recipe."""
    with (files.tree("experiments") / "published.csv").open(newline="", encoding="utf-8") as file:
        return {row["recipe"]: published(row) for row in csv.DictReader(file)}


def published(row: dict[str, str]) -> Published:
    """A row of text as numbers; what is empty is None."""
    return Published(
        recipe=row["recipe"],
        model=row["model"],
        api=row["api"],
        epochs=float(row["epochs"]),
        cards=int(row["cards"]),
        batch_per_card=int(row["batch_per_card"]),
        dtype=row["dtype"],
        data=row["data"],
        low=number(row["top1_low"]),
        high=number(row["top1_high"]),
        images_per_s=number(row["images_per_s"]),
        minutes=number(row["minutes"]),
        source=row["source"],
    )
