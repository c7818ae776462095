"""`python -m resnet.prepare`: images to TFRecord shards of the ImageNet layout, with labels from 1; checking; showing."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Sequence

from resnet import UserError, cli, files
from resnet.data import digits, manifest
from resnet.prepare import check, folders, idx_files, imagenet, summary, target, writer
from resnet.prepare.knobs import Check, Digits, Folder, Idx, Imagenet, Knobs, Show, Writing

IMAGENET_SHARDS = (1024, 128)
RESUME = "what is finished stays, and the same command resumes"
COMMANDS: dict[str, type[Knobs]] = {
    "source=imagenet": Imagenet,
    "source=folder": Folder,
    "source=idx": Idx,
    "source=digits": Digits,
    "check=": Check,
    "show=": Show,
}


def parse(words: Sequence[str]) -> Knobs:
    """The knobs of the command that these words are about. Raises UserError."""
    values = cli.split(words)
    names = [name for name in ("source", "check", "show") if name in values]
    if len(names) == 1:
        if names == ["show"]:
            more = [f"{name}={values.pop(name)}" for name in [*values] if name.startswith("augment.")]
            values |= {"augment": " ".join([values.get("augment", "none"), *more])} if more else {}
        command = f"{names[0]}={values.pop('source', '')}"
        if command not in COMMANDS:
            raise UserError(
                f"{command}: {cli.nearest(command, [name for name in COMMANDS if name.startswith('source=')])}"
            )
        return cli.parse(COMMANDS[command], values, command)
    every = sorted({"source", *(name for kind in COMMANDS.values() for name in cli.hints(kind))})
    for name in values:
        if name not in every:
            raise UserError(f"{name}: no such knob; {cli.nearest(name, every)}")
    problem = f"{' and '.join(names)} at once" if names else "nothing to do"
    raise UserError(
        f"{problem}; give one of source=imagenet|folder|idx|digits, check=DIR, show=DIR (--help tells more)"
    )


def help_text() -> str:
    """Every command and knob, a line each."""
    lines = ["Convert images to TFRecord shards, check shards, show images: python -m resnet.prepare knob=value ..."]
    shared = list(cli.hints(Writing))
    for name, kind in COMMANDS.items():
        own = [knob for knob in cli.hints(kind) if knob not in shared or not issubclass(kind, Writing)]
        lines += ["", f"{name}{'DIR' * name.endswith('=')}    {kind.__doc__}", *cli.help_lines(kind, own)]
        if kind is Folder:
            lines += ["", "source=imagenet and source=folder", *cli.help_lines(kind, shared)]
    return "\n".join(lines)


def do(settings: Knobs) -> None:
    """Run the command of these knobs. Raises UserError."""
    match settings:
        case Imagenet():
            writer.build(settings, "imagenet", IMAGENET_SHARDS, functools.partial(imagenet.fill, settings))
        case Folder():
            writer.build(settings, "folder", None, functools.partial(folders.fill, settings))
        case Idx():
            idx_files.build(settings)
        case Digits(out=out):
            place = target.of(out)
            place.fill(functools.partial(digits.write, knob="out"))
            content = place.content()
            totals = summary.totals(content) if content else "digits of an earlier version, without a manifest"
            print(f"{out}: {totals}")
        case Check(check=folder, deep=deep, processes=processes):
            check.check(folder, deep, processes)
        case Show(show=folder, out=out, images=images, seed=seed, label_offset=offset, augment=words):
            from resnet.config import compose
            from resnet.data import source

            names, kind = classes_and_kind(folder)
            augment = compose.one_group("augment", *f"augment={words}".split())
            augment.check("repeats", images % augment.repeats == 0, f"must divide images={images}")
            data = source.open_source(compose.one_group("data", f"data={kind}", dir=folder, label_offset=offset))
            from resnet.prepare import show  # and TensorFlow, which what is wrong so far did not wait for

            title = f"{folder.rpartition('/')[2]}: {data.settings.classes:,} classes"
            show.draw(data, augment, title, names, out, images, seed)


def classes_and_kind(folder: str) -> tuple[list[str], str]:
    """(names of the classes, none if not known; the option of `data` that reads such a folder)."""
    content, (classes, _) = manifest.read(folder) or {}, files.classes_beside(folder)
    if classes is None:
        return [], "imagenet"
    texts = content.get("texts", {})
    names = [texts.get(name, name) for name in classes]
    source = content.get("options", {}).get("source")
    return names, source if source in ("digits", "fashion") else "folder"


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, which no `except Exception` on the way swallows."""


def terminate(_number: int, _frame: object) -> None:
    raise Terminated


def main() -> None:
    words = sys.argv[1:]
    with cli.reported(interrupted=RESUME):
        if {"--help", "-h", "help"} & set(words):
            print(help_text())
            return
        signal.signal(signal.SIGTERM, terminate)
        try:
            do(parse(words))
        except Terminated:
            raise cli.Stopped(RESUME) from None


if __name__ == "__main__":
    main()
