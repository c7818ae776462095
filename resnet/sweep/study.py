"""A search: Optuna chooses each job by the results of those before, and prunes jobs by their evaluations.

The study is a journal file, by default <out>/study.journal: a search that was killed goes on from it, and several sweeps may
share one. Each trial has the number of its job, and the folder of its sweep, in its user attributes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from resnet import UserError, cli
from resnet.config.checks import check
from resnet.config.sweep import Pruner, Sampler, Sweep

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Direction = Literal["minimize", "maximize"]
FILE = "study.journal"
INSTALL = "pip install -e '.[optuna]'"
NEEDS = {
    Sampler.cmaes: ("cmaes", INSTALL),
    Sampler.gp: ("torch", "pip install torch --index-url https://download.pytorch.org/whl/cpu"),
}
REPEATS = 20  # how often a sampler that repeats itself is asked again
WORST = "stands for a failed job"  # user attribute of a trial


def check_installed(settings: Sweep) -> None:
    """Raise UserError for a package that is missing."""
    needed = [("optuna", INSTALL), *([NEEDS[settings.sampler]] if settings.sampler in NEEDS else [])]
    for package, way_out in needed:
        installed = importlib.util.find_spec(package) is not None
        check(
            installed,
            "sweep.sampler",
            settings.sampler and settings.sampler.value,
            f"needs {package}, which is not installed; {way_out}",
        )


class Study:
    """Optuna's study of one sweep."""

    def __init__(self, settings: Sweep, space: Mapping[str, Override], seed: int, out: Path) -> None:
        """Raises UserError for a space that cannot be searched, or a journal that cannot be used."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(logging.WARNING)  # it reports each trial; so do we
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.states, self.settings, self.out = optuna.trial.TrialState, settings, out
        self.space = {name: distribution(override) for name, override in space.items()}
        self.goals = [goal.removeprefix("-") for goal in settings.goals]
        self.directions: list[Direction] = [
            "minimize" if goal.startswith("-") else "maximize" for goal in settings.goals
        ]
        path = Path(settings.study) if settings.study else out / FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path))),
                study_name="sweep",
                load_if_exists=True,
                directions=self.directions,
                pruner=pruner(settings),
            )
            self.study.sampler = sampler(
                settings, seed + len(self.study.trials)
            )  # a search that goes on draws other numbers
        except (OSError, ValueError, KeyError, optuna.exceptions.OptunaError) as error:
            raise UserError(f"sweep.study={path}: cannot be used ({error}); give another file, or remove it") from error
        self.evaluations: dict[int, int] = {}  # job: how many were reported
        self.trials = {trial.user_attrs["job"]: optuna.Trial(self.study, trial._trial_id) for trial in self.mine()}

    def mine(self) -> list[FrozenTrial]:
        """The trials of this sweep."""
        trials = self.study.get_trials(deepcopy=False)
        return [
            trial for trial in trials if trial.user_attrs.get("sweep") == str(self.out) and "job" in trial.user_attrs
        ]

    def jobs(self) -> list[tuple[int, list[str], int | None]]:
        """Number, overrides and exit status of the jobs so far; those without a status were running when a search was killed."""
        codes = {self.states.COMPLETE: cli.DONE, self.states.PRUNED: cli.PRUNED, self.states.FAIL: cli.FAILED}
        return [(t.user_attrs["job"], words(t.params), codes.get(t.state)) for t in self.mine()]

    def ask(self) -> tuple[int, list[str]] | None:
        """Number and overrides of the next job; None after the last one, or once the space has no other values."""
        if len(self.trials) >= self.settings.trials:
            return None
        for _ in range(REPEATS):
            trial = self.study.ask(self.space)
            others = (other for other in self.study.get_trials(deepcopy=False) if other.number != trial.number)
            if all(trial.params != other.params for other in others):
                number = len(self.trials)
                trial.set_user_attr("job", number)
                trial.set_user_attr("sweep", str(self.out))
                self.trials[number] = trial
                return number, words(trial.params)
            self.study.tell(trial, state=self.states.FAIL)
        return None

    def prune(self, job: int, rows: Sequence[Mapping[str, float]]) -> bool:
        """Report the evaluations in new rows of a job's metrics, by their numbers from 1 on; whether it is to be pruned."""
        trial, pruned = self.trials[job], False
        for values in rows if self.settings.pruner else ():
            if scores := [values[name] for name in ("eval/top1", "ema/top1") if name in values]:
                self.evaluations[job] = number = self.evaluations.get(job, 0) + 1
                trial.report(max(scores), number)  # a number that it has already is left as it is
                pruned = trial.should_prune() or pruned
        return pruned

    def importances(self) -> dict[str, float]:
        """Share of the variance of the first goal by knob (optuna.importance); empty where it cannot be known yet."""
        import optuna

        with contextlib.suppress(ValueError, RuntimeError):
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            goal = None if len(self.goals) == 1 else lambda trial: float(trial.values[0])
            return dict(optuna.importance.get_param_importances(self.study, evaluator=evaluator, target=goal))
        return {}

    def tell(self, job: int, content: Mapping[str, Any] | None, *, pruned: bool) -> None:
        """How a job ended: the content of its result.json, or None. A failed one counts as the worst too."""
        trial = self.trials[job]
        values = [float(value) for goal in self.goals if (value := (content or {}).get(goal)) is not None]
        if len(values) == len(self.goals):
            self.study.tell(trial, values, skip_if_finished=True)
            return
        self.study.tell(trial, state=self.states.PRUNED if pruned else self.states.FAIL, skip_if_finished=True)
        from optuna.trial import create_trial

        complete = [other.values for other in self.study.get_trials(deepcopy=False, states=[self.states.COMPLETE])]
        if not pruned and (complete or self.goals == ["final/top1"]):
            worst = (
                [
                    (max if direction == "minimize" else min)(column)
                    for direction, column in zip(self.directions, zip(*complete, strict=True), strict=True)
                ]
                if complete
                else [0.0]
            )
            params = {name: trial.params[name] for name in self.space}
            self.study.add_trial(
                create_trial(params=params, distributions=self.space, values=worst, user_attrs={WORST: job})
            )


