"""What a sweep cannot have, refused before its first job; a search by Optuna goes by top-1, and its study is in memory."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from resnet import UserError
from resnet.config.checks import check

KNOB = "hydra.sweeper."
MAX_JOBS = 10_000


def check_count(overrides: Sequence[Override]) -> None:
    """Raise UserError for more jobs than anybody waits for: Hydra would make a list of all of them first."""
    count = 1
    for override in overrides:
        if override.is_sweep_override():
            count *= sum(1 for _value in itertools.islice(override.sweep_iterator(), MAX_JOBS + 1))
        if count > MAX_JOBS:
            raise UserError(f"{override.input_line}: more than {MAX_JOBS:,} jobs in one sweep; give fewer values")


def check_settings(settings: DictConfig, overrides: Sequence[Override]) -> None:
    """Raise UserError for settings of Optuna's sweeper, or a search space, that would end in a traceback or a wrong search."""
    if settings.get("storage"):  # its value may have a password in it
        raise UserError(
            f"{KNOB}storage: a study is kept in memory only, and sweep.resume= rebuilds it from the results; leave it out"
        )
    if settings.get("search_space"):
        raise UserError(f"{KNOB}search_space: an older name; use {KNOB}params, or name the knobs on the command line")
    direction: Any = getattr(settings.direction, "name", settings.direction)
    check(
        direction == "maximize", f"{KNOB}direction", direction, f"the objective is top-1; use {KNOB}direction=maximize"
    )
    for name in ("n_trials", "n_jobs"):
        check(settings[name] > 0, KNOB + name, settings[name], "must be above 0")
    words = [f"{knob}={values}" for knob, values in (settings.get("params") or {}).items()]
    plugin = importlib.import_module("hydra_plugins.hydra_optuna_sweeper._impl")
    for override in (*OverridesParser.create().parse_overrides(words), *overrides):
        try:
            plugin.create_optuna_distribution_from_override(override)
        except (ValueError, AssertionError, NotImplementedError) as error:
            raise UserError(f"{override.input_line}: no values to search ({error})") from error
