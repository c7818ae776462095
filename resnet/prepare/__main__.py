"""`python -m resnet.prepare`: images to TFRecord shards of the ImageNet layout, with labels from 1; checking; showing."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet import UserError, cli
from resnet.cli import REQUIRED, knob
from resnet.config.checks import check, check_range
from resnet.data import digits, manifest
from resnet.prepare import build, summary
from resnet.prepare.build import local

IMAGENET_SHARDS = (1024, 128)
# Exit statuses; the last two as shells tell of SIGINT and SIGTERM.
DONE, FAILED, INTERRUPTED, TERMINATED = 0, 1, 130, 143


# ------------------------------------------------------------------------------------------------------------------ knobs
@dataclass(kw_only=True)
class Imagenet(build.Writing):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        make_absolute(self, ("dir", "train", "val", "labels", "texts"))


@dataclass(kw_only=True)
class Folder(build.Writing):
    """your own: jpg, jpeg, png, webp, bmp in a folder for each class"""

    dir: str | None = knob(
        None, "has the classes' folders in it, or train/ and val/ (valid/, validation/) that have them"
    )
    train: str | None = knob(None, "the training tree, if it lies elsewhere")
    val: str | None = knob(None, "the validation tree, if it lies elsewhere")
    val_fraction: float | None = knob(None, "share of every class held out where there is no validation tree (0.1)")

    def __post_init__(self) -> None:
        super().__post_init__()
        make_absolute(self, ("dir", "train", "val"))
        if self.val_fraction is not None:
            check_range("val_fraction", self.val_fraction, 0, 1, open_low=True)


@dataclass(kw_only=True)
class Digits:
    """scikit-learn's hand-written digits, embedded"""

    out: str = knob(REQUIRED, "the folder to make")

    def __post_init__(self) -> None:
        make_absolute(self, ("out",))


@dataclass(kw_only=True)
class Check:
    """hold shards against their manifest: CRC of every file and record, counts, labels"""

    check: str = knob(REQUIRED, "the folder of shards")
    deep: bool = knob(False, "decode every image, too")
    processes: int | None = knob(None, "how many at work (one for each core)")

    def __post_init__(self) -> None:
        make_absolute(self, ("check",))
        build.check_processes(self.processes)


@dataclass(kw_only=True)
class Show:
    """a picture of training images as the network sees them, and of evaluation images"""

    show: str = knob(REQUIRED, "the folder of shards")
    out: str = knob("sheet.png", "the PNG to write")
    images: int = knob(24, "how many of either")
    seed: int = knob(1, "of the order and of the crops")

    def __post_init__(self) -> None:
        make_absolute(self, ("show", "out"))
        check(0 < self.images <= 200, "images", self.images, "must be 1 to 200")
        check(0 <= self.seed < 2**31, "seed", self.seed, "must be at least 0 and below 2^31")


COMMANDS: dict[str, type] = {
    "source=imagenet": Imagenet,
    "source=folder": Folder,
    "source=digits": Digits,
    "check": Check,
    "show": Show,
}


def make_absolute(settings: Any, names: Sequence[str]) -> None:
    """Paths from the working folder on, ~ expanded."""
    for name in names:
        if (path := getattr(settings, name)) is not None:
            setattr(settings, name, local(name, path))


def parse(words: Sequence[str]) -> Any:
    """The knobs of the command that these words are about. Raises UserError."""
    given = cli.split(words)
    named = [name for name in ("source", "check", "show") if name in given]
    if len(named) == 1 and named != ["source"]:
        return cli.parse(COMMANDS[named[0]], given, f"{named[0]}=")
    if len(named) == 1:
        command = f"source={given.pop('source')}"
        if command not in COMMANDS:
            raise UserError(f"{command}: {cli.nearest(command, [name for name in COMMANDS if '=' in name])}")
        return cli.parse(COMMANDS[command], given, command)
    every = sorted({"source", *(name for kind in COMMANDS.values() for name in cli.hints(kind))})
    for name in given:
        if name not in every:
            raise UserError(f"{name}: no such knob; {cli.nearest(name, every)}")
    told = f"{' and '.join(named)} at once" if named else "nothing to do"
    raise UserError(f"{told}; give one of source=imagenet|folder|digits, check=DIR, show=DIR (--help tells more)")


def help_text() -> str:
    """Every command and knob, a line each."""
    told = ["Images to TFRecord shards, and a look at them: python -m resnet.prepare knob=value ..."]
    shared = list(cli.hints(build.Writing))
    for name, kind in COMMANDS.items():
        own = [knob for knob in cli.hints(kind) if knob not in shared or not issubclass(kind, build.Writing)]
        told += ["", f"{name}{'' if '=' in name else '=DIR'}    {kind.__doc__}", *cli.help_lines(kind, own)]
        if kind is Folder:
            told += ["", "source=imagenet and source=folder", *cli.help_lines(kind, shared)]
    return "\n".join(told)


# ---------------------------------------------------------------------------------------------------------------- commands
def do(settings: Any) -> None:
    """What the knobs ask for. Raises UserError."""
    match settings:
        case Imagenet(dir=dir, train=train, val=val, labels=labels, texts=texts):
            from resnet.prepare import imagenet

            fill = functools.partial(imagenet.fill, dir=dir, train=train, val=val, labels=labels, texts=texts)
            build.folder(settings, "imagenet", IMAGENET_SHARDS, fill)
        case Folder(dir=dir, train=train, val=val, val_fraction=share, seed=seed):
            from resnet.prepare import folders

            fill = functools.partial(folders.fill, dir=dir, train=train, val=val, val_fraction=share, seed=seed)
            build.folder(settings, "folder", None, fill)
        case Digits(out=out):
            digits.write(out, "out")
            made = manifest.read(Path(out))
            print(f"{out}: {summary.totals(made) if made else 'digits of an earlier version, without a manifest'}")
        case Check(check=folder, deep=deep, processes=processes):
            from resnet.prepare import check

            check.audit(Path(folder), deep, processes or build.cores())
        case Show(show=folder, out=out, images=images, seed=seed):
            from resnet.prepare import show

            show.draw(folder, out, images, seed)


class Terminated(KeyboardInterrupt):
    """SIGTERM."""


def terminated(_number: int, _frame: object) -> None:
    """On SIGTERM: leave as on Ctrl-C."""
    raise Terminated


def run(words: Sequence[str]) -> int:
    """Do what the words ask; the exit status, with anything the user can mend told in one line."""
    if {"--help", "-h", "help"} & set(words):
        print(help_text())
        return DONE
    before = signal.signal(signal.SIGTERM, terminated)
    try:
        do(parse(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as error:
        print("interrupted; what is finished stands, and the same command goes on", file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    return DONE


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
