"""A training as the report sees it, wherever it was recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

Curve = list[tuple[int, float]]  # (step, value), steps rising
CURVES = ("train/loss", "train/epoch", "eval/loss", "eval/top1", "ema/loss", "ema/top1")
FINISHED = ("finished", "stopped at top-1")
# Knobs in which repetitions of one training differ, or that say nothing of it. Of LARS's rows the chosen one is in optim.lr.
ASIDE = {"seed", "out", "resume", "recipe", "data.dir", "optim.rows"}


@dataclass(frozen=True)
class Training:
    """One run: its flat settings as text, what it came to, and its curves. `key` is the same wherever it was found."""

    key: str
    name: str
    place: str  # its folder, or its MLflow run
    status: str
    settings: Mapping[str, str]
    figures: Mapping[str, float]  # final/top1, final/images_per_s, ...: the last values
    curves: Mapping[str, Curve]

    @property
    def recipe(self) -> str | None:
        """The recipe it was started by."""
        name = self.settings.get("recipe", "None")
        return None if name in ("None", "none", "") else name

    @property
    def seed(self) -> str:
        """As it was given; empty if that is not known."""
        return self.settings.get("seed", "")

    @property
    def model(self) -> str:
        """As published tables write it: ResNet50."""
        return self.settings.get("model.name", "").replace("resnet", "ResNet").replace("resnext", "ResNeXt")

    @property
    def api(self) -> str:
        """What published tables call API: the optimizer."""
        return self.settings.get("optim.name", "").upper()

    def number(self, knob: str) -> float | None:
        """A setting as a number; None if it is not known."""
        return number(self.settings.get(knob))

    @property
    def cards(self) -> int | None:
        """Ranks, of which each has a card."""
        ranks = self.number("cluster.ranks")
        return None if ranks is None else int(ranks)

    @property
    def batch_per_card(self) -> int | None:
        """Images of an update on one card."""
        batch = self.number("batch")
        return int(batch) // self.cards if batch and self.cards else None

    @cached_property
    def steps_per_epoch(self) -> float | None:
        """From the last step whose epoch was noted."""
        noted = [step / epoch for step, epoch in self.curves.get("train/epoch", []) if epoch > 0]
        return noted[-1] if noted else None

    @property
    def epochs(self) -> float | None:
        """Trained, which may be fewer than were asked for."""
        epochs = self.curves.get("train/epoch")
        return epochs[-1][1] if epochs else self.figure("epochs")

    def figure(self, name: str) -> float | None:
        """What the run ended with; None while it has not."""
        return self.figures.get(name) if self.status in FINISHED else None

    @property
    def top1(self) -> float | None:
        """Of the last weights, in 0..1: of their average where there is one."""
        return self.figure("final/top1")

    @property
    def images_per_s(self) -> float | None:
        """By the published tables' definition: the mean over all iterations but the first."""
        return self.figure("final/images_per_s")

    @property
    def minutes(self) -> float | None:
        """From the first line of the training to its end. None of a run in several starts, whose clock saw only the last."""
        whole, training = self.figure("final/minutes"), self.figure("final/training_minutes")
        return None if whole is not None and training is not None and training > whole else whole

    def over_epochs(self, name: str, scale: float = 1.0) -> list[tuple[float, float]]:
        """(epoch, value * scale) of a curve; nothing if no epoch was noted."""
        steps = self.steps_per_epoch
        return [(step / steps, value * scale) for step, value in self.curves.get(name, [])] if steps else []

    @property
    def judged(self) -> str:
        """The curve that `top1` is of."""
        return "ema/top1" if self.curves.get("ema/top1") else "eval/top1"

    @property
    def identity(self) -> frozenset[tuple[str, str]]:
        """The same for trainings that only their seed tells apart."""
        return frozenset(
            item for item in self.settings.items() if item[0] not in ASIDE and not item[0].startswith("track.")
        )


def differing(*settings: Mapping[str, str]) -> list[str]:
    """The knobs that all have and in which they differ; of a part that was exchanged (data=...) its name alone."""
    shared = [knob for knob in settings[0] if knob not in ASIDE and all(knob in other for other in settings)]
    differ = [knob for knob in shared if len({other[knob] for other in settings}) > 1]
    names = {knob for knob in differ if knob.endswith(".name")} - {"optim.name"}
    exchanged = tuple(name.removesuffix("name") for name in names)
    return [knob for knob in differ if knob in names or not knob.startswith(exchanged)]


def shown(value: str) -> str:
    """A setting as one types it."""
    return {"None": "null", "True": "true", "False": "false"}.get(value, value)


def number(text: object) -> float | None:
    """A finite number, or None."""
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
