"""Hydra composes a command's configuration to look at its hydra.mode, throws it away, and composes it again to run it.

Here the second asking is answered with what the first made, and a refusal comes a third sooner.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

Load = Callable[..., DictConfig]


def install() -> None:
    """Change Hydra's loader. Doing it twice is harmless."""
    if not hasattr(ConfigLoaderImpl.load_configuration, "__wrapped__"):
        ConfigLoaderImpl.load_configuration = once(ConfigLoaderImpl.load_configuration)  # type: ignore[method-assign]


def once(load: Load) -> Load:
    """A `load_configuration` that does the work of `load` once for both."""
    looked: dict[Any, DictConfig | Exception] = {}

    @functools.wraps(load)
    def load_configuration(
        self: ConfigLoaderImpl,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        words, last = (config_name, *overrides), (overrides or [""])[-1]
        if not validate_sweep_overrides:  # as Hydra.get_mode alone has it
            made = attempt(lambda: load(self, config_name, overrides, run_mode, from_shell, False))
            looked[id(self), words] = made
            return handed(made)
        added = last == f"hydra.mode={run_mode.name}"  # by Hydra, where the configuration said nothing
        found = looked.pop((id(self), words), None)
        if found is None and added:
            found = looked.pop((id(self), words[:-1]), None)
            if isinstance(found, DictConfig):
                found.hydra.mode = run_mode
                found.hydra.overrides.hydra.append(last)
        if found is None or (isinstance(found, DictConfig) and left_open(found)):
            return load(self, config_name, overrides, run_mode, from_shell)
        self.validate_sweep_overrides_legal(OverridesParser.create().parse_overrides(overrides), run_mode, from_shell)
        return handed(found)

    return load_configuration


def left_open(config: DictConfig) -> bool:
    """Whether an option was not chosen: refused for a run, and not for a look at the mode."""
    choices = config.hydra.runtime.choices
    return any(OmegaConf.is_missing(choices, group) for group in choices)


def attempt(work: Callable[[], DictConfig]) -> DictConfig | Exception:
    """What came of it."""
    try:
        return work()
    except Exception as error:
        return error


def handed(came: DictConfig | Exception) -> DictConfig:
    """The same, raised if it is to be raised."""
    if isinstance(came, Exception):
        raise came
    return came
