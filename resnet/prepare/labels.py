"""Files that tell the classes of images: tables of file names and labels, such as Kaggle's train.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from resnet import UserError
from resnet.files import normal
from resnet.prepare.listing import few

NAMES = (
    "label",
    "labels",
    "class",
    "classes",
    "class_name",
    "category",
    "target",
    "species",
    "breed",
)  # of such columns
SAMPLE = 1000  # rows by which the column of file names is recognized
MAX_BYTES = 1 << 30


@dataclass
class Labels:
    """The label of each image of a table, by the image's name, and (name, reason) of what lacks its other half."""

    of_image: dict[str, str] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)


class Names:
    """Images by what a table may call them: with the folders above them or without, with the ending or without."""

    def __init__(self, names: Iterable[str]) -> None:
        self.exact, self.short = dict[str, str](), dict[str, str | None]()  # None: several are called so
        for name in names:
            path = PurePosixPath(normal(name))
            self.exact[str(path)] = name
            for short in {str(path.with_suffix("")), path.name, path.stem}:
                self.short[short] = None if short in self.short else name

    def find(self, cell: str) -> tuple[str | None, str]:
        """(the image of this name, why there is none)."""
        path = PurePosixPath(normal(cell.strip()).replace("\\", "/"))
        for place in (str(path), path.name):
            if name := self.exact.get(place, self.short.get(place)):
                return name, ""
        several = any(place in self.short for place in (str(path), path.name))
        return None, "is the name of several images" if several else "names no image"


def of_table(path: str, column: str | None, names: Iterable[str]) -> Labels:
    """The labels that the CSV `path` gives to the images of these names.

    The column of file names is the one whose cells name images; the other one has the labels, of several the one that `column`,
    or its header, says. Raises UserError if that does not tell them.
    """
    rows, images = rows_of(path), Names(names)
    width = len(rows[0])
    if uneven := next((number for number, row in enumerate(rows, 1) if len(row) != width), None):
        raise UserError(f"labels={path}: row {uneven} has {len(rows[uneven - 1])} columns, and the first one {width}")
    hits = [sum(images.find(row[place])[0] is not None for row in rows[:SAMPLE]) for place in range(width)]
    if not max(hits):
        shown = ", ".join(map(repr, rows[min(1, len(rows) - 1)]))
        raise UserError(f"labels={path}: no column names images of dir= (a row is {shown}); give dir= of these images")
    files = hits.index(max(hits))
    first = rows[0][files]
    header = rows[0] if images.find(first)[0] is None and not any(letter in "0123456789." for letter in first) else None
    place = label_column(path, column, header, width, files)
    labels = Labels()
    for row in rows[1:] if header else rows:
        image, problem = images.find(row[files])
        label = normal(row[place].strip())
        if image is None:
            labels.refused.append((row[files], f"{problem}, in {Path(path).name}"))
        elif not label:
            labels.refused.append((image, f"has no label in {Path(path).name}"))
        elif labels.of_image.setdefault(image, label) != label:
            labels.refused.append((image, f"has the labels {labels.of_image[image]!r} and {label!r}"))
    for image in {name for name, _ in labels.refused} & labels.of_image.keys():
        del labels.of_image[image]
    known = labels.of_image.keys() | {name for name, _ in labels.refused}
    labels.refused += [(name, f"is not in {Path(path).name}") for name in images.exact.values() if name not in known]
    return labels


def label_column(path: str, column: str | None, header: Sequence[str] | None, width: int, files: int) -> int:
    """The number of the column of labels. Raises UserError if it is not clear."""
    heads = [head.strip() for head in header or map(str, range(1, width + 1))]
    others = [place for place in range(width) if place != files]
    if column is not None:
        places = [place for place, head in enumerate(heads) if head == column]
        if not places and column.isdecimal() and 1 <= int(column) <= width:
            places = [int(column) - 1]
        if not places or places[0] == files:
            raise UserError(f"label_column={column}: no column of labels in {path}, which has {few(heads)}")
        return places[0]
    named = others if len(others) == 1 else [place for place in others if heads[place].lower() in NAMES]
    if len(named) != 1:
        raise UserError(f"labels={path}: which of its columns {few(heads)} has the labels? Say it with label_column=")
    return named[0]


def rows_of(path: str) -> list[list[str]]:
    """The rows of a CSV that hold something; its cells are parted by commas, semicolons or tabs. Raises UserError."""
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise UserError(f"labels={path}: more than {MAX_BYTES:,} bytes; give a table of file names and labels")
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"labels={path}: cannot be read ({error})") from error
    first = text.lstrip().partition("\n")[0]
    mark = max(",;\t", key=first.count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=mark) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(f"labels={path}: not a CSV ({error})") from error
    if not rows or len(rows[0]) < 2:
        raise UserError(f"labels={path}: not a CSV of file names and labels; its rows must have two columns or more")
    return rows


# ----------------------------------------------------------------------------------------------- ImageNet's validation images
def of_validation(path: str, lines: Sequence[str], images: Sequence[str], classes: Sequence[str]) -> list[str]:
    """The class of each validation image, whose file names are in order, from the lines of `path`.

    The lines are classes in that order; or Caffe's `ILSVRC2012_val_00000001.JPEG 65`, whose numbers count the sorted classes
    from 0; or Kaggle's `ILSVRC2012_val_00048981,n03995372 85 1 499 272`. Raises UserError if they are none of that, or if an
    image has none.
    """
    if lines and all(line.isdigit() for line in lines):
        raise UserError(
            f"labels={path}: numbers, which are not those of the sorted synsets; give the file of synsets (synset_labels.txt)"
        )
    pairs = [line.replace(",", " ").split()[:2] for line in lines if not line.lower().startswith("imageid,")]
    if any(len(pair) < 2 for pair in pairs):
        if len(lines) != len(images):
            raise UserError(
                f"labels={path}: {len(lines):,} lines for {len(images):,} validation images; there must be one for each"
            )
        return list(lines)
    of_image = {PurePosixPath(name).stem: label for name, label in pairs}
    if lacking := [name for name in images if PurePosixPath(name).stem not in of_image]:
        raise UserError(f"labels={path}: {len(lacking):,} validation images have no line there: {few(lacking)}")
    labels = [of_image[PurePosixPath(name).stem] for name in images]
    if not all(label.isdigit() for label in of_image.values()):
        return labels
    numbers = sorted({int(label) for label in of_image.values()})
    if numbers[-1] >= len(classes):
        raise UserError(
            f"labels={path}: numbers {numbers[0]} to {numbers[-1]}, and {len(classes):,} sorted synsets are counted from 0 to "
            f"{len(classes) - 1:,}; give a file of synsets"
        )
    return [classes[int(label)] for label in labels]
