"""What somebody asked one of the original's commands: its command line, environment or YAML file."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from resnet import UserError, cli
from resnet.compat.habana_options import COMMANDS, KINDS, PARAMETERS, RUNNER_ENVIRONMENT, Option


@dataclass
class Request:
    """What a command was called with."""

    command: str
    environ: Mapping[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(
        default_factory=dict
    )  # by the keys of `habana_options`, in the order they were typed
    extra: list[str] = field(default_factory=list)  # words that go to resnet.train as they are
    env: dict[str, str] = field(default_factory=dict)  # more environment variables for the run
    notes: list[str] = field(default_factory=list)  # a line each, for people

    def add(self, option: Option, value: str | None, shown: str) -> None:
        """Record an option, a variable or a key."""
        if not option.key:
            self.notes.append(f"{shown}: {option.help}")
        elif value is not None:
            self.options[option.key] = value

    def add_all(self, options: Sequence[Option], values: Mapping[str, Any], separator: str) -> dict[str, Any]:
        """Record variables, or keys of a file, by name; returns those that are no options. Raises UserError."""
        known = {name: option for option in options for name in option.names.split()}
        for name, value in values.items():
            if name in known and value is not None:
                try:
                    self.add(known[name], known[name].convert(str(value)), f"{name}{separator}{value}")
                except argparse.ArgumentTypeError as error:
                    raise UserError(f"{name}{separator}{error}") from None
        return {name: value for name, value in values.items() if name not in known}

    @property
    def published_epochs(self) -> str:
        """The epochs of the published recipe of this optimizer."""
        return "38" if self.options.get("lars") == "true" else "90"

    @property
    def overridden(self) -> set[str]:
        """The knobs and groups among the extra words."""
        return {word.lstrip("+~").partition("=")[0] for word in self.extra}

    def not_overridden(self, words: Mapping[str, str]) -> dict[str, str]:
        """Without those that the extra words name too: these win."""
        return {name: value for name, value in words.items() if name not in self.overridden}


# ---------------------------------------------------------------------------------------------------- reading the request
class Parser(argparse.ArgumentParser):
    """A command's options as the original took them; - and _ in a long one are the same."""

    def __init__(self, command: str) -> None:
        rows = table("environment", COMMANDS[command].environment)
        if command == "habana_model_runner.py":
            rows += table("parameters", PARAMETERS) + table("env_variables (others go to the run)", RUNNER_ENVIRONMENT)
        rows += ["What follows -- goes to resnet.train as it is, and wins: -- cluster=gpu1 track=off"]
        rows += ["Exit status: the training's (docs/ranks.md), or 2 for a line that makes no sense."]
        super().__init__(
            command,
            description=f"{COMMANDS[command].help}. Prints the line of resnet.train that does it, and runs it.",
            epilog="\n".join(rows),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        for option in COMMANDS[command].options:
            names, dest = option.names.split(), option.key or option.names
            if option.kind:
                metavar = KINDS[option.kind][2]
                self.add_argument(*names, dest=dest, help=option.help, type=option.convert, metavar=metavar)
            else:
                self.add_argument(*names, dest=dest, help=option.help, action="store_const", const=option.fixed)

    def error(self, message: str) -> NoReturn:
        """One line instead of the usage."""
        raise UserError(message)

    def values(self, words: Sequence[str]) -> dict[str, str | None]:
        """What the words say, by key."""
        options = {name.replace("_", "-"): name for name in self._option_string_actions}
        typed = []
        for word in words:
            name, equals, text = word.partition("=")
            if re.match("-.*[^-0-9.]", name) and name.replace("_", "-") not in options:  # argparse takes -rs for -r -s
                raise UserError(f"{name}: no such option; {cli.nearest(name, list(options.values()))}")
            typed.append(options.get(name.replace("_", "-"), name) + equals + text)
        namespace, rest = self.parse_known_args(typed)
        if rest:
            raise UserError(f"{rest[0]}: no such option; {cli.nearest(rest[0], list(options.values()))}")
        return vars(namespace)


def table(title: str, options: Sequence[Option]) -> list[str]:
    """A block of --help for what is not on the command line."""
    typed = [f"{', '.join(option.names.split())} {KINDS[option.kind][2]}" for option in options]
    width = max(map(len, typed), default=0)
    rows = [f"  {names:<{width}}  {option.help}" for names, option in zip(typed, options, strict=True)]
    return [f"{title}:", *rows, ""] if rows else []


def read_request(command: str, words: Sequence[str], environ: Mapping[str, str]) -> Request:
    """Read a command line, and what the command reads beside it. Raises UserError naming what makes no sense."""
    words = list(words)
    own = words[: words.index("--")] if "--" in words else words
    request = Request(command, environ, extra=words[len(own) + 1 :])
    values = Parser(command).values(own)
    by_key = {option.key or option.names: option for option in COMMANDS[command].options}
    for key, value in values.items():
        request.add(by_key[key], value, by_key[key].names)
    names = [name for option in COMMANDS[command].environment for name in option.names.split()]
    request.add_all(COMMANDS[command].environment, {name: environ[name] for name in names if environ.get(name)}, "=")
    options = request.options
    if command == "habana_model_runner.py":
        read_file(request)
    if command == "demo_resnet_hvd.sh":
        options.update({"dtype": "bf16", "workers": options.get("workers", "all")})
        options.setdefault("lars", "false" if "resnext" in options else "true")
        if options["lars"] == "false":  # optim=lars brings its epochs, by the batch
            options.setdefault("epochs", request.published_epochs)
        options.setdefault("eval_every_epochs", "4" if "mlperf" in options else "8")
        if "mlperf" in options:
            options.setdefault("stop_at_top1", "0.759")
    else:
        options.setdefault("epochs", "1")
    check(request)
    return request


def read_file(request: Request) -> None:
    """Read the YAML file of habana_model_runner.py."""
    model, path = request.options.get("model"), request.options.get("config")
    if not model or not path:
        raise UserError("--model and --hb_config: must be given, resnet_estimator or resnet_keras, and a YAML file")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "problem", None) or error
        raise UserError(f"--hb_config {path}: cannot be read ({reason}); give a YAML file") from None
    parts = ("model", "env_variables", "parameters")
    whole = isinstance(content, dict) and all(isinstance(content.get(part) or {}, dict) for part in parts[1:])
    if not whole or not set(content) <= set(parts):
        raise UserError(
            f"--hb_config {path}: must hold model, and the mappings env_variables and parameters; nothing else"
        )
    if content.get("model") != model:
        raise UserError(f"--model {model}: {path} is for model: {content.get('model')}; give that, or another file")
    if unknown := request.add_all(PARAMETERS, content.get("parameters") or {}, ": "):
        names = [name for option in PARAMETERS for name in option.names.split()]
        raise UserError(
            f"{path}: {next(iter(unknown))}: no such parameter; {cli.nearest(str(next(iter(unknown))), names)}"
        )
    for name, value in request.add_all(RUNNER_ENVIRONMENT, content.get("env_variables") or {}, ": ").items():
        if name == "LD_PRELOAD" and not all(map(os.path.exists, re.split("[ :]+", str(value)))):
            request.notes.append(f"{name}: {value}: is not on this machine, and left out")
        else:
            request.env[str(name)] = str(value)
    request.options["dtype"] = "bf16" if request.options.get("dtype") == "true" else "fp32"


