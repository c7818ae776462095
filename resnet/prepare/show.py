"""A contact sheet: training images as the network sees them, and evaluation images, under their classes' names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from resnet import UserError, files
from resnet.config import compose
from resnet.data import manifest, source

COLUMNS, CELL, GAP, MARGIN, CAPTION = 8, 160, 12, 28, 22  # pixels, but for the first
PAPER, INK, FAINT = "#ffffff", "#1f2430", "#6b7280"


def draw(folder: str, out: str, images: int, seed: int) -> None:
    """Write the PNG `out` of `images` training and evaluation images of the shards in `folder`, the same for a seed."""
    names, kind = described(Path(folder))
    settings = compose.one_group("data", f"data={kind}", dir=folder)
    opened = source.open_source(settings)
    train, val = pictures(opened, images, seed)
    size, resize = settings.image_size, settings.eval_resize
    mirrored = ", mirrored or not" if settings.flip else ""
    title = f"{Path(folder).name}: {settings.classes:,} classes"
    sections = [
        (
            f"Training, {opened.train_images:,} images: random crops to {size} px{mirrored}, as the network sees them",
            train,
        ),
        (f"Evaluation, {opened.eval_images:,} images: short side {resize} px, centre {size} px", val),
    ]
    sheet = composed(title, sections, names)
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(Path(out)) as file:
            sheet.save(file, "PNG")
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror or error})") from error
    print(f"{out}: {len(train[0])} training and {len(val[0])} evaluation images, {sheet.width} x {sheet.height} pixels")


def described(folder: Path) -> tuple[list[str], str]:
    """(the classes' names, none if not known; the option of `data` that reads such a folder)."""
    made = manifest.read(folder)
    path = folder / files.CLASSES
    if not path.exists():
        return [], "imagenet"
    made = made or {}
    texts = made.get("texts", {})
    names = [texts.get(name, name) for name in files.read_classes(path.read_text("utf-8"))]
    return names, "digits" if made.get("options", {}).get("source") == "digits" else "folder"


def pictures(opened: source.Source, images: int, seed: int) -> list[tuple[NDArray[np.uint8], list[int]]]:
    """(pixels, labels) of the first training batch and the first evaluation batch, through the pipeline of training."""
    from resnet.data import augment, pipeline  # TensorFlow

    settings = opened.settings
    mean, std = np.asarray(settings.mean, np.float32), np.asarray(settings.std, np.float32)
    batch = min(images, opened.train_images)
    pixels, labels, flips = next(iter(pipeline.train(opened, batch, seed, 0)))
    seen = augment.prepare_images(pixels, flips, settings.mean, settings.std).numpy() * std + mean
    shown = min(images, opened.eval_images)
    eval_pixels, eval_labels, _mask = next(iter(pipeline.evaluation(opened, shown)))
    return [
        (seen.round().clip(0, 255).astype(np.uint8), labels.numpy().tolist()),
        (eval_pixels.numpy(), eval_labels.numpy().tolist()),
    ]


def composed(
    title: str, sections: Sequence[tuple[str, tuple[NDArray[np.uint8], list[int]]]], names: Sequence[str]
) -> Image.Image:
    """The sheet: a title, and under each heading rows of images with their classes below."""
    heading, small = 30, 15
    rows = [-(-len(labels) // COLUMNS) for _, (_, labels) in sections]
    width = 2 * MARGIN + COLUMNS * CELL + (COLUMNS - 1) * GAP
    height = MARGIN + 40 + sum(heading + GAP + count * (CELL + CAPTION + GAP) for count in rows) + MARGIN - GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, INK, font(24))
    top = MARGIN + 40
    for text, (pixels, labels) in sections:
        pen.text((MARGIN, top + GAP), text, FAINT, font(small))
        top += heading + GAP
        for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
            left = MARGIN + number % COLUMNS * (CELL + GAP)
            above = top + number // COLUMNS * (CELL + CAPTION + GAP)
            sheet.paste(fitted(picture), (left, above))
            name = names[label] if label < len(names) else f"label {label + 1}"
            pen.text((left, above + CELL + 4), short(name, small, CELL), INK, font(small))
        top += -(-len(labels) // COLUMNS) * (CELL + CAPTION + GAP)
    return sheet


def fitted(picture: NDArray[np.uint8]) -> Image.Image:
    """A square image at the size of a cell; few pixels stay visible as squares."""
    coarse = picture.shape[0] * 2 < CELL
    return Image.fromarray(picture).resize(
        (CELL, CELL), Image.Resampling.NEAREST if coarse else Image.Resampling.LANCZOS
    )


def font(size: int) -> Any:
    """DejaVu Sans, which matplotlib brings along and which knows most alphabets; else Pillow's own."""
    try:
        import matplotlib

        return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)


def short(name: str, size: int, width: int) -> str:
    """As much of a name as fits, on one line."""
    shown = files.escape(name)
    while font(size).getlength(shown) > width:
        shown = shown.removesuffix("…")[:-1] + "…"
    return shown
