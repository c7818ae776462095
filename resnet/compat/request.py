"""What one of the original's commands is called with: its command line, environment or YAML file."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from resnet import UserError
from resnet.compat.habana_options import COMMANDS
from resnet.compat.option import KINDS, SWITCHES, Option, by_name

NEVER = "2147483647"  # steps between checkpoints, of a run that wants none


@dataclass
class Request:
    """What a command is called with."""

    command: str
    environ: Mapping[str, str]
    extra: list[str]  # words that go to resnet.train as they are
    options: dict[str, str] = field(default_factory=dict)  # by key, in the order in which they were typed
    env: dict[str, str] = field(default_factory=dict)  # more environment variables for the run
    notes: list[str] = field(default_factory=list)  # a line each, for people
    counted: set[str] = field(default_factory=set)  # options that `flag` was called for

    def add(self, option: Option, text: str, typed: str) -> None:
        """Record an option, variable or key. Raises UserError, which shows it as it was typed."""
        pattern, words, _ = KINDS[option.kind]
        if not re.fullmatch(pattern, text):
            raise UserError(f"{typed}: must be {words}")
        value: str | None = text
        true = text.lower() in ("", "1", "t", "true")
        match option.kind:
            case "" | "if true":
                value = option.fixed if true else None
            case "truth":
                value = str(true).lower()
            case "limit":
                value = None if text == "-1" else text
            case "auto":
                value = None if text == "0" else text
            case "refused" | "refused flag":
                if not re.fullmatch(option.fixed, text):
                    raise UserError(f"{typed}: {option.help}")
                return
        if not option.key:
            self.notes.append(f"{typed}: {option.help}")
        elif value is not None:
            self.options[option.key] = value

    def flag(self, name: str, default: str = "") -> str:
        """An option by its key; it counts from now on."""
        self.counted.add(name)
        return self.options.get(name, default)

    @property
    def scripted(self) -> bool:
        """Whether this is one of the shell scripts, which chose flags for the programs."""
        return self.command in ("demo_resnet", "demo_keras_resnet", "demo_resnet_hvd.sh")

    @property
    def keras(self) -> bool:
        """Whether the original's Keras program would do it, or its Estimator."""
        keras = ("demo_keras_resnet", "resnet_ctl_imagenet_main.py")
        return self.command in keras or self.options.get("model") == "resnet_keras"

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
        width = min(44, max(map(len, rows)))
        lines += [f"{title}:", *(f"  {names:<{width}}  {text}" for names, text in rows.items()), ""]
    lines += ["Variables that env_variables has beside these go to the run."] if "env_variables" in sources else []
    lines += ["A flag is typed --name=value, --name value or -name value; --name and --noname for 0|1."] * (
        "flags" in sources
    )
    lines += ["What follows -- goes to resnet.train as it is, and wins: -- cluster=gpu1 track=off"]
    return "\n".join([*lines, "Exit status: the training's (docs/ranks.md), or 2 for a line that makes no sense."])


def read_request(command: str, words: Sequence[str], environ: Mapping[str, str]) -> Request:
    """Read a command line, and what the command reads beside it. Raises UserError naming what makes no sense."""
    sources = COMMANDS[command][1]
    own = words[: words.index("--")] if "--" in words else words
    request = Request(command, environ, list(words[len(own) + 1 :]))
    typed = by_name(sources["options"] + sources.get("flags", ()))
    for option, (text, word) in read_words(typed, own).items():
        request.add(option, text, word)
    for name, option in by_name(sources.get("environment", ())).items():
        if environ.get(name):
            request.add(option, environ[name], f"{name}={environ[name]}")
    options = request.options
    if command == "habana_model_runner.py":
        read_file(request)
    if command == "demo_resnet_hvd.sh":
        options.update({"dtype": "bf16", "workers": options.get("workers", "all")})
        options.setdefault("lars", "false" if "type" in options else "true")
        options.setdefault("epochs", request.published_epochs)
        options.setdefault("eval_every_epochs", "4" if "mlperf" in options else "8")
        if "mlperf" in options:
            options.setdefault("stop_at_top1", "0.759")
            options.setdefault("eval_offset_epochs", "6")
    elif request.scripted:
        options.setdefault("epochs", "1")
    return request


