"""Errors of Hydra, OmegaConf and YAML in one line: the knob, its value, the way out."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from resnet import UserError, shell
from resnet.cli import nearest
from resnet.config import help
from resnet.config.run import VARIANTS

# Words of the sweeper for Optuna 2 that this suite had before its own, and of Hydra's launchers.
RENAMED = {
    "hydra.sweeper.n_trials": "sweep.trials=",
    "hydra.sweeper.n_jobs": "sweep.jobs=",
    "hydra.sweeper.max_batch_size": "sweep.jobs=",
    "hydra.sweeper.sampler.n_startup_trials": "sweep.startup=",
    "hydra.sweeper.sampler.seed": "seed=",
    "hydra.sweeper.direction": "sweep.goals=",
    "hydra.sweeper.storage": "sweep.study=",
    "hydra/sweeper": "sweep.sampler=tpe, gp, cmaes, nsga2, qmc or random",
    "hydra/sweeper/sampler": "sweep.sampler=tpe, gp, cmaes, nsga2, qmc or random",
    "hydra/launcher": "sweep.jobs=",
}
OPEN = "finetune.lr_multipliers"  # a mapping whose keys are the user's; to those of a recipe Hydra adds with ++ only
# Message of OmegaConf or Hydra -> what follows the knob in ours: its value, and the way out.
TRANSLATIONS = (
    (r"Value '(.*)' of type '\w+' could not be converted to Integer", "={0}: must be a whole number"),
    (r"Value '(.*)' of type '\w+' could not be converted to Float", "={0}: must be a number"),
    (r"Value '(.*)' is not a valid bool", "={0}: must be true or false"),
    (r"Invalid value '(.*)', expected one of \[(.*)\]", "={0}: must be one of {1}"),
    (r"Invalid value assigned: .* not a ListConfig", ": must be a list, as in [1,2,3]"),
    (r"field '.*' is not Optional|Incompatible value 'None'", "=null: must have a value"),
    (r"(?i).*missing mandatory value", ": must be given, as in {key}=..."),
    (r".* does not support deletion", ": cannot be left out; give it another value"),
    (r"Interpolation key '(.*)' not found", "=${{{0}}}: there is no such knob to take the value from"),
    (r".*Environment variable '(.*)' not found", ": takes its value from the environment, where {0} is not set"),
    (r"Cannot convert '\w+' to string", ": takes no settings; the file may lack its first line, # @package _global_"),
    (r"Merge error: .* value: (.*)", "{0}: settings of a group are needed here; choose an option in the defaults list"),
    (r"Ambiguous value for argument '(.*?)=(.*)'", "{0}={1}: several values; -m tries each, [{1}] is one list"),
    (r"Could not override '(.*)'\.", "{0}: no such group; --help lists what there is"),
    (r"force-add of config groups is not supported: '\+*(.*)'", "{0}: write it without ++"),
    (r"Multiple values for (\S+)\. To override", "{0}: chosen twice; write {0}=..., without +"),
)


@contextlib.contextmanager
def explain() -> Iterator[None]:
    """Hydra's, OmegaConf's and YAML's exceptions come out as UserError, one line, with the way out."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, OverflowError) as error:
        raise UserError(one_line(error)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}, line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{place}not YAML ({problem})") from None
    except (TypeError, ValueError) as error:
        text = str(error) if type(error) in (TypeError, ValueError) else ""
        if text.startswith(("argument of type", "Config group override")):  # Hydra's, of model=[1] and model=null
            raise UserError(no_option()) from None
        if text.startswith("Only one of --run"):
            raise UserError(f"{' '.join(sys.argv[1:])}: {error}") from None
        if text.startswith("Exceeds the limit"):  # Python's own, of int()
            word = next((word for word in sys.argv[1:] if len(word) > 4300), "")
            raise UserError(f"{word[:40]}...: too long for a number; write a smaller one, or quote it twice") from None
        raise
    except AssertionError as error:
        if not str(error).startswith("Unexpected type for root"):  # OmegaConf's
            raise
        names = help.known_names()
        parents = {word: word.lstrip("+~").partition("=")[0].rpartition(".")[0] for word in sys.argv[1:]}
        own = [word for word, parent in parents.items() if parent in names and f"{parent}." not in " ".join(names)]
        raise UserError(
            f"{(own or sys.argv[1:])[0]}: there are no settings below that; give the knob one value"
        ) from None


