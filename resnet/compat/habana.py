"""`python -m resnet.compat COMMAND ...`: the original's four commands, said in the words of resnet.train.

launch/demo_resnet, demo_keras_resnet, demo_resnet_hvd.sh and habana_model_runner.py call it. It prints the line that does the
same here and runs it; what an option means is in `resnet.vocabulary`. Nothing here needs TensorFlow.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from resnet import UserError, files
from resnet.compat.habana_options import COMMANDS, KINDS, PARAMETERS, PLANNED, RUNNER_ENVIRONMENT, Option
from resnet.compat.request import Request, requested
from resnet.config import compose, fingerprint, help
from resnet.config.cluster import Cluster
from resnet.config.schedule import Horizon, Schedule
from resnet.data import shards
from resnet.distributed import gaudi

USAGE = 2  # exit status of a command line that makes no sense
STANDARD = "/software/data/tf/data/imagenet/tf_records"  # where the original looked for shards that nobody named
SSH = "OMPI_MCA_plm_rsh_args"  # ssh's options, as Open MPI takes them
RESTARTS = "10"
PATHS = ("out", "init")
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


# ------------------------------------------------------------------------------------------------------------ in our words
def commands(request: Request) -> list[list[str]]:
    """What does the same here: a module and its words, one after the other."""
    asked, export = request.asked, request.asked.get("export", "false")
    exports = export.lower() != "false"
    if exports:
        asked.setdefault("out", f"runs/{time.strftime('%Y-%m-%d_%H-%M-%S')}.{time.time_ns() // 1000 % 10**6:06d}")
    if "out" in request.named and (exports or "eval_only" in asked):
        raise UserError("out=: a second command needs the folder too; give it by -m, or model_dir")
    words = training(request)
    out = files.absolute(asked.get("out", ""), Path.cwd())
    if "eval_only" in asked:
        return [["resnet.evaluate", out, *joined(words, EVALUATES), *request.extra]]
    lines = [["resnet.train", *joined(words), *request.extra]]
    if exports:
        place = f"{out}/exported" if export.lower() == "true" else files.absolute(export, Path.cwd())
        lines.append(["resnet.export", out, f"out={place}"])
    return lines


def training(request: Request) -> dict[str, str]:
    """The words of the training, without the extra ones, by what they set. An exactly published row is a `recipe`."""
    asked = request.asked
    words = unnamed(network(asked) | {"dtype": asked["dtype"]} | images(request) | machine(request), request)
    cluster: Cluster = compose.one_group("cluster", *about(("cluster",), words, request))
    card = int(asked.get("card_batch", "256" if asked["dtype"] == "bf16" else "128"))
    words |= {"batch": str(card * cluster.ranks)} | ({"epochs": asked["epochs"]} if "epochs" in asked else {})
    words |= {"cluster.max_restarts": RESTARTS} if "recover" in asked else {}
    words |= {key: quoted(value) if key in PATHS else value for key, value in asked.items() if key not in PLANNED}
    words = unnamed(words, request)
    if recipe := published(request, words, card, cluster):
        kept = ("data", "model", "optim", "schedule", "dtype", "batch", "epochs")
        words = {name: value for name, value in words.items() if name not in kept and not name.startswith("optim.")}
        return {"recipe": recipe} | words
    return words | horizon(request, words)


def unnamed(words: Mapping[str, str], request: Request) -> dict[str, str]:
    """Without those that the extra words name too: these win."""
    return {name: value for name, value in words.items() if name not in request.named}


def about(groups: Sequence[str], words: Mapping[str, str], request: Request) -> list[str]:
    """Those words, the extra ones too, that set these groups or knobs of them."""
    return [
        word
        for word in (*joined(words), *request.extra)
        if word.lstrip("+~").partition("=")[0].partition(".")[0] in groups
    ]


def joined(words: Mapping[str, str], names: Iterable[str] = ()) -> list[str]:
    """`knob=value` each; of these names only, if there are any."""
    return [f"{name}={value}" for name, value in words.items() if not names or name in names]


def quoted(text: str) -> str:
    """A path that Hydra's grammar reads as this very text, ${ and all. Only a quite plain one goes without quotes."""
    number = not text[:1].isalpha() or text.lower() in ("null", "true", "false", "inf", "nan")
    if re.fullmatch(r"[\w./-]+", text, re.ASCII) and ("/" in text or not number):
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # OmegaConf's escape
    text = re.sub(r'(\\*)"', r'\1\1\\"', text)
    return '"' + re.sub(r"(\\+)$", r"\1\1", text) + '"'


