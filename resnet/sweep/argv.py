"""The command line of a sweep, kept in <out>/sweep.yaml, from which `sweep.resume=<out>` resumes.

The file may be a stranger's: its words are data. Of Hydra's own settings, which can name code to call, only a search's counts
are taken, and nothing is imported from its working folder.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet import UserError, files, shell, uris
from resnet.config import fingerprint, help
from resnet.config.compose import INTERPOLATION
from resnet.config.run import VARIANTS, Run
from resnet.config.sweep import Command

FILE = "sweep.yaml"  # in a sweep's folder: the command line, and where it was typed
RESUME = "sweep.resume"
BEST, BEST_OF = "best.yaml", "best_of"  # in a sweep's folder: the overrides of its best job; the word that takes them
NO_OVERRIDE = "not an override"
MAX_SHOWN = 200  # characters of a word in an error
FLAGS = ("-m", "--multirun")
GROUPS = (*VARIANTS, "recipe", "sweep")
OPTION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")  # the name of an option of a group: no path that leads elsewhere
TYPED = ("sweep.study", "sweep.slurm.extra")  # what leads elsewhere is taken from the command line only


def in_one_row(words: list[str]) -> list[str]:
    """The words with the overrides side by side, as argparse wants them. Raises UserError for an option that does not exist."""
    parser = get_args_parser()
    vars(parser)["error"] = functools.partial(refuse, words)  # else it prints a usage of 20 lines and exits
    overrides = parser.parse_intermixed_args(words).overrides
    first = words.index(overrides[0]) if overrides else 0
    if words[first : first + len(overrides)] == overrides:
        return words
    rest = list(words)
    for word in overrides:
        rest.remove(word)
    return [*rest, *overrides]


def refuse(words: list[str], message: str) -> None:
    """Raise UserError for words that argparse refused."""
    raise UserError(f"{shlex.join(words)}: {message}; write knob=value, and options such as -m as --help shows them")


def save_argv(out: Path) -> None:
    """Write <out>/sweep.yaml; users and passwords in URLs stay out of it."""
    words = [uris.USERINFO.sub("", word) for word in sys.argv[1:]]
    content = {"folder": str(Path.cwd()), "words": words}
    files.write_text(out / FILE, yaml.safe_dump(content, sort_keys=False, width=10_000))


def save_best(out: Path, words: Sequence[str], job: int) -> None:
    """Write <out>/best.yaml: what varied and moves the weights, of the best job; `best_of=<out>` takes it."""
    content = {"job": job, "words": list(filter(moves_weights, words))}
    files.write_text(out / BEST, yaml.safe_dump(content, sort_keys=False, width=10_000))


def moves_weights(word: str) -> bool:
    """Whether an override decides what the weights become."""
    knob = knob_of(word)
    group = knob.partition(".")[0]
    return knob == "recipe" or (group in help.knobs(Run) and not fingerprint.may_change_on_resume(knob))


def best_argv(words: list[str]) -> list[str]:
    """`words` with the overrides of the best job of the sweep that `best_of=<folder>` in them names; those typed win.

    Raises UserError if there is no such sweep, or its file has other words than values of knobs.
    """
    typed = [word for word in words if word.startswith(f"{BEST_OF}=")]
    if not typed:
        return words
    shown, place = typed[-1], path_of(typed[-1])
    out = Path(files.absolute(place, Path.cwd()))
    if not place or not out.is_dir():
        raise UserError(f"{shown}: no such folder; give that of a sweep, which was shown when the sweep ended")
    try:
        best = yaml.safe_load(files.read_bytes(out / BEST, 1 << 20))["words"]
        if not isinstance(best, list) or not all(isinstance(word, str) for word in best):
            raise TypeError("it needs words, a list of texts")
    except FileNotFoundError as error:
        raise UserError(f"{shown}: {BEST} is missing; give a sweep that has ended, of jobs with a top-1") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{out / BEST}: cannot be read ({' '.join(str(error).split())}); remove it") from error
    rest = [word for word in words if word not in typed]
    new = [word for word in best if word not in rest]
    check_words(new, shown, BEST)
    if others := [word for word in new if not moves_weights(word)]:
        raise UserError(f"{shown}: {BEST} has {others[0][:MAX_SHOWN]}, which does not decide the weights; remove it")
    typed_knobs = set(map(knob_of, rest))
    return [*rest, *(word for word in new if knob_of(word) not in typed_knobs)]


def resume_argv(words: list[str]) -> list[str]:
    """The command line of the sweep that `sweep.resume=<folder>` in `words` names, back in its working folder; else `words`.

    Raises UserError if there is no sweep in the folder, or if `words` would make another one of it.
    """
    typed = [word for word in words if word.startswith(f"{RESUME}=")]
    if not typed:
        return words
    shown, place = typed[-1], path_of(typed[-1])
    out = Path(files.absolute(place, Path.cwd()))
    if not place or not out.is_dir():
        raise UserError(f"{shown}: no such folder; give that of a sweep, which was shown when the sweep ended")
    before, folder = read_argv(out, shown)
    more = [word for word in words if word not in before and not word.startswith((f"{RESUME}=", *FLAGS))]
    for word in more:
        sweeps = knob_of(word).startswith("sweep.")
        if not (sweeps or fingerprint.may_change_on_resume(knob_of(word))) or knob_of(word) in (
            "out",
            "resume",
            "recipe",
        ):
            raise UserError(
                f"{word}: {shown} uses that sweep's own settings ({shlex.join(before)}); only what does not move "
                "the weights may change, such as steps, cluster.* and track.*. For another sweep leave it out"
            )
    same = [word for word in before if knob_of(word) not in {"out", *map(knob_of, more)}]
    check_words([word for word in same if word not in words], shown)
    paths = os.environ.get("PYTHONPATH")
    try:
        sys.path[:] = map(os.path.abspath, sys.path)
        os.environ |= {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))} if paths else {}
        os.chdir(folder)  # where relative paths mean what they meant
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{shown}: the sweep was started in {folder}, which is not there ({reason})") from error
    return [*same, *more, shell.override("out", out)]


def path_of(word: str) -> str:
    """The path in knob=path, quoted as Hydra has it or typed as it is."""
    try:
        return str(OmegaConf.create([OverridesParser.create().parse_override(word).value()])[0])
    except (HydraException, OmegaConfBaseException):
        return word.partition("=")[2]


def read_argv(out: Path, shown: str) -> tuple[list[str], str]:
    """The command line and working folder of the sweep in `out`. Raises UserError, with `shown` for what was typed."""
    if not os.path.lexists(out / FILE):
        run = (out / "config.yaml").exists()
        hint = f"this is a run; resume it with {shell.word('resume', out)}" if run else "give the folder of a sweep"
        raise UserError(f"{shown}: not the folder of a sweep ({FILE} is missing); {hint}")
    try:
        content = yaml.safe_load(files.read_bytes(out / FILE, 1 << 20))
        words: Any
        folder: Any
        words, folder = (content.get(name) if isinstance(content, dict) else None for name in ("words", "folder"))
        if not isinstance(words, list) or not all(isinstance(word, str) for word in [folder, *words]):
            raise TypeError("it needs words, a list of texts, and folder, a text")
        return [uris.USERINFO.sub("", word) for word in words], folder
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        way_out = f"give the sweep's command again with {shell.word('out', out)}"
        raise UserError(f"{out / FILE}: cannot be read ({reason}); {way_out}") from error


def check_words(words: Sequence[str], shown: str, file: str = FILE) -> None:
    """Raise UserError for a word from a file of a sweep that is no flag, group or knob with a plain value."""
    for word in words:
        if word not in FLAGS and (reason := not_data(word)):
            short = word if len(word) <= MAX_SHOWN else f"{word[:MAX_SHOWN]}..."
            trusted = (
                "remove it"
                if short != word or reason == NO_OVERRIDE
                else (f"if you trust it, type it too: {shell.command('resnet.train', shown, word)}")
            )
            raise UserError(f"{shown}: {file} has {short}, {reason}; {trusted}")


def not_data(word: str) -> str | None:
    """Why a word cannot be taken from a file; None for one that can."""
    if word.startswith("-"):
        return "an option of Hydra"
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return NO_OVERRIDE
    knob = override.key_or_group
    own = re.fullmatch(r"[\w.]+", knob) and knob.partition(".")[0] in help.knobs(Command) and knob not in TYPED
    if override.package or not (own or knob == "hydra.mode"):
        return "no group or knob of a run"
    values = list(texts(override.value()))
    if any(map(INTERPOLATION.search, values)):
        return "which takes its value from elsewhere"
    return None if knob not in GROUPS or all(map(OPTION.fullmatch, values)) else "no name of an option"


def texts(value: Any) -> Iterator[str]:
    """Every string in the value of an override."""
    match value:
        case QuotedString():
            yield value.text
        case str():
            yield value
        case ChoiceSweep():
            yield from texts(value.list)
        case list():
            for item in value:
                yield from texts(item)
        case dict():
            for item in (*value, *value.values()):
                yield from texts(item)


def knob_of(word: str) -> str:
    """The knob or group of an override."""
    return word.lstrip("+~").partition("=")[0]
