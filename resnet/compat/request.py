"""What one of the original's commands is called with: its command line, environment or YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from resnet import UserError, cli
from resnet.compat.habana_options import COMMANDS, KINDS, Option, by_name


@dataclass
class Request:
    """What a command is called with."""

    command: str
    environ: Mapping[str, str]
    extra: list[str]  # words that go to resnet.train as they are
    options: dict[str, str] = field(default_factory=dict)  # by key, in the order in which they were typed
    env: dict[str, str] = field(default_factory=dict)  # more environment variables for the run
    notes: list[str] = field(default_factory=list)  # a line each, for people

    def add(self, option: Option, text: str, typed: str) -> None:
        """Record an option, variable or key. Raises UserError, which shows it as it was typed."""
        pattern, words, _ = KINDS[option.kind]
        if not re.fullmatch(pattern, text):
            raise UserError(f"{typed}: must be {words}")
        value: str | None = text
        true = text.lower() in ("", "1", "true")
        match option.kind:
            case "" | "if true":
                value = option.fixed if true else None
            case "truth":
                value = str(true).lower()
            case "limit":
                value = None if text == "-1" else text
        if not option.key:
            self.notes.append(f"{typed}: {option.help}")
        elif value is not None:
            self.options[option.key] = value

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


def help_text(command: str) -> str:
    description, sources = COMMANDS[command]
    lines = [f"{command}: {description}. Prints the line of resnet.train that does it, and runs it.", ""]
    for title, options in sources.items():
        rows = {f"{', '.join(option.names.split())} {KINDS[option.kind][2]}": option.help for option in options}
        width = max(map(len, rows))
        lines += [f"{title}:", *(f"  {names:<{width}}  {text}" for names, text in rows.items()), ""]
    lines += ["Variables that env_variables has beside these go to the run."] if "env_variables" in sources else []
    lines += ["What follows -- goes to resnet.train as it is, and wins: -- cluster=gpu1 track=off"]
    return "\n".join([*lines, "Exit status: the training's (docs/ranks.md), or 2 for a line that makes no sense."])


def read_request(command: str, words: Sequence[str], environ: Mapping[str, str]) -> Request:
    """Read a command line, and what the command reads beside it. Raises UserError naming what makes no sense."""
    sources = COMMANDS[command][1]
    own = words[: words.index("--")] if "--" in words else words
    request = Request(command, environ, list(words[len(own) + 1 :]))
    for option, (text, typed) in read_words(by_name(sources["options"]), own).items():
        request.add(option, text, typed)
    for name, option in by_name(sources.get("environment", ())).items():
        if environ.get(name):
            request.add(option, environ[name], f"{name}={environ[name]}")
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


def read_words(options: Mapping[str, Option], words: Sequence[str]) -> dict[Option, tuple[str, str]]:
    """(its value, how it was typed) of every option of a command line; - and _ in a name are the same, the last one counts."""
    known = {name.replace("_", "-"): option for name, option in options.items()}
    typed, rest = {}, iter(words)
    for word in rest:
        name, equals, text = word.partition("=")
        option = known.get(name.replace("_", "-"))
        if option is None:
            raise UserError(f"{name}: no such option; {cli.nearest(name, list(options))}")
        if option.kind and not equals:
            text = next(rest, "--")
            if re.match("-.*[^0-9.]", text):  # an option; -1 is a value
                raise UserError(f"{name}: needs a value; it must be {KINDS[option.kind][1]}")
            word = f"{name} {text}"
        typed[option] = (text, word)
    return typed


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
    parts = ("parameters", "env_variables")
    whole = isinstance(content, dict) and all(isinstance(content.get(part) or {}, dict) for part in parts)
    if not whole or not set(content) <= {"model", *parts}:
        raise UserError(
            f"--hb_config {path}: must hold model, and the mappings env_variables and parameters; nothing else"
        )
    if content.get("model") != model:
        raise UserError(f"--model {model}: {path} is for model: {content.get('model')}; give that, or another file")
    for part in parts:
        options = by_name(COMMANDS[request.command][1][part])
        for name, value in (content.get(part) or {}).items():
            if name in options and value is not None:
                request.add(options[name], str(value), f"{name}: {value}")
            elif name not in options and part == "parameters":
                raise UserError(f"{path}: {name}: no such parameter; {cli.nearest(str(name), list(options))}")
            elif name == "LD_PRELOAD" and not all(map(os.path.exists, re.split("[ :]+", str(value)))):
                request.notes.append(f"{name}: {value}: is not on this machine, and left out")
            elif name not in options:
                request.env[str(name)] = str(value)
    request.options.setdefault("dtype", "fp32")


def check(request: Request) -> None:
    """Raise UserError for options that are missing or exclude each other."""
    options = request.options
    resnext, size, top1 = "resnext" in options, options.get("size"), options.get("stop_at_top1")
    odd = [word for word in request.extra if word.startswith("-") or "=" not in word]
    errors = {
        "-d: must be given, bf16 or fp32": "dtype" not in options,
        "-r: needs -s, the steps after which the training is done": "recover" in options and "steps" not in options,
        "--resnext: nobody published settings of LARS for it; leave one of the two out, or add -- optim=lars": (
            resnext and options.get("lars") == "true"
        ),
        f"--resnext: there is no ResNeXt-{size}; choose 50, 101 or 152": resnext and size in ("18", "34", "200"),
        f"stop_at_top1={top1}: only an evaluation can tell, and none is wanted": bool(top1) and "eval" in options,
        "eval_only: needs model_dir, the folder of the run to evaluate": "eval_only" in options
        and "out" not in options,
        "recipe=: what the options say would win over it; call python -m resnet.train recipe=... instead": (
            "recipe" in request.overridden
        ),
        f"{''.join(odd[:1])}: only knob=value may follow --; add anything else to the line that --print shows": bool(
            odd
        ),
    }
    for message, wrong in errors.items():
        if wrong:
            raise UserError(message)
