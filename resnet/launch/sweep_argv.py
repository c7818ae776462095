"""The command line of a sweep, kept in <out>/sweep.yaml, from which `sweep.resume=<out>` resumes."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import yaml
from hydra.core.override_parser.types import Quote, QuotedString

from resnet import UserError, files
from resnet.config import fingerprint

FILE = "sweep.yaml"  # in a sweep's folder: the command line, and where it was typed
RESUME = "sweep.resume"


def save_argv(out: Path) -> None:
    """Write <out>/sweep.yaml; users and passwords in URLs stay out of it."""
    words = [re.sub(r"//[^/@\s]+@", "//", word) for word in sys.argv[1:]]
    content = {"folder": str(Path.cwd()), "words": words}
    files.write_text(out / FILE, yaml.safe_dump(content, sort_keys=False, width=10_000))


def resume_argv(words: list[str]) -> list[str]:
    """The command line of the sweep that `sweep.resume=<folder>` in `words` names, back in its working folder; else `words`.

    Raises UserError if there is no sweep in the folder, or if `words` would make another one of it.
    """
    folders = [word.partition("=")[2] for word in words if word.startswith(f"{RESUME}=")]
    if not folders:
        return words
    shown = f"{RESUME}={folders[-1]}"
    out = Path(files.absolute(folders[-1].strip("'\""), Path.cwd()))
    if not folders[-1] or not out.is_dir():
        raise UserError(f"{shown}: no such folder; give that of a sweep, which was shown when the sweep ended")
    before, folder = read_argv(out, shown)
    more = [word for word in words if word not in before and not word.startswith((f"{RESUME}=", "-m", "--multirun"))]
    for word in more:
        if not fingerprint.may_change_on_resume(knob_of(word)) or knob_of(word) in ("out", "resume", "recipe"):
            raise UserError(
                f"{word}: {shown} uses that sweep's own settings ({shlex.join(before)}); only what does not move "
                "the weights may change, such as steps, cluster.* and track.*. For another sweep leave it out"
            )
    try:
        os.chdir(folder)  # where relative paths mean what they meant
    except OSError as error:
        raise UserError(f"{shown}: the sweep was started in {folder}, which is not there ({error.strerror})") from error
    same = [word for word in before if knob_of(word) not in {"out", *map(knob_of, more)}]
    place = next((at for at, word in enumerate(same) if "=" in word and word[0] != "-"), len(same))
    # In one row with the other overrides, as argparse wants them.
    return [*same[:place], *more, f"out={QuotedString(str(out), Quote.double).with_quotes()}", *same[place:]]


def read_argv(out: Path, shown: str) -> tuple[list[str], str]:
    """The command line and working folder of the sweep in `out`. Raises UserError, with `shown` for what was typed."""
    if not (out / FILE).is_file():
        run = (out / "config.yaml").exists()
        hint = f"this is a run; resume it with resume={out}" if run else "give a sweep's"
        raise UserError(f"{shown}: not the folder of a sweep ({FILE} is missing); {hint}")
    try:
        content = yaml.safe_load((out / FILE).read_text())
        return [str(word) for word in content["words"]], str(content["folder"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        way_out = f"give the sweep's command again with out={out}"
        raise UserError(f"{out / FILE}: cannot be read ({reason}); {way_out}") from error


def knob_of(word: str) -> str:
    """The knob or group of an override."""
    return word.lstrip("+~").partition("=")[0]
