"""`python -m resnet.evaluate <run folder | weights file> [data=...]`: the accuracy of a trained network, class by class."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet import UserError, addresses, cli, files, home
from resnet.config.data import Data, Records

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILES = ("scores.json", "classes.csv", "confusion.csv", "confusion.png", "mistakes.png")
SIZES = "eval_sizes="

HELP = """Evaluate a trained network: python -m resnet.evaluate WEIGHTS [knob=value ...]

WEIGHTS is a run's folder (its best checkpoint, averaged weights if it has them), one of its checkpoints, a SavedModel of
this suite, or a .safetensors or .npz file with timm's, torchvision's or Hugging Face's names. Only numbers are read of a
SavedModel here; it is a program to whatever else loads it: take SavedModels only from people you trust.

WEIGHTS may lie at an address: https://host/x.safetensors, or a folder of resnet.export.

  data=imagenet data.dir=DIR   evaluate on these shards; default: the data of the run
  out=DIR                      folder for the results (default: WEIGHTS-evaluation): scores.json, classes.csv, confusion.csv,
                               confusion.png, and mistakes.png, the most confident ones
  eval_sizes=[160,224,288]     also at these sizes in place of data.image_size, in a table; the crop keeps its share of the short
                               side, and the other files are of data.image_size
  model=, dtype=, cluster=, batch=, eval_steps=, data.eval_resize=, data.eval_flip=, ...   as in training

Weights that were published with a preprocessing need the same here; by default it is torchvision's, short side 256, bilinear:
  torchvision's V2 weights     data.eval_resize=232
  timm's resnet50.a1_in1k      data.eval_crop=0.95 data.eval_interpolation=bicubic"""


def evaluate(path: str, overrides: Sequence[str], out: Path, sizes: Sequence[int] = ()) -> dict[str, Any]:
    """Evaluate, write the files into `out` and return the content of scores.json.

    With `sizes`, its `sizes` has a row for each of them and for the network's own, which everything else is of.
    """
    from resnet.data import reading, source
    from resnet.distributed.ranks import Ranks
    from resnet.training import artifacts, trained
    from resnet.training.evaluation import Evaluator

    loaded = trained.load(path, overrides)
    run = loaded.run
    settings = [at_size(run.data, size) for size in sizes if size != run.data.image_size]
    for line in loaded.notes:
        print(line)
    images = source.open_source(run.data)
    with files.writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    rows = []
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.SIG_IGN:  # no handler in Python runs while TensorFlow waits for a read
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with reading.reading(images, run.seed, run.batch):
            for images.settings in (*settings, run.data):  # its own size last, which the files below are of
                evaluator = Evaluator(dataclasses.replace(run, data=images.settings), images, [loaded.network], Ranks())
                began = time.perf_counter()
                result, _ = evaluator()
                rows.append(row(images.settings, result.as_dict(), time.perf_counter() - began))
            predictions = evaluator.predictions()
    finally:
        signal.signal(signal.SIGINT, handler)
    names = loaded.names or [str(number) for number in range(run.data.classes)]
    scores = {
        "weights": path if addresses.is_remote(path) else str(Path(path).resolve()),
        "data": run.data.name,
        **result.as_dict(),
    }
    if sizes:
        scores["sizes"] = sorted(rows, key=lambda one: one["image_size"])
    write(out, scores, predictions.confusion(len(names)), names)
    artifacts.of_predictions(out, images, predictions, names)
    return scores


def at_size(data: Data, size: int) -> Data:
    """`data` with this image_size, of which the crop keeps its share of the short side. Raises UserError."""
    if not isinstance(data, Records):
        raise UserError(f"{SIZES}{size}: is for photographs, and data={data.name} has none; leave it out")
    resize = (
        data.eval_resize
        if data.eval_resize is None or data.eval_crop
        else round(data.eval_short * size / data.image_size)
    )
    try:
        return dataclasses.replace(data, image_size=size, eval_resize=resize)
    except UserError as error:
        raise UserError(f"{SIZES}{size}: {error}") from None


def row(data: Data, scores: dict[str, float], seconds: float) -> dict[str, float]:
    """Of one size in scores.json; the seconds include compiling."""
    resize = data.eval_short if isinstance(data, Records) else data.image_size
    speed = round(scores["seen"] / seconds, 1)
    return {"image_size": data.image_size, "eval_resize": resize, **scores, "images_per_s": speed}


def table(rows: Sequence[dict[str, float]]) -> str:
    """A line for each size."""
    lines = [f"{'size':>6}{'resize':>8}{'top-1 %':>10}{'top-5 %':>10}{'loss':>10}{'images/s':>11}"]
    for one in rows:
        share = f"{one['image_size']:>6}{one['eval_resize']:>8}{100 * one['top1']:>10.2f}{100 * one['top5']:>10.2f}"
        lines.append(f"{share}{one['loss']:>10.4f}{one['images_per_s']:>11,.1f}")
    return "\n".join(lines)


def sizes_in(words: Sequence[str]) -> tuple[list[str], list[int]]:
    """(the other words, the sizes of eval_sizes=, each once). Raises UserError."""
    rest = [word for word in words if not word.startswith(SIZES)]
    typed = [word.removeprefix(SIZES) for word in words if word.startswith(SIZES)]
    if not typed:
        return rest, []
    parts = [part.strip() for part in typed[-1].removeprefix("[").removesuffix("]").split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise UserError(f"{SIZES}{typed[-1]}: must be sides in pixels, such as {SIZES}[160,224,288]")
    return rest, sorted({int(part) for part in parts})


def write(out: Path, scores: dict[str, Any], confusion: NDArray[np.int64], names: list[str]) -> None:
    """scores.json, classes.csv, confusion.csv (rows: labels, columns: predictions)."""
    files.write_text(out / "scores.json", json.dumps(scores, indent=1) + "\n")
    classes: list[list[Any]] = [["class", "images", "right", "top1", "most_often_taken_for", "so_often"]]
    for number, (name, row) in enumerate(zip(names, confusion, strict=True)):
        wrong = row.copy()
        wrong[number] = 0
        mistaken_for = names[int(wrong.argmax())] if wrong.any() else ""
        top1 = f"{row[number] / row.sum():.6f}" if row.sum() else ""
        classes.append([name, row.sum(), row[number], top1, mistaken_for, wrong.max()])
    matrix = [["", *names], *([name, *row] for name, row in zip(names, confusion, strict=True))]
    for path, rows in ((out / "classes.csv", classes), (out / "confusion.csv", matrix)):
        # Bytes of a name that are no UTF-8, which a folder's may have, are escaped.
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        with files.atomic_write(path) as file:
            file.write(text.getvalue().encode(errors="backslashreplace"))


def main() -> None:
    with cli.command(HELP) as words:
        others, sizes = sizes_in(words)
        path, overrides, place = cli.weights_and_overrides(others, "resnet.evaluate")
        weights = path.rstrip("/").rpartition("/")[2] if addresses.is_remote(path) else Path(path).resolve()
        out = home.expand(place) if place else Path(f"{weights}-evaluation").absolute()
        scores = evaluate(path, overrides, out, sizes)
        if sizes:
            print(table(scores["sizes"]))
        top1, top5 = 100 * scores["top1"], 100 * scores["top5"]
        print(f"top-1 {top1:.2f} %  top-5 {top5:.2f} %  loss {scores['loss']:.4f}  ({scores['seen']:,} images)")
        print(f"{out}: {', '.join(name for name in FILES if (out / name).exists())}")


if __name__ == "__main__":
    main()
