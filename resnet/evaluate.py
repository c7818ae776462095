"""`python -m resnet.evaluate <run folder | weights file> [data=...]`: the accuracy of a trained network, class by class."""

from __future__ import annotations

import csv
import io
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet import addresses, cli, files, home

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILES = ("scores.json", "classes.csv", "confusion.csv", "confusion.png", "mistakes.png")

HELP = """Evaluate a trained network: python -m resnet.evaluate WEIGHTS [knob=value ...]

WEIGHTS is a run's folder (its best checkpoint, averaged weights if it has them), one of its checkpoints, a SavedModel of
this suite, or a .safetensors or .npz file with timm's, torchvision's or Hugging Face's names. Only numbers are read of a
SavedModel here; it is a program to whatever else loads it: take SavedModels only from people you trust.

WEIGHTS may lie at an address: https://host/x.safetensors, or a folder of resnet.export.

  data=imagenet data.dir=DIR   evaluate on these shards; default: the data of the run
  out=DIR                      folder for the results (default: WEIGHTS-evaluation): scores.json, classes.csv, confusion.csv,
                               confusion.png, and mistakes.png, the most confident ones
  model=, dtype=, cluster=, batch=, eval_steps=, data.eval_resize=, ...   as in training"""


def evaluate(path: str, overrides: Sequence[str], out: Path) -> dict[str, Any]:
    """Evaluate, write the files into `out` and return the content of scores.json."""
    from resnet.data import reading, source
    from resnet.distributed.ranks import Ranks
    from resnet.training import artifacts, trained
    from resnet.training.evaluation import Evaluator

    loaded = trained.load(path, overrides)
    run = loaded.run
    for line in loaded.notes:
        print(line)
    images = source.open_source(run.data)
    with files.writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    evaluator = Evaluator(run, images, [loaded.network], Ranks())
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.SIG_IGN:  # no handler in Python runs while TensorFlow waits for a read
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with reading.reading(images, run.seed, run.batch):
            (result, _), predictions = evaluator(), evaluator.predictions()
    finally:
        signal.signal(signal.SIGINT, handler)
    names = loaded.names or [str(number) for number in range(run.data.classes)]
    scores = {
        "weights": path if addresses.is_remote(path) else str(Path(path).resolve()),
        "data": run.data.name,
        **result.as_dict(),
    }
    write(out, scores, predictions.confusion(len(names)), names)
    artifacts.of_predictions(out, images, predictions, names)
    return scores


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
        path, overrides, place = cli.weights_and_overrides(words, "resnet.evaluate")
        weights = path.rstrip("/").rpartition("/")[2] if addresses.is_remote(path) else Path(path).resolve()
        out = home.expand(place) if place else Path(f"{weights}-evaluation").absolute()
        scores = evaluate(path, overrides, out)
        top1, top5 = 100 * scores["top1"], 100 * scores["top5"]
        print(f"top-1 {top1:.2f} %  top-5 {top5:.2f} %  loss {scores['loss']:.4f}  ({scores['seen']:,} images)")
        print(f"{out}: {', '.join(name for name in FILES if (out / name).exists())}")


if __name__ == "__main__":
    main()
