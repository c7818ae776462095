"""`python -m resnet.evaluate <run folder | weights file> [data=...]`: what a trained network gets right, class by class."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet import UserError, cli

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILES = ("scores.json", "classes.csv", "confusion.csv", "confusion.png", "mistakes.png")

HELP = """Evaluate a trained network: python -m resnet.evaluate WEIGHTS [knob=value ...]

WEIGHTS is a run's folder (its best checkpoint, averaged weights where there are any), a checkpoint in one, a SavedModel of
this suite, or a .safetensors or .npz file with timm's, torchvision's or Hugging Face's names.

  data=imagenet data.dir=DIR   evaluate on these shards; a run's own data if left out
  out=DIR                      where the files go (default: WEIGHTS-evaluation): scores.json, classes.csv, confusion.csv,
                               confusion.png, and mistakes.png, the surest of them
  model=, dtype=, cluster=, batch=, eval_steps=, data.eval_resize=, ...   as in training"""


def evaluate(path: str, words: Sequence[str], out: Path) -> dict[str, Any]:
    """Evaluate, write the files into `out` and return what scores.json holds."""
    from resnet.data import pipeline, source
    from resnet.distributed.ranks import Ranks
    from resnet.training import artifacts, trained
    from resnet.training.evaluation import Evaluator

    made = trained.load(path, words)
    for line in made.notes:
        print(line)
    images = source.open_source(made.run.data)
    check_out(out)
    evaluator = Evaluator(made.run, images, [made.network], Ranks())
    with pipeline.naming_bad_images(images, made.run.seed, made.run.batch):
        (scores, _), predictions = evaluator(), evaluator.predictions()
    names = made.names or [str(number) for number in range(made.run.data.classes)]
    told = {"weights": str(Path(path).resolve()), "data": made.run.data.name, **scores.as_dict()}
    write(out, told, predictions.confusion(len(names)), names)
    artifacts.of_predictions(out, images, predictions, names)
    return told


def check_out(out: Path) -> None:
    """Raise UserError if the results could not be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot be written to ({error.strerror}); give another folder") from error


def write(out: Path, told: dict[str, Any], confusion: NDArray[np.int64], names: list[str]) -> None:
    """scores.json, classes.csv, confusion.csv (rows: the truth, columns: what the network said)."""
    (out / "scores.json").write_text(json.dumps(told, indent=1) + "\n")
    classes: list[list[Any]] = [["class", "images", "right", "top1", "most_often_taken_for", "so_often"]]
    for number, (name, row) in enumerate(zip(names, confusion, strict=True)):
        wrong = row.copy()
        wrong[number] = 0
        taken = names[int(wrong.argmax())] if wrong.any() else ""
        share = f"{row[number] / row.sum():.6f}" if row.sum() else ""
        classes.append([name, row.sum(), row[number], share, taken, wrong.max()])
    write_csv(out / "classes.csv", classes)
    rows = ([name, *row] for name, row in zip(names, confusion, strict=True))
    write_csv(out / "confusion.csv", [["", *names], *rows])


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """One file in UTF-8; a name's bytes that are none, which a folder may have, are escaped."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows(rows)


def go(words: Sequence[str]) -> None:
    """The command without the reporting of errors."""
    path, rest, out = cli.weights_and_overrides(words, "resnet.evaluate")
    place = Path(out).expanduser() if out else Path(f"{Path(path).resolve()}-evaluation")
    told = evaluate(path, rest, place)
    print(
        f"top-1 {100 * told['top1']:.2f} %  top-5 {100 * told['top5']:.2f} %  loss {told['loss']:.4f}  ({told['seen']:,} images)"
    )
    print(f"{place}: {', '.join(name for name in FILES if (place / name).exists())}")


def main() -> None:
    """The command."""
    cli.command(HELP, go)


if __name__ == "__main__":
    main()
