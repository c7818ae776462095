"""What somebody asked one of the original's commands: its command line, environment or YAML file, read by `resnet.vocabulary`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from resnet import UserError
from resnet.cli import nearest
from resnet.compat.habana_options import COMMANDS, KINDS, PARAMETERS, RUNNER_ENVIRONMENT, Option


@dataclass
class Request:
    """What a command was asked: values by the keys of `resnet.vocabulary`, and words that go to resnet.train as they are."""

    command: str
    environ: Mapping[str, str] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)  # what the run has in its environment besides
    notes: list[str] = field(default_factory=list)  # a line each, for people

    def take(self, option: Option, text: str, shown: str) -> None:
        """One option as it was given. Raises UserError for a value that it cannot have."""
        value = option.read(text, shown)
        if not option.key:
            self.notes.append(f"{shown}: {option.said}")
        elif value is not None:
            self.asked[option.key] = value

    @property
    def published_epochs(self) -> str:
        """How long the published recipe of this optimizer trains."""
        return "38" if self.asked.get("lars") == "true" else "90"

    @property
    def named(self) -> set[str]:
        """The knobs and groups among the extra words."""
        return {word.lstrip("+~").partition("=")[0] for word in self.extra}


# ------------------------------------------------------------------------------------------------------ what is asked for
def requested(command: str, words: Sequence[str], environ: Mapping[str, str]) -> Request:
    """Read a command line, and what the command reads beside it. Raises UserError naming what makes no sense."""
    request = Request(command, environ)
    read_words(request, words)
    for option in COMMANDS[command].environment:
        for name in option.names.split():
            if text := environ.get(name):
                request.take(option, text, f"{name}={text}")
    asked = request.asked
    if "help" in asked:
        return request
    if command == "habana_model_runner.py":
        read_file(request)
    if command == "demo_resnet_hvd.sh":
        asked.update({"dtype": "bf16", "workers": asked.get("workers", "all")})
        asked.setdefault("lars", "false" if "resnext" in asked else "true")
        if asked["lars"] == "false":  # optim=lars brings its epochs, by the batch
            asked.setdefault("epochs", request.published_epochs)
        asked.setdefault("eval_every_epochs", "4" if "mlperf" in asked else "8")
        if "mlperf" in asked:
            asked.setdefault("stop_at_top1", "0.759")
    else:
        asked.setdefault("epochs", "1")
    checked(request)
    return request


def read_words(request: Request, words: Sequence[str]) -> None:
    """The command line: options as the original took them, --long=value too; what follows -- is for resnet.train."""
    options = {
        name.replace("_", "-"): option for option in COMMANDS[request.command].options for name in option.names.split()
    }
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            request.extra = left
            break
        name, equals, text = word.partition("=") if word.startswith("--") else (word, "", "")
        option = options.get(name.replace("_", "-"))
        if option is None:
            raise UserError(f"{word}: no such option; {nearest(name, list(options))}")
        if not option.kind and equals:
            raise UserError(f"{word}: takes no value")
        if option.kind and not equals:
            if not left or not left[0] or left[0].partition("=")[0].replace("_", "-") in [*options, "--"]:
                raise UserError(f"{name}: needs a value, {KINDS[option.kind][1]}")
            text = left.pop(0)
        request.take(option, text, f"{name} {text}".rstrip())


def read_file(request: Request) -> None:
    """The YAML file of habana_model_runner.py."""
    model, path = request.asked.get("model"), request.asked.get("config")
    if not model or not path:
        raise UserError("--model and --hb_config: must be given, resnet_estimator or resnet_keras, and a YAML file")
    try:
        told = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = getattr(error, "strerror", None) or getattr(error, "problem", None) or error
        raise UserError(f"--hb_config {path}: cannot be read ({said}); give a YAML file") from None
    parts = ("model", "env_variables", "parameters")
    whole = isinstance(told, dict) and all(isinstance(told.get(part) or {}, dict) for part in parts[1:])
    if not whole or not set(told) <= set(parts):
        raise UserError(
            f"--hb_config {path}: must hold model, and the mappings env_variables and parameters; nothing else"
        )
    if told.get("model") != model:
        raise UserError(f"--model {model}: {path} is for model: {told.get('model')}; give that, or another file")
    options = {name: option for option in PARAMETERS for name in option.names.split()}
    for name, value in (told.get("parameters") or {}).items():
        if name not in options:
            raise UserError(f"{path}: {name}: no such parameter; {nearest(str(name), list(options))}")
        if value is not None:
            request.take(options[name], str(value), f"{name}: {value}")
    known = {option.names: option for option in RUNNER_ENVIRONMENT}
    for name, value in (told.get("env_variables") or {}).items():
        if name in known:
            request.take(known[name], str(value), f"{name}: {value}")
        elif name == "LD_PRELOAD" and not all(map(os.path.exists, re.split("[ :]+", str(value)))):
            request.notes.append(f"{name}: {value}: is not on this machine, and left out")
        else:
            request.env[str(name)] = str(value)
    request.asked["dtype"] = "bf16" if request.asked.get("dtype") == "true" else "fp32"


def checked(request: Request) -> None:
    """Refuse what cannot be together."""
    asked = request.asked
    if "dtype" not in asked:
        raise UserError("-d: must be given, bf16 or fp32")
    if "recover" in asked and "steps" not in asked:
        raise UserError("-r: needs -s, the steps after which the training is done")
    if "resnext" in asked and asked.get("lars") == "true":
        raise UserError(
            "--resnext: nobody published settings of LARS for it; leave one of the two out, or add -- optim=lars"
        )
    if "resnext" in asked and asked.get("size", "101") not in ("50", "101", "152"):
        raise UserError(f"--resnext: there is no ResNeXt-{asked['size']}; choose 50, 101 or 152")
    if "eval" in asked and "stop_at_top1" in asked:
        raise UserError(f"stop_at_top1={asked['stop_at_top1']}: only an evaluation can tell, and none is wanted")
    if "eval_only" in asked and "out" not in asked:
        raise UserError("eval_only: needs model_dir, the folder of the run to evaluate")
    if "recipe" in request.named:
        raise UserError(
            "recipe=: what the options say would win over it; call python -m resnet.train recipe=... instead"
        )
    if odd := [word for word in request.extra if word.startswith("-") or "=" not in word]:
        raise UserError(f"{odd[0]}: only knob=value may follow --; add anything else to the line that --print shows")
