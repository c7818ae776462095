"""A search: Optuna chooses each job by the results of those before, and prunes jobs by their evaluations.

The study is a journal file, by default <out>/study.journal: a search that was killed goes on from it, and several sweeps may
share one. Each trial has the number of its job, and the id of its sweep, in its user attributes.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import importlib.util
import logging
import math
import uuid
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from hydra.core.override_parser.types import Override

from resnet import UserError, cli, files, shell
from resnet.config.checks import check
from resnet.config.run import Run
from resnet.config.sweep import Pruner, Sampler, Sweep
from resnet.sweep.journal import Journal
from resnet.sweep.space import distribution, words

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

Direction = Literal["minimize", "maximize"]
FILE, ID = "study.journal", "study.id"  # in a sweep's folder: the study, and the name of the sweep in it
MOST = 10_000  # jobs
INSTALL = "pip install -e '.[optuna]'"
NEEDS = {
    Sampler.cmaes: ("cmaes", INSTALL),
    Sampler.gp: ("torch", "pip install torch --index-url https://download.pytorch.org/whl/cpu"),
}
ASK_TIME = timedelta(minutes=1)  # within which a process that lives says whose a trial is
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


def check_run(run: Run, settings: Sweep) -> None:
    """Raise UserError for jobs without the results that a search goes by."""
    if run.lr_find or not run.eval:
        knob = "lr_find=true" if run.lr_find else "eval=false"
        raise UserError(f"{knob}: a search goes by the top-1 of its jobs, and there would be none; leave it out")
    first = run.eval_offset_epochs or run.eval_every_epochs
    check(
        not settings.pruner or first < run.epochs,
        "sweep.pruner",
        settings.pruner and settings.pruner.value,
        "jobs are evaluated only at their end, when nothing is left to prune; use an eval_every_epochs below "
        f"epochs={run.epochs:g}",
    )


class Study:
    """Optuna's study of one sweep."""

    def __init__(self, settings: Sweep, space: Mapping[str, Override], seed: int, out: Path) -> None:
        """Raises UserError for a journal that cannot be used, or that holds another search."""
        import optuna

        optuna.logging.set_verbosity(logging.ERROR)  # it reports each trial; so do we
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.states, self.settings = optuna.trial.TrialState, settings
        self.space = {name: distribution(override) for name, override in space.items()}
        self.directions = [direction(goal) for goal in settings.goals]
        path = Path(settings.study) if settings.study else out / FILE
        if not (out / ID).exists():
            files.write_text(out / ID, f"{uuid.uuid4().hex}\n")
        self.id = files.read_bytes(out / ID).decode(errors="replace").strip()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.study = self.open(path)
            trials = self.study.get_trials(deepcopy=False)
            self.check(trials)
            others = int(hashlib.sha256(self.id.encode()).hexdigest()[:6], 16) if settings.study else 0
            # A search that goes on, and another one of the same study, draw other numbers.
            self.study.sampler = sampler(settings, (seed + len(trials) + others) % 2**31)
        except UserError:
            raise
        except Exception as error:  # of Optuna's, for a file that somebody else has written
            reason = " ".join(f"{error or type(error).__name__}".split())
            raise UserError(f"sweep.study={path}: cannot be used ({reason}); give another file") from error
        self.trials = {t.user_attrs["job"]: optuna.Trial(self.study, t._trial_id) for t in self.mine()}
        self.reported = {t.user_attrs["job"]: set(t.intermediate_values) for t in self.mine()}
        self.evaluations: dict[int, list[int]] = {}  # job: the steps of its evaluations, rising
        self.exhausted = False

    def open(self, path: Path) -> Any:
        import optuna

        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(cast(Any, Journal(path))),
            study_name="sweep",
            load_if_exists=True,
            directions=self.directions,
            pruner=pruner(self.settings),
        )
        goals = study.user_attrs.get("goals", self.settings.goals)
        if goals != self.settings.goals or [one.name.lower() for one in study.directions] != self.directions:
            raise ValueError(f"its goals are {shell.override('sweep.goals', goals)}")
        study.set_user_attr("goals", self.settings.goals)
        return study

    def check(self, trials: Sequence[FrozenTrial]) -> None:
        """Raise ValueError for trials that this search cannot go on from: what a job takes from one are values of its space."""
        from optuna.distributions import check_distribution_compatibility
        from optuna.trial import create_trial

        for trial in trials:
            for name in trial.distributions.keys() & self.space.keys():
                check_distribution_compatibility(trial.distributions[name], self.space[name])
            if trial.user_attrs.get("sweep") == self.id and "job" in trial.user_attrs:
                job = trial.user_attrs["job"]
                if type(job) is not int or not 0 <= job < MOST:
                    raise ValueError(f"{job} is no number of a job")
                create_trial(state=self.states.RUNNING, params=trial.params, distributions=self.space)

    def mine(self) -> list[FrozenTrial]:
        """The trials of this sweep."""
        trials = self.study.get_trials(deepcopy=False)
        return [t for t in trials if t.user_attrs.get("sweep") == self.id and "job" in t.user_attrs]

    def jobs(self) -> list[tuple[int, list[str], int | None]]:
        """Number, overrides and exit status of the jobs so far; those without a status were running when a search was killed."""
        codes = {self.states.COMPLETE: cli.DONE, self.states.PRUNED: cli.PRUNED, self.states.FAIL: cli.FAILED}
        return [(t.user_attrs["job"], words(t.params), codes.get(t.state)) for t in self.mine()]

    def ask(self) -> tuple[int, list[str]] | None:
        """Number and overrides of the next job; None after the last one, or once the space seems to have no other values.

        A sampler that repeats itself, or what another process is trying, is asked again, then drawn at random.
        """
        from optuna.samplers import RandomSampler

        if self.exhausted or len(self.trials) >= self.settings.trials:
            return None
        own = self.study.sampler
        try:
            for attempt in range(2 * REPEATS):
                if attempt == REPEATS:
                    self.study.sampler = RandomSampler(seed=len(self.study.trials))
                trial = self.study.ask(self.space)
                if not self.repeats(trial):
                    number = max(self.trials, default=-1) + 1
                    trial.set_user_attr("sweep", self.id)
                    trial.set_user_attr("job", number)
                    self.trials[number], self.reported[number] = trial, set()
                    return number, words(trial.params)
                self.study.tell(trial, state=self.states.FAIL)
        finally:
            self.study.sampler = own
        self.exhausted = True
        return None

    def repeats(self, trial: Trial) -> bool:
        """Whether the trial is as another one; those that were dropped for this, or by a kill, do not count."""
        for other in self.study.get_trials(deepcopy=False):
            recent = other.state == self.states.RUNNING and datetime.now() - other.datetime_start < ASK_TIME
            dropped = "job" not in other.user_attrs and not (recent or other.state == self.states.COMPLETE)
            if other.number != trial.number and not dropped and other.params == trial.params:
                return True
        return False

    def prune(self, job: int, rows: Sequence[tuple[int, Mapping[str, float]]]) -> bool:
        """Report the evaluations in new rows (step, metrics) of a job, by their numbers from 1 on; whether it is to be pruned."""
        trial, pruned, steps = self.trials[job], False, self.evaluations.setdefault(job, [])
        for step, values in rows:
            scores = [values[name] for name in ("eval/top1", "ema/top1") if name in values]
            if not scores or not self.settings.pruner:
                continue
            if step not in steps:  # a run that resumes logs some again
                bisect.insort(steps, step)
            number = steps.index(step) + 1
            if number not in self.reported[job]:
                self.reported[job].add(number)
                trial.report(max(scores), number)
                pruned = trial.should_prune() or pruned
        return pruned

    def importances(self) -> dict[str, float]:
        """Share of the variance of the first goal by knob (optuna.importance); empty where it cannot be known yet."""
        import optuna

        with contextlib.suppress(ValueError, RuntimeError):
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            goal = None if len(self.directions) == 1 else lambda trial: float(trial.values[0])
            return dict(optuna.importance.get_param_importances(self.study, evaluator=evaluator, target=goal))
        return {}

    def tell(self, job: int, content: Mapping[str, Any], *, pruned: bool) -> None:
        """How a job ended: the content of its result.json, if there is one. A failed job counts as the worst so far, too."""
        trial = self.trials[job]
        values = [content.get(goal.removeprefix("-")) for goal in self.settings.goals]
        if all(value is not None and math.isfinite(value) for value in values):
            self.study.tell(trial, values, skip_if_finished=True)
            return
        self.study.tell(trial, state=self.states.PRUNED if pruned else self.states.FAIL, skip_if_finished=True)
        if not pruned and (worst := self.worst()):
            self.study.add_trial(self.stand_in(trial, worst, job))

    def worst(self) -> list[float]:
        """The worst value of each goal so far; nothing if there is none yet."""
        complete = [trial.values for trial in self.study.get_trials(deepcopy=False, states=[self.states.COMPLETE])]
        if not complete:
            return [0.0] if self.settings.goals == ["final/top1"] else []
        columns = zip(self.directions, zip(*complete, strict=True), strict=True)
        return [max(column) if way == "minimize" else min(column) for way, column in columns]

    def stand_in(self, trial: Trial, values: Sequence[float], job: int) -> FrozenTrial:
        """What samplers learn from a failed trial, which they ignore."""
        from optuna.trial import create_trial

        return create_trial(
            params=trial.params, distributions=self.space, values=values, user_attrs={WORST: job, "sweep": self.id}
        )


