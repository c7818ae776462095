"""`python -m resnet.prepare`: images to TFRecord shards of the ImageNet layout, with labels from 1; checking; showing."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet import UserError, cli, files
from resnet.cli import REQUIRED, knob
from resnet.config.checks import check, check_range
from resnet.data import digits, manifest
from resnet.prepare import summary, writer
from resnet.prepare.writer import Local, Writing

IMAGENET_SHARDS = (1024, 128)
RESUME = "what is finished stays, and the same command resumes"


# ------------------------------------------------------------------------------------------------------------------ knobs
@dataclass(kw_only=True)
class Imagenet(Writing):
    """ILSVRC 2012: the tars as downloaded, or what comes of unpacking them"""

    dir: str | None = knob(
        None, "has ILSVRC2012_img_{train,val}.tar, or img_train/ (train/) and img_val/ (val/), in it"
    )
    train: str | None = knob(None, "the training tar or folder, if it lies elsewhere")
    val: str | None = knob(None, "the validation tar or folder, if it lies elsewhere")
    labels: str | None = knob(
        None, "synsets of the validation images, a line each by file name (dir/synset_labels.txt)"
    )
    texts: str | None = knob(None, "lines `synset text` (dir/imagenet_metadata.txt or dir/LOC_synset_mapping.txt)")

    PATHS = ("out", "dir", "train", "val", "labels", "texts")


@dataclass(kw_only=True)
class Folder(Writing):
    """your own: jpg, jpeg, png, webp, bmp in a folder for each class"""

    dir: str | None = knob(
        None, "has the classes' folders in it, or train/ and val/ (valid/, validation/) that have them"
    )
    train: str | None = knob(None, "the training tree, if it lies elsewhere")
    val: str | None = knob(None, "the validation tree, if it lies elsewhere")
    val_fraction: float | None = knob(None, "share of every class held out where there is no validation tree (0.1)")

    PATHS = ("out", "dir", "train", "val")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_fraction is not None:
            check_range("val_fraction", self.val_fraction, 0, 1, open_low=True)


@dataclass(kw_only=True)
class Digits(Local):
    """scikit-learn's hand-written digits, embedded"""

    out: str = knob(REQUIRED, "the folder to make")


@dataclass(kw_only=True)
class Check(Local):
    """hold shards against their manifest: CRC of every file and record, counts, labels"""

    check: str = knob(REQUIRED, "the folder of shards")
    deep: bool = knob(False, "decode every image, too")
    processes: int | None = knob(None, "how many at work (one for each core)")

    PATHS = ("check",)

    def __post_init__(self) -> None:
        super().__post_init__()
        writer.check_processes(self.processes)


@dataclass(kw_only=True)
class Show(Local):
    """a picture of training images as the network sees them, and of evaluation images"""

    show: str = knob(REQUIRED, "the folder of shards")
    out: str = knob("sheet.png", "the PNG to write")
    images: int = knob(24, "how many of either")
    seed: int = knob(1, "of the order and of the crops")

    PATHS = ("show", "out")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.images <= 200, "images", self.images, "must be 1 to 200")
        check(0 <= self.seed < 2**31, "seed", self.seed, "must be at least 0 and below 2^31")


COMMANDS: dict[str, type] = {
    "source=imagenet": Imagenet,
    "source=folder": Folder,
    "source=digits": Digits,
    "check": Check,
    "show": Show,
}


def parse(words: Sequence[str]) -> Any:
    """The knobs of the command that these words are about. Raises UserError."""
    values = cli.split(words)
    names = [name for name in ("source", "check", "show") if name in values]
    if len(names) == 1 and names != ["source"]:
        return cli.parse(COMMANDS[names[0]], values, f"{names[0]}=")
    if len(names) == 1:
        command = f"source={values.pop('source')}"
        if command not in COMMANDS:
            raise UserError(f"{command}: {cli.nearest(command, [name for name in COMMANDS if '=' in name])}")
        return cli.parse(COMMANDS[command], values, command)
    every = sorted({"source", *(name for kind in COMMANDS.values() for name in cli.hints(kind))})
    for name in values:
        if name not in every:
            raise UserError(f"{name}: no such knob; {cli.nearest(name, every)}")
    problem = f"{' and '.join(names)} at once" if names else "nothing to do"
    raise UserError(f"{problem}; give one of source=imagenet|folder|digits, check=DIR, show=DIR (--help tells more)")


def help_text() -> str:
    """Every command and knob, a line each."""
    lines = ["Images to TFRecord shards, and a look at them: python -m resnet.prepare knob=value ..."]
    shared = list(cli.hints(Writing))
    for name, kind in COMMANDS.items():
        own = [knob for knob in cli.hints(kind) if knob not in shared or not issubclass(kind, Writing)]
        lines += ["", f"{name}{'' if '=' in name else '=DIR'}    {kind.__doc__}", *cli.help_lines(kind, own)]
        if kind is Folder:
            lines += ["", "source=imagenet and source=folder", *cli.help_lines(kind, shared)]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------- commands
def do(settings: Any) -> None:
    """Run the command of these knobs. Raises UserError."""
    match settings:
        case Imagenet(dir=dir, train=train, val=val, labels=labels, texts=texts):
            from resnet.prepare import imagenet

            fill = functools.partial(imagenet.fill, dir=dir, train=train, val=val, labels=labels, texts=texts)
            writer.build(settings, "imagenet", IMAGENET_SHARDS, fill)
        case Folder(dir=dir, train=train, val=val, val_fraction=share, seed=seed):
            from resnet.prepare import folders

            fill = functools.partial(folders.fill, dir=dir, train=train, val=val, val_fraction=share, seed=seed)
            writer.build(settings, "folder", None, fill)
        case Digits(out=out):
            digits.write(out, "out")
            content = manifest.read(Path(out))
            print(
                f"{out}: {summary.totals(content) if content else 'digits of an earlier version, without a manifest'}"
            )
        case Check(check=folder, deep=deep, processes=processes):
            from resnet.prepare import check

            check.check(Path(folder), deep, processes or writer.cores())
        case Show(show=folder, out=out, images=images, seed=seed):
            from resnet.config import compose
            from resnet.data import source

            names, kind = classes_and_kind(Path(folder))
            data = source.open_source(compose.one_group("data", f"data={kind}", dir=folder))
            from resnet.prepare import show  # and TensorFlow, which what is wrong so far did not wait for

            title = f"{Path(folder).name}: {data.settings.classes:,} classes"
            show.draw(data, title, names, out, images, seed)


def classes_and_kind(folder: Path) -> tuple[list[str], str]:
    """(names of the classes, none if not known; the option of `data` that reads such a folder)."""
    content, path = manifest.read(folder) or {}, folder / files.CLASSES
    if not path.exists():
        return [], "imagenet"
    texts = content.get("texts", {})
    names = [texts.get(name, name) for name in files.read_classes(path.read_text("utf-8"))]
    return names, "digits" if content.get("options", {}).get("source") == "digits" else "folder"


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, which no `except Exception` on the way swallows."""


def terminate(_number: int, _frame: object) -> None:
    """Handle SIGTERM."""
    raise Terminated


def main() -> None:
    """The command."""
    words = sys.argv[1:]
    if {"--help", "-h", "help"} & set(words):
        print(help_text())
        return
    signal.signal(signal.SIGTERM, terminate)
    with cli.reported(interrupted=RESUME):
        try:
            do(parse(words))
        except Terminated:
            raise cli.Stopped(RESUME) from None


if __name__ == "__main__":
    main()
