"""What a search tries: the values of Hydra's syntax for sweeps as Optuna's distributions, and Optuna's values as overrides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from resnet import UserError
from resnet.config.sweep import Sampler, Sweep

NUMBERS_ONLY = (Sampler.cmaes, Sampler.qmc)  # which draw the values of a choice at random


def words(params: Mapping[str, Any]) -> list[str]:
    """A trial's parameters as overrides."""
    return [f"{name}={value}" for name, value in params.items()]


def check_space(space: Mapping[str, Override], settings: Sweep) -> None:
    """Raise UserError for values that cannot be searched, or not by the sampler."""
    for override in space.values():
        try:
            numbers = not hasattr(distribution(override), "choices")
        except ValueError as error:
            raise UserError(f"{override.input_line}: no values to search ({error})") from error
        if not numbers and settings.sampler in NUMBERS_ONLY:
            raise UserError(
                f"{override.input_line}: sweep.sampler={settings.sampler.value} searches numbers only; give an interval or a "
                "range, or use sweep.sampler=tpe"
            )
    if settings.sampler is Sampler.cmaes and len(space) == 1:
        raise UserError("sweep.sampler=cmaes: searches two knobs or more; use sweep.sampler=tpe or gp for one")


def distribution(override: Override) -> Any:
    """Optuna's distribution for values of Hydra's: interval(a,b), range(a,b,step), choice(a,b,c) or a,b,c; tag(log, ...)."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    match value:
        case IntervalSweep(start=low, end=high):
            log = "log" in value.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=log)
            return FloatDistribution(float(low or 0), float(high or 0), log=log)
        case RangeSweep(start=first, step=step, shuffle=False) if step > 0:
            *_, last = value.range()
            if isinstance(first, int) and isinstance(last, int) and isinstance(step, int):
                return IntDistribution(first, last, step=step)
            return FloatDistribution(float(first or 0), float(last), step=float(step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def edges(override: Override) -> list[str]:
    """Values that are checked before a search begins: both ends of numbers, every one of a choice."""
    kind = distribution(override)
    return [str(value) for value in getattr(kind, "choices", None) or (kind.low, kind.high)]