def check(request: Request) -> None:
    """Raise UserError for options that exclude each other."""
    options = request.options
    if "dtype" not in options:
        raise UserError("-d: must be given, bf16 or fp32")
    if "recover" in options and "steps" not in options:
        raise UserError("-r: needs -s, the steps after which the training is done")
    if "resnext" in options and options.get("lars") == "true":
        raise UserError(
            "--resnext: nobody published settings of LARS for it; leave one of the two out, or add -- optim=lars"
        )
    if "resnext" in options and options.get("size", "101") not in ("50", "101", "152"):
        raise UserError(f"--resnext: there is no ResNeXt-{options['size']}; choose 50, 101 or 152")
    if "eval" in options and "stop_at_top1" in options:
        raise UserError(f"stop_at_top1={options['stop_at_top1']}: only an evaluation can tell, and none is wanted")
    if "eval_only" in options and "out" not in options:
        raise UserError("eval_only: needs model_dir, the folder of the run to evaluate")
    if "recipe" in request.overridden:
        raise UserError(
            "recipe=: what the options say would win over it; call python -m resnet.train recipe=... instead"
        )
    if odd := [word for word in request.extra if word.startswith("-") or "=" not in word]:
        raise UserError(f"{odd[0]}: only knob=value may follow --; add anything else to the line that --print shows")