def network(asked: Mapping[str, str]) -> dict[str, str]:
    """The model and how it is optimized."""
    if "resnext" in asked:
        return {"model": f"resnext{asked.get('size', '101')}", **RESNEXT}
    return {"model": f"resnet{asked.get('size', '50')}", "optim": "lars" if asked.get("lars") == "true" else "sgd"}


def published(request: Request, words: Mapping[str, str], card: int, cluster: Cluster) -> str | None:
    """The recipe that these words are, to the letter of what was published; None for anything else."""
    asked = request.asked
    keras = request.command == "demo_keras_resnet" or asked.get("model") == "resnet_keras"
    optim = "" if "resnext" in asked else f"{'keras_' if keras else ''}{words.get('optim')}_"
    name = f"{words.get('model')}_{optim}{cluster.ranks}x"
    own = {
        key
        for key in (*asked, *request.named)
        if key not in PLANNED and (key == "steps" or not fingerprint.may_change_on_resume(key))
    }
    exact = ("bf16", 256, "imagenet", request.published_epochs)
    said = (words.get("dtype"), card, words.get("data"), words.get("epochs", request.published_epochs))
    known = {option for group, option, _ in help.options() if group == "recipe"}
    return name if said == exact and name in known and own <= {"epochs", "out"} and not cluster.hosts else None


def horizon(request: Request, words: Mapping[str, str]) -> dict[str, str]:
    """Where the curve ends, if it cannot be at `epochs` or where the published row has it.

    The original let a run shorter than its warm-up rise and stop, and stretched the curve with its epochs.
    """
    curve: Schedule = compose.one_group("schedule", *about(("schedule", "optim", "batch"), words, request))
    settled = {"epochs", "schedule.horizon_epochs"} & request.named or "epochs" not in request.asked
    if settled or not isinstance(curve, Horizon):
        return {}
    epochs = float(request.asked["epochs"])
    if epochs <= curve.warmup_epochs:
        return {"schedule.horizon_epochs": request.published_epochs}
    return {"schedule.horizon_epochs": "null"} if epochs > (curve.horizon_epochs or epochs) else {}


# -------------------------------------------------------------------------------------------------------------- the machine
def machine(request: Request) -> dict[str, str]:
    """The cluster: Gaudi cards where there are any, else this CPU, as many ranks as are asked for."""
    asked, said = request.asked, request.notes.append
    there, gpus = gaudi.cards(), int(asked.get("gpus", "0"))
    kind, all_of_them = ("gpu", gpus) if gpus else ("gaudi", there) if there else ("cpu", 2)
    one, many, usual = CLUSTERS[kind]
    workers = asked.get("workers", str(gpus or 1))
    ranks = all_of_them if workers == "all" else int(workers)
    hosts = [f"{host}:{ranks}" for host in asked["hosts"].split(",")] if "hosts" in asked else []
    total = ranks * max(1, len(hosts))
    if hosts and kind == "gaudi":  # what the original gave mpirun on several servers
        request.env.update({} if SSH in request.environ else {SSH: "-p 3022"})
        if interface := asked.get("interface"):
            request.env.update({"OMPI_MCA_btl_tcp_if_include": interface, "HCCL_SOCKET_IFNAME": interface})
    elif "interface" in asked:
        said(f"MPI_TPC_INCLUDE={asked['interface']}: means something for several machines with Gaudi cards only")
    if "cluster" in request.named:
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
            said(f"no Gaudi card on this machine: {ranked} on CPU; for GPUs add -- cluster=gpu1, or gpu8")
    return words | ({"cluster.hosts": f"[{','.join(hosts)}]"} if hosts else {})