def words(params: Mapping[str, Any]) -> list[str]:
    """A trial's parameters as overrides."""
    return [f"{name}={value}" for name, value in params.items()]


def check_space(space: Mapping[str, Override]) -> None:
    """Raise UserError for values that cannot be searched."""
    for override in space.values():
        try:
            distribution(override)
        except ValueError as error:
            raise UserError(f"{override.input_line}: no values to search ({error})") from error


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


def first_value(override: Override) -> Any:
    """A value of the knob's space."""
    value = override.value()
    return value.start if isinstance(value, IntervalSweep) else next(iter(override.sweep_string_iterator()))


def sampler(settings: Sweep, seed: int) -> Any:
    """Jobs that run at the same time are taken into account by TPE; QMC's points are distinct anyway."""
    from optuna import samplers

    startup: dict[str, Any] = {} if settings.startup is None else {"n_startup_trials": settings.startup}
    match settings.sampler:
        case Sampler.tpe:
            return samplers.TPESampler(seed=seed, multivariate=True, **startup)
        case Sampler.gp:
            return samplers.GPSampler(seed=seed, **startup)
        case Sampler.cmaes:
            return samplers.CmaEsSampler(seed=seed, **startup)
        case Sampler.nsga2:
            return samplers.NSGAIISampler(seed=seed)
        case Sampler.qmc:
            return samplers.QMCSampler(seed=seed, scramble=True)
    return samplers.RandomSampler(seed=seed)


def pruner(settings: Sweep) -> Any:
    from optuna import pruners

    match settings.pruner:
        case Pruner.median:
            return pruners.MedianPruner(**({} if settings.startup is None else {"n_startup_trials": settings.startup}))
        case Pruner.halving:
            return pruners.SuccessiveHalvingPruner()
        case Pruner.hyperband:
            return pruners.HyperbandPruner()
    return pruners.NopPruner()
