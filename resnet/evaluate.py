"""`python -m resnet.evaluate <run folder | weights file> [data=...]`: what a trained network gets right, class by class."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONGEST = 40  # characters of a class's name in the picture

HELP = """Evaluate a trained network: python -m resnet.evaluate WEIGHTS [knob=value ...]

WEIGHTS is a run's folder (its best checkpoint, averaged weights where there are any), a checkpoint in one, a SavedModel of
this suite, or a .safetensors or .npz file with timm's, torchvision's or Hugging Face's names.

  data=imagenet data.dir=DIR   evaluate on these shards; a run's own data if left out
  out=DIR                      where scores.json, classes.csv, confusion.csv and confusion.png go (default: WEIGHTS-evaluation)
  model=, dtype=, cluster=, batch=, eval_steps=, data.eval_resize=, ...   as in training"""


def evaluate(path: str, words: Sequence[str], out: Path) -> dict[str, Any]:
    """Evaluate, write the four files into `out` and return what scores.json holds."""
    import numpy as np
    import tensorflow as tf

    from resnet import data, scores, source, trained

    made = trained.opened(path, words)
    for line in made.notes:
        print(line)
    images = source.opened(made.run.data)
    check_out(out)
    expected = min(images.eval_images, (made.run.eval_steps or images.eval_images) * made.run.batch)
    confusion = np.zeros([made.run.data.classes] * 2, np.int64)
    step = scores.predicting(made.network, made.run.data)

    def counted(pixels: Any, labels: Any, mask: Any) -> Any:
        counts, predicted = step(pixels, labels, mask)
        here = mask.numpy() > 0
        np.add.at(confusion, (labels.numpy()[here], predicted.numpy()[here]), 1)
        return counts

    batches = data.evaluation(images, made.run.batch, made.run.eval_steps)
    try:
        found, _ = scores.over(batches, counted, lambda: expected - images.lost(expected))
    except tf.errors.OpError:  # as in training: a reading thread's error, or an image that its decoder refused
        if fault := images.fault or data.undecodable(images, made.run.seed, 0, made.run.batch, steps=0):
            raise fault from None
        raise
    names = made.names or [str(number) for number in range(len(confusion))]
    told = {"weights": str(Path(path).resolve()), "data": made.run.data.name, **asdict(found)}
    write(out, told, confusion, names)
    return told


def check_out(out: Path) -> None:
    """Raise UserError if the results could not be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot be written to ({error.strerror}); give another folder") from error


def write(out: Path, told: dict[str, Any], confusion: NDArray[np.int64], names: list[str]) -> None:
    """scores.json, classes.csv, confusion.csv (rows: the truth, columns: what the network said), confusion.png."""
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
    draw(out / "confusion.png", confusion, names, f"top-1 {100 * told['top1']:.2f} % of {told['seen']:,} images")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """One file in UTF-8; a name's bytes that are none, which a folder may have, are escaped."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows(rows)


def draw(path: Path, confusion: NDArray[np.int64], names: list[str], title: str) -> None:
    """The confusion matrix as shares of each row; with names and figures as far as they can be read."""
    import numpy as np
    from matplotlib.figure import Figure

    from resnet.preparation import manifest

    classes = len(names)
    labels = [manifest.escaped(name)[:LONGEST] for name in names]
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.35 * classes, 16)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(shown, label="share of the class's images", shrink=0.8)
    axes.set(xlabel="said by the network", ylabel="class", title=title)
    if classes <= 60:
        axes.set_xticks(range(classes), labels, rotation=90, parse_math=False)
        axes.set_yticks(range(classes), labels, parse_math=False)
    if classes <= 20:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks become boxes; the CSV has them
        figure.savefig(path, dpi=120)


def separated(words: Sequence[str], command: str) -> tuple[str, list[str], str | None]:
    """(weights, words for the composition, out) of a command line. Raises UserError unless there is one path of weights."""
    knobs = [word for word in words if "=" in word and "/" not in word.partition("=")[0]]
    paths = [str(Path(word).expanduser()) for word in words if word not in knobs]
    if len(paths) != 1:
        raise UserError(f"{command}: give one run's folder or weights file, not {len(paths)}; --help tells more")
    outs = [word.removeprefix("out=") for word in knobs if word.startswith("out=")]
    return paths[0], [word for word in knobs if not word.startswith("out=")], outs[-1] if outs else None


def go(words: Sequence[str]) -> None:
    """The command without the reporting of errors."""
    path, rest, out = separated(words, "resnet.evaluate")
    place = Path(out).expanduser() if out else Path(f"{Path(path).resolve()}-evaluation")
    told = evaluate(path, rest, place)
    print(
        f"top-1 {100 * told['top1']:.2f} %  top-5 {100 * told['top5']:.2f} %  loss {told['loss']:.4f}  ({told['seen']:,} images)"
    )
    print(f"{place}: scores.json, classes.csv, confusion.csv, confusion.png")


def command(help_text: str, work: Callable[[Sequence[str]], None]) -> int:
    """Do `work` with the words of the command line, or tell what can be asked; exit status."""
    from resnet import train

    if not sys.argv[1:] or {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text)
        return 0
    return train.reported(lambda: work(sys.argv[1:]))


def main() -> int:
    """Exit status."""
    return command(HELP, go)


if __name__ == "__main__":
    sys.exit(main())
