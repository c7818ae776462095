"""`python -m resnet.compat COMMAND ...`: the original's four commands, translated into command lines of resnet.train.

launch/demo_resnet, demo_keras_resnet, demo_resnet_hvd.sh and habana_model_runner.py call it. It prints the line that does the
same here and runs it; what an option means is in `habana_options`. Nothing here needs TensorFlow.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet import UserError, cli, files
from resnet.compat.habana_options import COMMANDS, PLANNED
from resnet.compat.request import Request, help_text, read_request
from resnet.config import compose, fingerprint, help
from resnet.config.cluster import Cluster
from resnet.config.schedule import Horizon, Schedule
from resnet.data import shards
from resnet.distributed import gaudi
from resnet.launch.launchers import SSH_WORDS

USAGE = 2  # exit status of a command line that makes no sense
STANDARD = "/software/data/tf/data/imagenet/tf_records"  # where the original looked for shards that nobody named
RESNEXT = {
    "optim": "sgd",
    "schedule": "cosine",
    "optim.lr": "${linear_lr:0.256}",
    "optim.momentum": "0.875",
    "optim.weight_decay": "6.103515625e-05",
}
# one rank, many ranks, and how many these are
CLUSTERS = {"gaudi": ("gaudi1", "hls1", 8), "gpu": ("gpu1", "gpu8", 8), "cpu": ("local", "cpu2", 2)}
EVALUATES = ("data", "data.dir", "dtype", "cluster", "batch", "eval_steps")  # words that resnet.evaluate takes as well


def commands(request: Request) -> list[list[str]]:
    """What does the same here: a module and its words, one after the other."""
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
    if "resnext" in options:
        words = {"model": f"resnext{options.get('size', '101')}", **RESNEXT}
    else:
        optim = "lars" if options.get("lars") == "true" else "sgd"
        words = {"model": f"resnet{options.get('size', '50')}", "optim": optim}
    words = request.not_overridden(words | {"dtype": options["dtype"]} | images(request) | machine(request))
    cluster: Cluster = one_group("cluster", (), words, request)
    card = int(options.get("card_batch", "256" if options["dtype"] == "bf16" else "128"))
    words |= {"batch": str(card * cluster.ranks)} | ({"epochs": options["epochs"]} if "epochs" in options else {})
    words |= {"cluster.max_restarts": "10"} if "recover" in options else {}
    for key, value in options.items():
        if key not in PLANNED:
            words[key] = quoted(value) if key in ("out", "init") else value
    words = request.not_overridden(words)
    if recipe := published(request, words, card, cluster):
        implied = ("data", "model", "optim", "schedule", "dtype", "batch", "epochs")
        words = {name: value for name, value in words.items() if name not in implied and not name.startswith("optim.")}
        return {"recipe": recipe} | words
    return words | horizon(request, words)


def joined(words: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in words.items()]


def one_group(group: str, more: Sequence[str], words: Mapping[str, str], request: Request) -> Any:
    """The dataclass of a group under the words, the extra ones too, that set it, or one of the groups and knobs `more`."""
    names = (group, *more)
    words_of = [word for word in (*joined(words), *request.extra) if re.split("[.=]", word.lstrip("+~"))[0] in names]
    return compose.one_group(group, *words_of)


def quoted(text: str) -> str:
    """A path that Hydra's grammar reads as this very text, ${ and all. Only a quite plain one goes without quotes."""
    number = not text[:1].isalpha() or text.lower() in ("null", "true", "false", "inf", "nan")
    if re.fullmatch(r"[\w./-]+", text, re.ASCII) and ("/" in text or not number):
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # OmegaConf's escape
    text = re.sub(r'(\\*)"', r'\1\1\\"', text)
    return '"' + re.sub(r"(\\+)$", r"\1\1", text) + '"'


def published(request: Request, words: Mapping[str, str], card: int, cluster: Cluster) -> str | None:
    """The recipe that these words are, to the letter of what was published; None for anything else."""
    options = request.options
    keras = request.command == "demo_keras_resnet" or options.get("model") == "resnet_keras"
    optim = "" if "resnext" in options else f"{'keras_' if keras else ''}{words.get('optim')}_"
    name = f"{words.get('model')}_{optim}{cluster.ranks}x"
    own = {
        key
        for key in (*options, *request.overridden)
        if key not in PLANNED and (key == "steps" or not fingerprint.may_change_on_resume(key))
    }
    exact = ("bf16", 256, "imagenet", request.published_epochs)
    typed = (words.get("dtype"), card, words.get("data"), words.get("epochs", request.published_epochs))
    recipes = {option for group, option, _ in help.options() if group == "recipe"}
    return name if typed == exact and name in recipes and own <= {"epochs", "out"} and not cluster.hosts else None