def one_line(error: BaseException) -> str:
    """What went wrong, without Hydra's advice to use `+`."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    if isinstance(error, OverrideParseException):
        knob, _, value = error.override.partition("=")
        hint = f", and quote special characters twice: {shell.word(knob, value)}" if value else ""
        return f"{error.override}: not an override; write knob=value{hint}"
    both = f"{error}\n{cause}"
    file = re.match(r"In '(.+?)': ", both)
    place = f"{'='.join(file[1].rsplit('/', 1))}: " if file and "/" in file[1] else ""  # whose file it is: recipe=mine
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if error.options:
            return f"{place}{group}={option}: no such option; {nearest(option, list(error.options))}"
        return f"{place}{error.missing_cfg_file}: no such configuration; --help lists what there is"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    if file:
        lines[0] = lines[0].removeprefix(file[0])
    first = lines[1] if lines[0].endswith("raised while composing config:") and len(lines) > 1 else lines[0]
    ours = "UserError raised while resolving interpolation: "
    if first.startswith(ours):
        return f"{place}{first.removeprefix(ours)}"
    named = re.search(r"full_key: (\S+)", both)
    key = named[1] if named else ""
    if lost := re.search(r"Key '(\S+)' (?:is )?not in", first):
        kind = re.search(r"object_type=(\w+)", both)
        return f"{place}{unknown(key or lost[1], kind[1] if kind else '')}"
    for pattern, text in TRANSLATIONS:
        if match := re.match(pattern, first):
            return f"{place}{key}{text.format(*match.groups(), key=key)}"
    return f"{place}{key}: {first}" if key and key not in first else f"{place}{first}"


def unknown(key: str, kind: str = "") -> UserError:
    """The error for a knob that does not exist, or not in the variant that was chosen (a dataclass of the name `kind`)."""
    if key.startswith(f"{OPEN}."):
        return UserError(f"{key}: not there yet; add it by '++{OPEN}={{{key.removeprefix(f'{OPEN}.')}: ...}}'")
    group, _, leaf = key.partition(".")
    if group == "hydra":
        return UserError(f"{key}: Hydra, or the sampler that was chosen, has no such setting; leave it out")
    if group == "sweep":
        return UserError(
            f"{key}: no such knob; {nearest(key, [n for n in help.known_names() if n.startswith('sweep.')])}"
        )
    variants = VARIANTS.get(group, {})
    owners = [name for name, variant in variants.items() if name and leaf in help.knobs(variant)]
    if owners:
        *most, last = (f"{group}={name}" for name in owners)
        return UserError(
            f"{key}: only {', '.join(most)}{' and ' * bool(most)}{last} "
            f"{'has' if len(owners) == 1 else 'have'} this knob; choose that, or leave the knob out"
        )
    chosen = [variant for variant in variants.values() if variant.__name__ == kind] or list(variants.values())
    inside = sorted({f"{group}.{knob}" for variant in chosen for knob in help.knobs(variant)})
    return UserError(f"{key}: no such knob; {nearest(key, inside or help.known_names())}")


def check_renamed(words: Sequence[str]) -> None:
    """Raise UserError for a word that another one has replaced."""
    for word in words:
        if new := RENAMED.get(word.lstrip("+~").partition("=")[0]):
            raise UserError(f"{word}: sweeps have words of their own now; use {new}")


def no_option() -> str:
    """The line for a group that was set to null or a number on the command line, which Hydra reports without its name."""
    for word in sys.argv[1:]:
        group, _, option = word.lstrip("+~").partition("=")
        names = [name for of, name, _ in help.options() if of == group]
        if names and option not in names:
            return f"{word}: no such option; leave it out, or choose from: {', '.join(names)}"
    return f"{' '.join(sys.argv[1:])}: write knob=value, or group=option; --help lists them"
