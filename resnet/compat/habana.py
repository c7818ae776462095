"""`python -m resnet.compat COMMAND ...`: the original's commands, translated into command lines of resnet.train.

The files of launch/ with the original's names call it. It prints the line that does the same here and runs it; what an option
means is in `habana_options` and `flags`. Nothing here needs TensorFlow.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from resnet import UserError, cli, files, shell
from resnet.compat.habana_options import COMMANDS, PLANNED
from resnet.compat.hyper import curve, presets, settings
from resnet.compat.places import RESIZING, MissingImages, dtype, images, machine
from resnet.compat.request import NEVER, Request, check, help_text, read_request
from resnet.compat.words import joined, one_group, shell_line
from resnet.config import fingerprint, help
from resnet.config.cluster import Cluster

USAGE, NO_IMAGES = 2, 255  # exit status of a command line that makes no sense, and of one without the images it needs
LOSS = ("label_smoothing", "mixup", "optim.momentum")  # what presets may set of a published row
EVALUATES = ("data", "data.dir", "dtype", "cluster", "batch", "eval_steps")  # words that resnet.evaluate takes as well


def commands(request: Request) -> list[list[str]]:
    """What does the same here: a module and its words, one after the other. Raises UserError."""
    presets(request)
    check(request)
    options, export = request.options, request.options.get("export", "false")
    exports = export.lower() != "false"
    if exports:
        options.setdefault("out", f"runs/{time.strftime('%Y-%m-%d_%H-%M-%S')}.{time.time_ns() // 1000 % 10**6:06d}")
    if "out" in request.overridden and (exports or "eval_only" in options):
        raise UserError("out=: a second command needs the folder too; give it by -m, or model_dir")
    words = training(request)
    out = files.absolute(options.get("out", ""), Path.cwd())
    if "eval_only" in options:
        words = {name: words[name] for name in words if name in EVALUATES}
        return [["resnet.evaluate", out, *joined(words), *request.extra]]
    lines = [["resnet.train", *joined(words), *request.extra]]
    if exports:
        place = f"{out}/exported" if export.lower() == "true" else files.absolute(export, Path.cwd())
        lines.append(["resnet.export", out, f"out={place}"])
    return lines


def training(request: Request) -> dict[str, str]:
    """The words of the training, without the extra ones, by what they set. An exactly published row is a `recipe`."""
    options = request.options
    resnext = options.get("type") == "resnext"
    size = options.get("size", "101" if resnext and request.scripted else "50")
    model = {"model": f"resnext{size}" if resnext else f"resnet{size}"}
    here = request.not_overridden(dtype(request) | images(request) | machine(request))
    cluster: Cluster = one_group("cluster", (), here, request)
    card = int(options.get("card_batch", "256" if options["dtype"] == "bf16" else "128"))
    ranks = 1 if together(options) else cluster.ranks
    batch = card * ranks * int(options.get("cluster.gradient_accumulation", "1"))
    rest = {"batch": str(batch), "epochs": options["epochs"]}
    rest |= {"cluster.max_restarts": "10"} if "recover" in options else {}
    for key, value in options.items():
        if key not in PLANNED:
            rest[key] = shell.quoted(value) if key in ("out", "init") else value
    words = curve(request, request.not_overridden(model | settings(request, batch) | here | length(request, rest)))
    if recipe := published(request, words, card, cluster):
        implied = ("data", "model", "optim", "schedule", "dtype", "batch", "epochs", *LOSS[:2], *RESIZING)
        own = {
            name: words[name] for name in words if name not in implied and name.partition(".")[0] not in implied[2:4]
        }
        return {"recipe": recipe} | own
    return words


def together(options: Mapping[str, str]) -> bool:
    """Whether batch_size is of all ranks: TensorFlow's own strategies divide it."""
    return options.get("strategy") == "hpu" or int(options.get("gpus", "0")) > 1


def length(request: Request, words: dict[str, str]) -> dict[str, str]:
    """The words with the first evaluation, the steps that are profiled, and no checkpoint if none is wanted."""
    options, words = request.options, dict(words)
    if "mlperf" in options and int(options.get("train_offset", "0")):
        first = float(options["train_offset"])
        words["eval_offset_epochs"] = f"{first + float(options.get('eval_every_epochs', '1')):g}"
        words["epochs"] = f"{first + float(words['epochs']):g}"
    hooks = [hook.strip() for hook in options.get("hooks", "").split(",")]
    if others := [hook for hook in hooks if hook and hook.lower() != "profilerhook"]:
        request.notes.append(f"hooks: {', '.join(others)}: ignored: every metric is logged")
    steps = options.get("profile_steps", "7,10" if len(others) < len(list(filter(None, hooks))) else "")
    if words.get("save_every_steps") == "0":
        words["save_every_steps"] = NEVER
    return words | ({"profile_steps": f"[{steps.replace(' ', '')}]"} if steps else {})


def published(request: Request, words: Mapping[str, str], card: int, cluster: Cluster) -> str | None:
    """The recipe that these words are, to the letter of what was published; None for anything else."""
    options = request.options
    if not request.scripted:
        return None
    resnext, epochs = options.get("type") == "resnext", request.published_epochs
    if resnext and words.get("mixup"):
        epochs = "250"
    optim = "" if resnext else f"{'keras_' if request.keras else ''}{words.get('optim')}_"
    name = f"{words.get('model')}_{'250ep_' if epochs == '250' else optim}{cluster.ranks}x"
    own = {
        key
        for key in (set(options) - set(LOSS)) | request.overridden
        if key not in PLANNED and (key == "steps" or not fingerprint.may_change_on_resume(key))
    }
    exact = ("bf16", 256, "imagenet", epochs)
    typed = (words.get("dtype"), card, words.get("data"), words.get("epochs"))
    recipes = {option for group, option, _ in help.options() if group == "recipe"}
    return name if typed == exact and name in recipes and own <= {"epochs", "out"} and not cluster.hosts else None


def main(argv: Sequence[str]) -> int:
    """Exit status."""
    command = Path(argv[0]).name if argv else ""
    if command in ("-h", "--help"):
        print(f"The original's commands: python -m resnet.compat {'|'.join(COMMANDS)} [option ...]; or COMMAND --help")
        return 0
    if command not in COMMANDS:
        print(f"resnet.compat: {command or 'no command'}: there are {', '.join(COMMANDS)}", file=sys.stderr)
        return USAGE
    own = argv[: argv.index("--")] if "--" in argv else argv
    if {"-h", "--help", "--helpfull", "--helpshort"} & set(own):
        print(help_text(command))
        return 0
    try:
        request = read_request(command, argv[1:], os.environ)
        lines = commands(request)
    except UserError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return NO_IMAGES if isinstance(error, MissingImages) else USAGE
    for note in request.notes:
        print(f"{command}: {note}", file=sys.stderr)
    print(shell_line(lines, request.env), flush=True)
    if "print" not in request.options:
        with cli.SignalRelay() as relay:
            for words in lines:
                if code := relay.run([sys.executable, "-m", *words], {**os.environ, **request.env}):
                    return code if code > 0 else 128 - code
    return 0
