"""What a training looks like: its curves, which classes it takes for which, and its surest mistakes. PNG files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from resnet import files
from resnet.data import pipeline, tfexample
from resnet.data.source import Source
from resnet.prepare import show
from resnet.rundir import metrics
from resnet.training.evaluation import Predictions

LONGEST = 40  # characters of a class's name beside the confusion matrix
NAMED, COUNTED = 60, 20  # up to so many classes their names, their counts can be read
MISTAKES = 24
WRONG = "#b42318"  # what the network said, on the page of mistakes
EPOCH = "train/epoch"
PANELS = {  # title -> (scale, {metric: its name in the legend})
    "loss": (1, {"train/loss": "training", "eval/loss": "evaluation", "ema/loss": "averaged weights"}),
    "top-1, %": (100, {"eval/top1": "evaluation", "ema/top1": "averaged weights"}),
    "learning rate": (1, {"train/lr": ""}),
    "images/s": (1, {"train/images_per_s": ""}),
}


# ---------------------------------------------------------------------------------------------------------------- curves
def curves(out: Path) -> Path:
    """<out>/curves.png: loss, top-1, learning rate and images/s over epochs, from <out>/metrics.jsonl."""
    found = metrics.read(out / "metrics.jsonl")
    rates = [step / epoch for step, epoch in found.get(EPOCH, {}).items() if epoch]
    scale = rates[-1] if rates else 1.0
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    for axes, (title, (factor, names)) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for name, told in names.items():
            if curve := found.get(name):
                x, y = np.array(list(curve)) / scale, factor * np.array(list(curve.values()))
                axes.plot(x, y, label=told, marker="." if len(x) <= 50 else None)
        axes.set(title=title, xlabel="epoch" if rates else "step", xlim=(0, None))
        if title != "loss":
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if not axes.lines:
            axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes)
        elif any(names.values()):
            axes.legend()
    figure.suptitle(files.escape(out.resolve().name), parse_math=False)
    return saved(figure, out / "curves.png")


def saved(figure: Figure, path: Path) -> Path:
    """Write the picture whole or not at all."""
    with warnings.catch_warnings(), files.atomic_write(path) as file:
        warnings.simplefilter("ignore")  # letters that the font lacks become boxes
        figure.savefig(file, format="png", dpi=120)
    return path


# ---------------------------------------------------------------------------------------------- the answers of an evaluation
def of_answers(out: Path, images: Source, answers: Predictions, names: Sequence[str]) -> list[Path]:
    """confusion.png and mistakes.png of what was said of all of the evaluation images; no mistakes of synthetic ones."""
    counted = answers.confusion(len(names))
    seen = int(counted.sum())
    told = f"top-1 {100 * np.trace(counted) / max(seen, 1):.2f} % of {seen:,} images"
    made = [confusion(out / "confusion.png", counted, names, told)]
    if images.val_reader is not None:
        made.append(mistakes(out / "mistakes.png", images, answers, names, told))
    return made


def confusion(path: Path, counted: NDArray[np.int64], names: Sequence[str], title: str) -> Path:
    """The matrix [classes, classes] as shares of each row; with names and figures as far as they can be read."""
    classes = len(names)
    labels = [files.escape(name)[:LONGEST] for name in names]
    shares = counted / np.maximum(counted.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.35 * classes, 16)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(shown, label="share of the class's images", shrink=0.8)
    axes.set(xlabel="said by the network", ylabel="class", title=title)
    if classes <= NAMED:
        axes.set_xticks(range(classes), labels, rotation=90, parse_math=False)
        axes.set_yticks(range(classes), labels, parse_math=False)
    if classes <= COUNTED:
        for row, column in zip(*np.nonzero(counted), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counted[row, column]), ha="center", va="center", color=colour, fontsize=8)
    return saved(figure, path)


def mistakes(path: Path, images: Source, answers: Predictions, names: Sequence[str], title: str) -> Path:
    """The surest MISTAKES, read again: under each its class, and what the network took it for, how surely."""
    chosen = answers.mistakes(MISTAKES)
    wrong = int((answers.seen & (answers.labels != answers.said)).sum())
    which = f"the {len(chosen)} surest of {wrong:,} mistakes" if wrong else "no mistake"
    cell, gap, margin, caption = show.CELL, show.GAP, show.MARGIN, 2 * show.CAPTION
    rows = -(-len(chosen) // show.COLUMNS)
    width = 2 * margin + show.COLUMNS * (cell + gap) - gap
    page = Image.new("RGB", (width, 2 * margin + 40 + rows * (cell + caption + gap)), show.PAPER)
    pen, small = ImageDraw.Draw(page), 15
    pen.text((margin, margin), f"{title}; {which}", show.INK, show.font(24))
    for place, number in enumerate(chosen):
        left = margin + place % show.COLUMNS * (cell + gap)
        top = margin + 40 + place // show.COLUMNS * (cell + caption + gap)
        page.paste(show.fitted(pixels(images, int(number))), (left, top))
        share = f" ({100 * answers.probability[number]:.1f} %)"
        room = cell - int(show.font(small).getlength(f"→ {share}"))
        said = f"→ {show.short(names[answers.said[number]], small, room)}{share}"
        pen.text(
            (left, top + cell + 4),
            show.short(names[answers.labels[number]], small, cell),
            show.INK,
            show.font(small),
        )
        pen.text((left, top + cell + show.CAPTION), said, WRONG, show.font(small))
    with files.atomic_write(path) as file:
        page.save(file, "PNG")
    return path


def pixels(images: Source, number: int) -> NDArray[np.uint8]:
    """The evaluation image of that number as the network saw it, uint8 [S, S, 3]."""
    reader: Any = images.val_reader
    encoded = tfexample.decode(reader(number))["image/encoded"]
    settings: Any = images.settings
    return np.asarray(pipeline.centre_crop(tf.constant(encoded), settings))
