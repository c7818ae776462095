"""The published rows (experiments/published.csv), and what makes a training another one than a row's."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import hydra
import pandas as pd
from omegaconf import OmegaConf

from resnet import files
from resnet.config import compose, errors, fingerprint
from resnet.report.load import Training, dotted

# Knobs in which repetitions of a training differ, or that do not describe it. Of LARS's rows the chosen one is in optim.lr.
ASIDE = {"seed", "out", "resume", "recipe", "data.dir", "optim.rows"}
NUMBERS = ("epochs", "top1_low", "top1_high", "images_per_s", "minutes")


@functools.cache
def rows() -> pd.DataFrame:
    """Every published row by its recipe.

    Top-1, in 0..1, is from top1_low to top1_high; with one of them missing it is at least, or below, the other.
    """
    path = files.tree("experiments") / "published.csv"
    kinds = {"cards": "Int64", "batch_per_card": "Int64", **dict.fromkeys(NUMBERS, float)}
    return pd.read_csv(path, index_col="recipe", dtype=kinds)


@functools.cache
def recipe_settings(recipe: str) -> dict[str, str]:
    """The settings of a recipe as it is, as text."""
    compose.register()
    with errors.explain(), hydra.initialize_config_dir(str(files.tree("conf")), version_base="1.3"):
        config = hydra.compose("config", [f"recipe={recipe}", "track=off"])
        config.recipe, config.out = recipe, ""
        return dotted(OmegaConf.to_container(config, resolve=True, enum_to_str=True))


def row(recipe: str | None) -> pd.Series | None:
    """The published row of a recipe, if there is one."""
    return rows().loc[recipe] if recipe in rows().index else None


def other_training(run: Training, row: pd.Series) -> list[str]:
    """What makes `run` another training than the published one, so that its top-1 cannot be compared."""
    ours, theirs = run.settings, recipe_settings(row.name)
    knobs = [knob for knob in differing(ours, theirs) if not fingerprint.may_change_on_resume(knob)]
    knobs = [knob for knob in knobs if not knob.startswith("dtype.")]
    reasons = [f"{knob.removesuffix('.name')} {typed(ours[knob])}, not {typed(theirs[knob])}" for knob in knobs]
    if "epochs" not in knobs and run.epochs is not None and round(run.epochs, 2) != row["epochs"]:
        reasons.append(f"stopped after {run.epochs:.4g} of {row['epochs']:g} epochs")
    if ours.get("eval_steps", "None") != "None":
        reasons.append(f"evaluated on {ours['eval_steps']} batches only")
    return reasons


def other_machine(run: Training, row: pd.Series) -> list[str]:
    """What makes its speed and time incomparable."""
    compared = [("cards", run.settings.get("cluster.ranks"), str(row["cards"]))]
    compared.append(("dtype", run.settings.get("dtype.name"), row["dtype"]))
    return [f"{name} {ours}, not {theirs}" for name, ours, theirs in compared if ours != theirs]


def differing(*settings: Mapping[str, str]) -> list[str]:
    """The knobs that all have and in which they differ; of a part that was exchanged (data=...) its name alone."""
    shared = [knob for knob in settings[0] if knob not in ASIDE and all(knob in other for other in settings)]
    differ = [knob for knob in shared if len({other[knob] for other in settings}) > 1]
    names = {knob for knob in differ if knob.endswith(".name")} - {"optim.name"}
    exchanged = tuple(name.removesuffix("name") for name in names)
    return [knob for knob in differ if knob in names or not knob.startswith(exchanged)]


def typed(value: str) -> str:
    """A setting as one types it."""
    return {"None": "null", "True": "true", "False": "false"}.get(value, value)
