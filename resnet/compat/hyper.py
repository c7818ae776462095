"""The optimizer, its schedule and the loss of a command, with the numbers that the original's programs had.

Sources: release 0.13, imagenet_main.py and resnet_run_loop.py (Estimator) and resnet_common.sh; releases 0.14 to 1.14,
resnet_keras/common.py and lars_util.py (Keras).
"""

from __future__ import annotations

import math

from resnet.compat.habana_options import HYPER
from resnet.compat.request import Request
from resnet.compat.words import one_group
from resnet.config.schedule import Horizon

# LARS: global batches below the first number have this peak and warm-up, unless flags say others.
LARS_ROWS = ((8192, "9.5", "3"), (16384, "10", "5"), (32768, "25", "5"), (math.inf, "32", "14"))
KERAS_ROWS = ((32768, "5"), (math.inf, "25"))  # of Keras' polynomial schedule, the warm-up
DECAY = "0.0001"
USUAL = {"sgd": "piecewise", "lars": "polynomial"}  # schedules that need no word
RESNEXT = {  # flags of the published ResNeXt
    "use_cosine_lr": "true",
    "warmup_epochs": "8",
    "optim.momentum": "0.875",
    "weight_decay": "6.103515625e-05",
}


def presets(request: Request) -> None:
    """Set the options that a command had without being told."""
    options = request.options
    defaults: dict[str, str] = {}
    resnext = options.get("type") == "resnext"
    if request.command == "imagenet_main.py":
        options.setdefault("type", "resnext")
        resnext = options["type"] == "resnext"
        defaults |= {"size": "101"} if resnext else {}
    if resnext and (request.scripted or request.command == "imagenet_main.py"):
        defaults |= RESNEXT if request.scripted else {**RESNEXT, "label_smoothing": "0.1"}
    if request.scripted:
        defaults |= {"mixup": "0.2"} if resnext and float(options.get("epochs", "0")) == 250 else {}
        defaults |= {"label_smoothing": "0"} if request.keras else {}
        alone = "workers" not in options and options.get("lars") == "true"
        defaults |= {"start_learning_rate": "2.5"} if alone else {}
    else:
        defaults = {"dtype": "fp32", "card_batch": "32", "label_smoothing": "0"} | defaults
        defaults |= {"epochs": "1" if request.keras else "10"}
        if options.get("optimizer") == "LARS":
            options["lars"] = "true"
    request.options = {**defaults, **options}
    if "fine_tune" in options:
        request.options["finetune.freeze"] = "head"


def settings(request: Request, batch: int) -> dict[str, str]:
    """The words of optimizer and schedule at this global batch. What does not count is reported, as flags by mistake are."""
    if "optim" in request.overridden:
        return {}
    lars = request.options.get("lars") == "true"
    optim = "lars" if lars else "sgd"
    words = keras(request, batch) if request.keras else poly(request, batch) if lars else steps_or_cosine(request)
    schedule = words.pop("schedule", USUAL[optim])
    for name in sorted(HYPER & set(request.options) - request.counted):
        value = request.options[name]
        what = "its rate and warm-up do not count" if name == "fine_tune" else "does not count"
        request.notes.append(f"{name}={value}: {what} with optim={optim} and schedule={schedule}, as there")
    first = {} if schedule == USUAL[optim] else {"schedule": schedule}
    return {"optim": optim} | first | words


def poly(request: Request, batch: int) -> dict[str, str]:
    """LARS of the Estimator program: its curve ends at epoch 38, whatever the number of epochs."""
    _, peak, warmup = next(row for row in LARS_ROWS if batch < row[0])
    return {
        "optim.lr": request.flag("start_learning_rate", peak),
        "optim.weight_decay": request.flag("weight_decay", DECAY),
        "schedule.warmup_epochs": request.flag("warmup_epochs", warmup),
        "schedule.horizon_epochs": request.flag("epochs_for_lars", "38"),
    }


def steps_or_cosine(request: Request) -> dict[str, str]:
    """SGD of the Estimator program. Fine-tuning, or without warm-up, its rate was 0.1 per 256 images."""
    plain = "true" in (request.flag("fine_tune"), request.flag("disable_warmup"))
    cosine = request.flag("use_cosine_lr") == "true"
    warmup = request.flag("warmup_epochs", "3")
    words = {"schedule": "cosine"} if cosine else {}
    if cosine or plain:
        words["optim.lr"] = "${linear_lr:0.256}" if cosine else "${linear_lr:0.1}"
    decay = {"optim.weight_decay": request.flag("weight_decay", DECAY)}
    return words | decay | {"schedule.warmup_epochs": "0" if plain else warmup}


def keras(request: Request, batch: int) -> dict[str, str]:
    """The Keras program. Its L2 loss without the factor 1/2 decayed SGD's weights twice as much as weight_decay says."""
    lars = request.options.get("lars") == "true"
    schedule, decay = request.flag("lr_schedule", "piecewise"), request.flag("weight_decay", DECAY)
    request.flag("optimizer")
    once = request.flag("single_l2_loss_op") == "true" or lars
    words = {"schedule": schedule, "optim.weight_decay": decay if once else f"{2 * float(decay):g}"}
    if lars:
        words |= {"optim.epsilon": request.flag("lars_epsilon", "0")}
    if schedule == "piecewise":
        return words | {"optim.lr": "${linear_lr:0.1}", "schedule.warmup_epochs": "5"}
    peak = request.flag("base_learning_rate", "0.1")
    if schedule == "constant":
        return words | {"optim.lr": f"${{linear_lr:{peak}}}", "schedule.warmup_epochs": "0"}
    warmup = request.flag("warmup_epochs", next(epochs for below, epochs in KERAS_ROWS if batch < below))
    words |= {"optim.lr": peak, "schedule.warmup_epochs": warmup}
    words |= {"schedule.end_lr": end} if (end := request.flag("end_learning_rate")) else {}
    return words | {"schedule.horizon_epochs": request.flag("lars_decay_epochs", request.options["epochs"])}


def curve(request: Request, words: dict[str, str]) -> dict[str, str]:
    """The words without those that the groups say themselves, and with an end of the curve where `epochs` cannot be it.

    The original let a run shorter than its warm-up rise and stop.
    """
    if "schedule" in request.overridden:
        words = {name: value for name, value in words.items() if not name.startswith("schedule.")}
    bare = {name: value for name, value in words.items() if not name.startswith(("optim.", "schedule."))}
    rows = ("batch",) if bare.get("optim", "lars") == "lars" else ()  # whose settings go by the batch
    parts = {group: one_group(group, ("optim", "schedule", *rows), bare, request) for group in ("optim", "schedule")}
    for name, value in list(words.items()):
        group, _, knob = name.partition(".")
        usual = getattr(parts[group], knob, None) if group in parts and knob else None
        usual = float(words.get("epochs", "nan")) if usual is None and knob == "horizon_epochs" else usual
        if usual is not None and not value.startswith("$") and float(value) == usual:
            del words[name]
    end = "schedule.horizon_epochs"
    if isinstance(parts["schedule"], Horizon) and not {"epochs", end} & request.overridden:
        epochs, ends = float(words["epochs"]), float(words.get(end, "inf"))
        warmup = float(words.get("schedule.warmup_epochs", parts["schedule"].warmup_epochs))
        if epochs > ends:
            request.notes.append(
                f"epochs={epochs:g}: the original's curve ended at epoch {ends:g}, here with the epochs"
            )
            words[end] = "null"
        elif epochs <= warmup and not warmup < ends < math.inf:
            words[end] = request.published_epochs
    return words