def horizon(request: Request, words: Mapping[str, str]) -> dict[str, str]:
    """Where the curve ends, if it cannot be at `epochs` or where the published row has it.

    The original let a run shorter than its warm-up rise and stop, and stretched the curve with its epochs.
    """
    curve: Schedule = one_group("schedule", ("optim", "batch"), words, request)
    settled = {"epochs", "schedule.horizon_epochs"} & request.overridden or "epochs" not in request.options
    if settled or not isinstance(curve, Horizon):
        return {}
    epochs = float(request.options["epochs"])
    if epochs <= curve.warmup_epochs:
        return {"schedule.horizon_epochs": request.published_epochs}
    return {"schedule.horizon_epochs": "null"} if epochs > (curve.horizon_epochs or epochs) else {}


def machine(request: Request) -> dict[str, str]:
    """The cluster: Gaudi cards where there are any, else this CPU, as many ranks as are wanted."""
    options, note = request.options, request.notes.append
    cards, gpus = gaudi.cards(), int(options.get("gpus", "0"))
    kind, all_of_them = ("gpu", gpus) if gpus else ("gaudi", cards) if cards else ("cpu", 2)
    one, many, usual = CLUSTERS[kind]
    workers = options.get("workers", str(gpus or 1))
    ranks = all_of_them if workers == "all" else int(workers)
    hosts = [f"{host}:{ranks}" for host in options["hosts"].split(",")] if "hosts" in options else []
    total = ranks * max(1, len(hosts))
    interface = options.get("interface")
    if hosts and kind == "gaudi":  # what the original gave mpirun on several servers
        request.env |= {} if SSH_WORDS in request.environ else {SSH_WORDS: "-p 3022"}
        if interface:
            request.env |= {"OMPI_MCA_btl_tcp_if_include": interface, "HCCL_SOCKET_IFNAME": interface}
    elif interface:
        note(f"MPI_TPC_INCLUDE={interface}: means something for several machines with Gaudi cards only")
    if "cluster" in request.overridden:
        if hosts and workers == "all":
            raise UserError(
                "MULTI_HLS_IPS: with a cluster= of your own tell how many ranks on each, by NUM_WORKERS_PER_HLS"
            )
        words = {"cluster.ranks": str(total)} if workers not in ("all", "1") or hosts else {}
    else:
        words = {"cluster": many if total > 1 or hosts else one}
        words |= {"cluster.ranks": str(total)} if words["cluster"] == many and total != usual else {}
        if kind == "cpu":
            ranked = f"{total} rank{'s' if total > 1 else ''}"
            note(f"no Gaudi card on this machine: {ranked} on CPU; for GPUs add -- cluster=gpu1, or gpu8")
    return words | ({"cluster.hosts": f"[{','.join(hosts)}]"} if hosts else {})


def images(request: Request) -> dict[str, str]:
    """The data. Its folder is looked into, for the layout it has and the classes that its shards are of."""
    folder = request.options.get("shards") or (STANDARD if Path(STANDARD).is_dir() else "")
    if "data" in request.overridden and not {"data=imagenet", "data=folder"} & set(request.extra):
        return {}  # nor would data.dir go with it: the digits would be written there
    if not folder:
        request.notes.append("no folder of shards is named: the embedded digits (10 classes, 32 px)")
        return {"data": "digits"}
    place = shards_in(folder)
    if place != folder:
        request.notes.append(f"{folder}: the shards lie in {place}")
    with contextlib.suppress(OSError, UserError):
        text = "" if files.is_remote(place) else files.read_text(str(Path(place).expanduser() / files.CLASSES))
        if text and (classes := len(files.read_classes(text))) != 1000:
            request.notes.append(f"{place}: {classes} classes, as its {files.CLASSES} says, so data=folder")
            return {"data": "folder", "data.dir": quoted(place)}
    return {"data": "imagenet", "data.dir": quoted(place)}


def shards_in(folder: str) -> str:
    """The folder itself, its tf_records or its parent, whichever has shards: all three stood in the original's examples."""
    if files.is_remote(folder):
        return folder  # only TensorFlow can look
    here = Path(folder).expanduser()
    for place in (here, here / "tf_records", here.absolute().parent):
        with contextlib.suppress(UserError):  # cannot be listed: the training will say so
            if any(all(shards.listing(str(place), pattern) for pattern in pair) for pair in shards.LAYOUTS):
                return folder if place == here else str(place)
    return folder


def shell_line(lines: Sequence[Sequence[str]], env: Mapping[str, str]) -> str:
    """One line for a shell."""
    first = shutil.which("python")
    python = "python" if first and Path(first).parent == Path(sys.executable).parent else sys.executable
    before = ["env", *joined(env)] if env else []
    return " && ".join(shlex.join([*before, python, "-m", *words]) for words in lines)


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
    if {"-h", "--help"} & set(own):
        print(help_text(command))
        return 0
    try:
        request = read_request(command, argv[1:], os.environ)
        lines = commands(request)
    except UserError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return USAGE
    for note in request.notes:
        print(f"{command}: {note}", file=sys.stderr)
    print(shell_line(lines, request.env), flush=True)
    if "print" not in request.options:
        with cli.SignalRelay() as relay:
            for words in lines:
                if code := relay.run([sys.executable, "-m", *words], {**os.environ, **request.env}):
                    return code if code > 0 else 128 - code
    return 0