def read_words(options: Mapping[str, Option], words: Sequence[str]) -> dict[Option, tuple[str, str]]:
    """(its value, how it was typed) of every option of a command line; - and _ in a name are the same, the last one counts."""
    known = {name.lstrip("-").replace("_", "-"): option for name, option in options.items()}
    typed, rest = {}, iter(words)
    for word in rest:
        name, equals, text = word.partition("=")
        plain = name.lstrip("-").replace("_", "-") if name.startswith("-") else ""
        negated = known.get(plain.removeprefix("no"))
        option = known.get(plain)
        if option is None and negated and negated.kind in SWITCHES and plain.startswith("no") and not equals:
            option, text = negated, "false"
        elif option is None:
            raise UserError(f"{name}: no such option; {nearest(name, list(options))}")
        elif option.kind in SWITCHES and not equals:
            text = "true"
        elif option.kind and not equals:
            text = next(rest, "--")
            if re.match("-.*[^0-9.]", text):  # an option; -1 is a value
                raise UserError(f"{name}: needs a value; it must be {KINDS[option.kind][1]}")
            word = f"{name} {text}"
        typed[option] = (text, word)
    return typed


def nearest(word: str, names: Sequence[str]) -> str:
    """The way out of a name that does not exist; of many names only the likely one."""
    close = difflib.get_close_matches(word, names, 1, 0.75)
    which = f"did you mean {close[0]}?" if close else ""
    few = f"there are: {', '.join(names)}" if len(names) < 30 else "--help lists all"
    return " ".join(filter(None, [which, few.capitalize() if close else few]))


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(name, value as text) of the leaves of nested maps; a list as one value, and each name of `store_true` as true."""
    if name == "store_true":
        yield from ((str(flag), "true") for flag in (node if isinstance(node, list) else [node]))
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, str(key))
    elif node is not None:
        yield name, ",".join(map(str, node)) if isinstance(node, list) else str(node)


def read_file(request: Request) -> None:
    """Read the YAML file of habana_model_runner.py."""
    model, path = request.options.get("model"), request.options.get("config")
    if not model or not path:
        raise UserError("--model and --hb_config: must be given, resnet_estimator or resnet_keras, and a YAML file")
    path = os.path.expandvars(Path(path).expanduser())
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
        for name, value in leaves(content.get(part) or {}):
            if name in options:
                request.add(options[name], os.path.expandvars(value), f"{name}: {value}")
            elif part == "parameters":
                raise UserError(f"{path}: {name}: no such parameter; {nearest(name, list(options))}")
            elif name == "LD_PRELOAD" and not all(map(os.path.exists, re.split("[ :]+", value))):
                request.notes.append(f"{name}: {value}: is not on this machine, and left out")
            else:
                request.env[name] = value


def check(request: Request) -> None:
    """Raise UserError for options that are missing or exclude each other."""
    options = request.options
    resnext, size, top1 = options.get("type") == "resnext", options.get("size"), options.get("stop_at_top1")
    typed, way_out = (
        ("--resnext", "leave one of the two out")
        if request.scripted
        else ("model_type resnext", "give model_type resnet, or no LARS")
    )
    eager = options.get("save_every_steps") == "0" and "eval" not in options
    odd = [word for word in request.extra if word.startswith("-") or "=" not in word]
    errors = {
        "-d: must be given, bf16 or fp32": request.scripted and "dtype" not in options,
        "-r: needs -s, the steps after which the training is done": "recover" in options and "steps" not in options,
        f"{typed}: nobody published settings of LARS for it; {way_out}, or add -- optim=lars": (
            resnext and options.get("lars") == "true"
        ),
        f"{typed}: there is no ResNeXt-{size}; choose 50, 101 or 152": resnext and size in ("18", "34", "200"),
        f"0 steps between checkpoints: only without evaluation (-n); for few of them give a big number: {NEVER}": eager,
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