# --------------------------------------------------------------------------------------------------------------- the images
def images(request: Request) -> dict[str, str]:
    """Where they come from. The folder is looked into, for the layout it has and the classes that its shards are of."""
    folder = request.asked.get("shards") or (STANDARD if Path(STANDARD).is_dir() else "")
    if "data" in request.named and not {"data=imagenet", "data=folder"} & set(request.extra):
        return {}  # nor would data.dir go with it: the digits would be written there
    if not folder:
        request.notes.append("no folder of shards is named: the embedded digits (10 classes, 32 px)")
        return {"data": "digits"}
    found = shards_in(folder)
    if found != folder:
        request.notes.append(f"{folder}: the shards lie in {found}")
    counted = classes_in(found)
    if counted not in (None, 1000):
        request.notes.append(f"{found}: {counted} classes, as its {files.CLASSES} says, so data=folder")
        return {"data": "folder", "data.dir": quoted(found)}
    return {"data": "imagenet", "data.dir": quoted(found)}


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


def classes_in(folder: str) -> int | None:
    """How many classes the shards say they are of; None where nothing says it."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if not files.is_remote(folder):
            return len(files.read_classes((Path(folder).expanduser() / files.CLASSES).read_text(encoding="utf-8")))
    return None


# ----------------------------------------------------------------------------------------------------------- shown and run
def python() -> str:
    """What a shell calls this interpreter."""
    found = shutil.which("python")
    return "python" if found and Path(found).parent == Path(sys.executable).parent else sys.executable


def shown(lines: Sequence[Sequence[str]], env: Mapping[str, str]) -> str:
    """One line for a shell."""
    before = ["env", *(f"{name}={value}" for name, value in env.items())] if env else []
    return " && ".join(shlex.join([*before, python(), "-m", *words]) for words in lines)


def run(lines: Sequence[Sequence[str]], env: Mapping[str, str]) -> int:
    """Run them in turn as long as they succeed; the exit status. A SIGTERM is passed on; a Ctrl-C reaches them by itself."""
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: object) -> None:
        for child in children[-1:]:
            child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    for words in lines:
        children.append(subprocess.Popen([sys.executable, "-m", *words], env={**os.environ, **env}))
        if code := children[-1].wait():
            return code if code > 0 else 128 - code
    return 0


def help_text(command: str) -> str:
    """Every option of a command, with what it is here."""
    told = COMMANDS[command]
    lines = [f"{command}: {told.said}. Prints the line of resnet.train that does it, and runs it.", ""]
    lines += rows("options", told.options) + rows("environment", told.environment)
    if command == "habana_model_runner.py":
        lines += rows("parameters", PARAMETERS) + rows("env_variables (others go to the run)", RUNNER_ENVIRONMENT)
    lines += ["", "What follows -- goes to resnet.train as it is, and wins: -- cluster=gpu1 track=off"]
    return "\n".join([*lines, "Exit status: the training's (docs/ranks.md), or 2 for a line that makes no sense."])


def rows(title: str, options: Sequence[Option]) -> list[str]:
    """A block of --help."""
    typed = [(f"{', '.join(o.names.split())} {KINDS[o.kind][2] if o.kind else ''}".rstrip(), o.said) for o in options]
    wide = max((len(names) for names, _ in typed), default=0)
    return [f"{title}:", *(f"  {names:<{wide}}  {said}" for names, said in typed)] if typed else []


def main(argv: Sequence[str]) -> int:
    """Exit status."""
    command = Path(argv[0]).name if argv else ""
    if command not in COMMANDS:
        print(f"resnet.compat: {command or 'no command'}: there are {', '.join(COMMANDS)}", file=sys.stderr)
        return USAGE
    try:
        request = requested(command, argv[1:], os.environ)
        if "help" in request.asked:
            print(help_text(command))
            return 0
        lines = commands(request)
    except UserError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return USAGE
    for note in request.notes:
        print(f"{command}: {note}", file=sys.stderr)
    print(shown(lines, request.env), flush=True)
    return 0 if "print" in request.asked else run(lines, request.env)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
