"""What a finished run leaves beside its checkpoints: curves, confusion matrix, mistakes, the MLflow model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from resnet.config.data import Records
from resnet.config.run import Run
from resnet.config.track import Mlflow
from resnet.data.source import Source, class_names
from resnet.serving import mlflow_model
from resnet.training import plots, trained
from resnet.training.evaluation import Predictions
from resnet.training.run_log import RunLog


def make(run: Run, out: Path, source: Source, predictions: Predictions | None, log: RunLog) -> None:
    """With MLflow, write plots and <out>/model and log them. A failure is reported in a line and costs the run nothing.

    `predictions` are those of the last evaluation for the images of all ranks, if there was one.
    """
    if not isinstance(run.track, Mlflow):
        return
    names = class_names(run.data)
    names = names if names and len(names) == run.data.classes else None
    attempt("curves.png", log, lambda: log.artifact(plots.curves(out)))
    if predictions:
        listed = names or [str(number) for number in range(run.data.classes)]
        attempt("confusion.png and mistakes.png", log, lambda: log_plots(out, source, predictions, listed, log))
    if wants_model(run.track) and isinstance(run.data, Records):  # a network of synthetic images is no use to anybody
        attempt("the MLflow model", log, lambda: log_model(run, out, names, run.track, log))


def log_plots(out: Path, source: Source, predictions: Predictions, names: list[str], log: RunLog) -> None:
    """Plots of an evaluation; `names` are of the classes."""
    for path in plots.of_predictions(out, source, predictions, names):
        log.artifact(path)


def log_model(run: Run, out: Path, names: list[str] | None, settings: Mlflow, log: RunLog) -> None:
    """The MLflow model, registered if settings.register names a model of the registry."""
    path = mlflow_model.save(run, out, names, trained.read(str(out)))
    log.tracker.later(functools.partial(mlflow_model.log_model, place=path, register=settings.register))


def wants_model(settings: Mlflow) -> bool:
    """Whether the model goes to MLflow. By default not from the jobs of a sweep: there would be one for each."""
    if settings.log_model is None:
        return settings.parent_run is None or settings.register is not None
    return settings.log_model


def attempt(what: str, log: RunLog, work: Callable[[], object]) -> None:
    """Report in a line that `what` could not be written."""
    try:
        work()
    except Exception as error:
        log.say(f"{what} could not be written: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
