"""What a finished run leaves beside its checkpoints: plots as PNG files, and the MLflow model."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet import files
from resnet.config.data import Records
from resnet.config.run import Run
from resnet.config.track import Mlflow
from resnet.data import classes, pipeline
from resnet.data.formats import tfexample
from resnet.data.source import Source
from resnet.rundir import metrics
from resnet.serving import mlflow_model
from resnet.training import trained
from resnet.training.evaluation import Predictions
from resnet.training.run_log import RunLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL_CHARACTERS = 40  # of a class name in a plot
MAX_NAMES, MAX_COUNTS = 60, 20  # up to so many classes the confusion matrix has names, counts
MISTAKES, COLUMNS = 24, 6
PANELS = {  # title -> (scale, {metric: its name in the legend})
    "loss": (1, {"train/loss": "training", "eval/loss": "evaluation", "ema/loss": "averaged weights"}),
    "top-1, %": (100, {"train/top1": "training", "eval/top1": "evaluation", "ema/top1": "averaged weights"}),
    "learning rate": (1, {"train/lr": ""}),
    "images/s": (1, {"train/images_per_s": ""}),
}


def make(run: Run, out: Path, source: Source, predictions: Predictions | None, log: RunLog) -> None:
    """With MLflow, write plots and <out>/model and log them. A failure is reported in a line and costs the run nothing.

    `predictions` are those of the last evaluation for the images of all ranks, if there was one.
    """
    if not isinstance(run.track, Mlflow):
        return
    names = classes.of_folder(out, run.data.classes)
    with reporting("curves.png", log):
        log.artifact(curves(out))
    if predictions:
        with reporting("confusion.png and mistakes.png", log):
            for path in of_predictions(out, source, predictions, names or [str(n) for n in range(run.data.classes)]):
                log.artifact(path)
    if wants_model(run.track) and isinstance(run.data, Records):  # a network of synthetic images is no use to anybody
        with reporting("the MLflow model", log):
            path = mlflow_model.save(run, out, names, trained.read(str(out)))
            log.tracker.model(path, run.track.register)


def wants_model(settings: Mlflow) -> bool:
    """Whether the model goes to MLflow. By default not from the jobs of a sweep: there would be one for each."""
    if settings.log_model is None:
        return settings.parent_run is None or settings.register is not None
    return settings.log_model


@contextlib.contextmanager
def reporting(what: str, log: RunLog) -> Iterator[None]:
    """Report in a line that `what` could not be written."""
    try:
        yield
    except Exception as error:
        log.say(f"{what} could not be written: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


# ----------------------------------------------------------------------------------------------------------------- plots
def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches. Matplotlib is imported here: the first step must not wait for it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> Path:
    with warnings.catch_warnings(), files.atomic_write(path) as file:
        warnings.simplefilter("ignore")  # letters that the font lacks become boxes
        figure.savefig(file, format="png", dpi=120)
    return path


def curves(out: Path) -> Path:
    """<out>/curves.png: loss, top-1, learning rate and images/s over epochs, from <out>/metrics.jsonl."""
    values = metrics.read(out / "metrics.jsonl")
    rates = [step / epoch for step, epoch in values.get("train/epoch", {}).items() if epoch]
    steps_per_epoch = rates[-1] if rates else 1.0
    figure = new_figure(11, 7.5)
    for axes, (title, (factor, names)) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for name, label in names.items():
            if curve := values.get(name):
                x, y = np.array(list(curve)) / steps_per_epoch, factor * np.array(list(curve.values()))
                axes.plot(x, y, label=label, marker="." if len(x) <= 50 else None)
        axes.set(title=title, xlabel="epoch" if rates else "step", xlim=(0, None))
        if title != "loss":
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if not axes.lines:
            axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes)
        elif any(names.values()):
            axes.legend()
    figure.suptitle(files.escape(out.resolve().name), parse_math=False)
    return save(figure, out / "curves.png")


def of_predictions(out: Path, source: Source, predictions: Predictions, names: Sequence[str]) -> list[Path]:
    """confusion.png and, unless images are synthetic, mistakes.png for all evaluation images; `names` are of the classes."""
    counts = predictions.confusion(len(names))
    images = int(counts.sum())
    title = f"top-1 {100 * np.trace(counts) / max(images, 1):.2f} % of {images:,} images"
    paths = [confusion(out / "confusion.png", counts, names, title)]
    if source.val_reader is not None:
        paths.append(mistakes(out / "mistakes.png", source, predictions, names, title))
    return paths


def confusion(path: Path, counts: NDArray[np.int64], names: Sequence[str], title: str) -> Path:
    """The confusion matrix [classes, classes] as shares of each row; with names and counts as far as they are readable."""
    classes = len(names)
    labels = [files.escape(name)[:LABEL_CHARACTERS] for name in names]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.35 * classes, 16)
    figure = new_figure(side + 1, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(image, label="share of the class's images", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="class", title=title)
    if classes <= MAX_NAMES:
        axes.set_xticks(range(classes), labels, rotation=90, parse_math=False)
        axes.set_yticks(range(classes), labels, parse_math=False)
    if classes <= MAX_COUNTS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    return save(figure, path)


def mistakes(path: Path, source: Source, predictions: Predictions, names: Sequence[str], title: str) -> Path:
    """The most confident mistakes, read again; under each image its class, the predicted class and its probability."""
    chosen = predictions.mistakes(MISTAKES)
    wrong = int((predictions.valid & (predictions.labels != predictions.predicted)).sum())
    what = f"the {len(chosen)} most confident of {wrong:,} mistakes" if wrong else "no mistake"
    rows = max(1, -(-len(chosen) // COLUMNS))
    figure = new_figure(2.2 * COLUMNS, 2.6 * rows + 0.5)
    figure.suptitle(f"{title}; {what}")
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, number in zip(grid.flat, chosen, strict=False):
        axes.imshow(pixels(source, int(number)))
        label, predicted = (files.escape(names[part[number]]) for part in (predictions.labels, predictions.predicted))
        line = f"{label[:24]}\n→ {predicted[:18]} ({100 * predictions.probability[number]:.1f} %)"
        axes.set_title(line, y=-0.02, va="top", fontsize=9, parse_math=False)
    return save(figure, path)


def pixels(source: Source, number: int) -> NDArray[np.uint8]:
    """The evaluation image of that number as the network gets it, uint8 [S, S, 3]."""
    reader, settings = source.val_reader, source.settings
    assert reader is not None and isinstance(settings, Records)
    encoded: Any = tfexample.decode(reader(number))["image/encoded"]
    return np.asarray(pipeline.centre_crop(tf.constant(encoded), settings))
