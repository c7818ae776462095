"""A contact sheet: training images as the network sees them, and evaluation images, above the names of their classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from resnet import UserError, files
from resnet.config.data import Records
from resnet.config.training import Augment, ErasingMode
from resnet.data import pipeline
from resnet.data.augment import draws, on_device
from resnet.data.source import Source

COLUMNS, CELL, GAP, MARGIN, CAPTION, HEADING = 8, 160, 12, 28, 22, 40  # pixels, but for the first
PAPER, INK, FAINT = "#ffffff", "#1f2430", "#6b7280"
DPI, LETTERS = 100, 22  # LETTERS of a name; the rest of a line of wide ones is clipped
Section = tuple[str, NDArray[np.uint8], list[int]]  # heading, images [n, S, S, 3], labels


def draw(source: Source, augment: Augment, title: str, names: Sequence[str], out: str, images: int, seed: int) -> None:
    """Write the PNG `out` of `images` training and evaluation images of a data set, the same for a seed."""
    train, val = sections = pictures(source, augment, images, seed)
    figure = sheet(title, sections, names)
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), files.atomic_write(Path(out)) as file:
            warnings.simplefilter("ignore")  # letters that the font lacks become boxes
            figure.savefig(file, format="png", dpi=DPI)
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror or error})") from error
    width, height = (round(side * DPI) for side in figure.get_size_inches())
    print(f"{out}: {len(train[2])} training and {len(val[2])} evaluation images, {width} x {height} pixels")


def pictures(source: Source, augment: Augment, images: int, seed: int) -> list[Section]:
    """The first training batch and the first evaluation batch, through the pipeline of training."""
    settings = source.settings
    assert isinstance(settings, Records)
    mean, std = np.asarray(settings.mean, np.float32), np.asarray(settings.std, np.float32)
    count = min(images, source.train_images)
    pixels, labels, flips = next(iter(pipeline.train(source, count, seed, 0, augment=augment)))
    prepared = on_device.prepare_images(pixels, flips, settings.mean, settings.std)
    if augment.erasing:
        rectangles = tf.constant(draws.erasing(augment.erasing, seed, 0, count, pixels.shape[1]))
        noise = tf.constant([seed, -1]) if augment.erasing_mode is ErasingMode.pixel else None
        prepared = on_device.erase(prepared, rectangles, noise)
    inputs = prepared.numpy() * std + mean
    eval_pixels, eval_labels, _mask = next(iter(pipeline.evaluation(source, min(images, source.eval_images))))
    size, mirrored = settings.image_size, ", mirrored or not" if settings.flip else ""
    mirrored += f", {augment.name}" if augment.name != "none" else ""
    train = f"Training, {source.train_images:,} images: random crops to {size} px{mirrored}, as the network sees them"
    val = f"Evaluation, {source.eval_images:,} images: short side {settings.eval_short} px, centre {size} px"
    return [
        (train, inputs.round().clip(0, 255).astype(np.uint8), labels.numpy().tolist()),
        (val, eval_pixels.numpy(), eval_labels.numpy().tolist()),
    ]


def sheet(title: str, sections: Sequence[Section], names: Sequence[str]) -> Figure:
    """The sheet: a title, and under each heading rows of images with their classes below. Its unit is the pixel."""
    rows = [-(-len(labels) // COLUMNS) for _, _, labels in sections]
    width = 2 * MARGIN + COLUMNS * (CELL + GAP) - GAP
    height = 2 * MARGIN + HEADING - GAP + sum(HEADING + count * (CELL + CAPTION + GAP) for count in rows)
    figure = Figure(figsize=(width / DPI, height / DPI), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    axes.text(MARGIN, MARGIN, title, va="top", color=INK, fontsize=17, parse_math=False)
    top = MARGIN + HEADING
    for text, pixels, labels in sections:
        axes.text(MARGIN, top + GAP, text, va="top", color=FAINT, fontsize=11, parse_math=False)
        top += HEADING
        for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
            left, above = MARGIN + number % COLUMNS * (CELL + GAP), top + number // COLUMNS * (CELL + CAPTION + GAP)
            # Few pixels stay visible as squares.
            scaling = "nearest" if picture.shape[0] * 2 < CELL else "lanczos"
            axes.imshow(picture, extent=(left, left + CELL, above + CELL, above), aspect="auto", interpolation=scaling)
            name = files.escape(names[label]) if label < len(names) else f"label {label + 1}"
            name = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
            caption = axes.text(left, above + CELL + 4, name, va="top", color=INK, fontsize=10, parse_math=False)
            caption.set_clip_on(True)
            caption.set_clip_path(Rectangle((left, above + CELL), CELL, CAPTION, transform=axes.transData))
        top += -(-len(labels) // COLUMNS) * (CELL + CAPTION + GAP)
    return figure