def direction(goal: str) -> Direction:
    return "minimize" if goal.startswith("-") else "maximize"


def sampler(settings: Sweep, seed: int) -> Any:
    """TPE and GP take the jobs that run at the same time into account; the points of the others are distinct anyway."""
    from optuna import samplers

    startup: dict[str, Any] = {} if settings.startup is None else {"n_startup_trials": settings.startup}
    match settings.sampler:
        case Sampler.tpe:
            return samplers.TPESampler(seed=seed, multivariate=True, **startup)
        case Sampler.gp:
            return samplers.GPSampler(seed=seed, **startup)
        case Sampler.cmaes:
            return samplers.CmaEsSampler(seed=seed, **startup)
        case Sampler.nsga2:  # whose first generation is at random; Optuna's 50 would be all of a search of 20
            population = settings.startup or min(50, max(4, settings.trials // 4))
            return samplers.NSGAIISampler(seed=seed, population_size=max(2, population))
        case Sampler.qmc:
            return samplers.QMCSampler(seed=seed, scramble=True)
    return samplers.RandomSampler(seed=seed)


def pruner(settings: Sweep) -> Any:
    """By the numbers of the evaluations, from 1 on; what is below `prune_from` decides nothing."""
    from optuna import pruners

    factor = {} if settings.reduction_factor is None else {"reduction_factor": settings.reduction_factor}
    match settings.pruner:
        case Pruner.median:
            startup: dict[str, Any] = {} if settings.startup is None else {"n_startup_trials": settings.startup}
            return pruners.MedianPruner(n_warmup_steps=settings.prune_from, **startup)
        case Pruner.halving:
            return pruners.SuccessiveHalvingPruner(min_resource=settings.prune_from, **factor)
        case Pruner.hyperband:
            return pruners.HyperbandPruner(min_resource=settings.prune_from, **factor)
    return pruners.NopPruner()
