"""What is kept of a training that has ended: its curves, confusions and mistakes, the model. What fails costs it nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet.config.data import Records
from resnet.config.run import Run
from resnet.config.track import Mlflow
from resnet.data import source
from resnet.serving import mlflow_model
from resnet.training import plots, trained
from resnet.training.evaluation import Predictions


def make(
    run: Run,
    out: Path,
    images: source.Source,
    answers: Predictions | None,
    tracker: Any,
    model: bool,
    register: str | None,
) -> list[str]:
    """Write the pictures, and <out>/model if asked, and have the tracker keep them; lines about what could not be.

    `answers` are those of the last evaluation to all of its images, by all ranks; None where there was none. `register` is the
    name in MLflow's registry, if any.
    """
    known = source.class_names(run.data)
    names = known if known and len(known) == run.data.classes else None

    def seen() -> None:
        if answers:
            listed = names or [str(number) for number in range(run.data.classes)]
            for path in plots.of_answers(out, images, answers, listed):
                tracker.artifact(path)

    def served() -> None:
        if model and isinstance(run.data, Records):  # synthetic images leave nothing to serve
            place = mlflow_model.save(run, out, names, trained.read(str(out)))
            tracker.later(functools.partial(mlflow_model.log_model, place=place, register=register))

    work: dict[str, Callable[[], object]] = {
        "curves.png": lambda: tracker.artifact(plots.curves(out)),
        "confusion.png and mistakes.png": seen,
        "the MLflow model": served,
    }
    return [trouble for what, do in work.items() if (trouble := attempted(what, do))]


def wants_model(settings: Mlflow) -> bool:
    """Whether the model goes to MLflow: a sweep would keep one for each of its jobs, and does if told to."""
    if settings.log_model is None:
        return settings.parent_run is None or settings.register is not None
    return settings.log_model


def attempted(what: str, work: Callable[[], object]) -> str | None:
    """What went wrong, in one line."""
    try:
        work()
    except Exception as error:
        return f"{what} could not be written: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return None
