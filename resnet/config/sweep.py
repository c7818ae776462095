"""How a sweep runs its jobs, and how a search chooses them: `sweep.*`. A run does not keep them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from enum import Enum

from resnet import UserError
from resnet.config.checks import Settings, check
from resnet.config.run import Run

# Options of sbatch that are the sweep's own, or have sbatch do something else than submit one job.
RESERVED = (
    *("--array", "--dependency", "--error", "--job-name", "--nodes", "--no-requeue", "--ntasks", "--open-mode"),
    *("--clusters", "--output", "--test-only", "--wait", "--wrap"),
)
TOP1 = ("final/top1", "best/top1", "eval/top1")
# What every run's result has. A goal is one of these, to be maximized, or to be minimized with - before it.
METRICS = (*TOP1, "eval/top5", "eval/loss", "final/images_per_s", "final/minutes", "final/training_minutes")


class Where(Enum):
    """Where jobs run."""

    here = "here"
    slurm = "slurm"


class Sampler(Enum):
    """How a search chooses the next job (optuna.samplers)."""

    tpe = "tpe"
    gp = "gp"
    cmaes = "cmaes"
    nsga2 = "nsga2"
    qmc = "qmc"
    random = "random"


class Pruner(Enum):
    """By what a search ends a job early (optuna.pruners)."""

    median = "median"
    halving = "halving"  # successive halving, asynchronous: arXiv:1810.05934
    hyperband = "hyperband"


@dataclass
class Slurm(Settings):
    """What sbatch is asked for, for each job; null: what the cluster gives."""

    GROUP = "sweep.slurm."
    partition: str | None = None
    time_min: int | None = None  # minutes until Slurm ends a job; it is queued again, and goes on from its checkpoint
    nodes: int = 1  # that the ranks of a job are spread over
    gpus: int | None = None  # on each node; null: one for each rank that is there, if cluster.device is gpu
    cpus: int | None = None  # for each rank
    mem_gb: float | None = None  # on each node
    array_limit: int | None = None  # so many jobs at a time; null: as many as Slurm starts
    extra: str = ""  # more options of sbatch: "--account=x --qos=low", with quotes

    def __post_init__(self) -> None:
        self.check_above(0, "time_min", "nodes", "gpus", "cpus", "mem_gb", "array_limit")
        try:
            names = [word.partition("=")[0] for word in shlex.split(self.extra)]
        except ValueError as error:
            raise UserError(f"{self.GROUP}extra={self.extra}: {error}") from error
        self.check("extra", all(re.match("--[a-z]", name) for name in names), "must be options such as --account=x")
        reserved = [
            name for name in names if any(one.startswith(name) for one in RESERVED)
        ]  # sbatch takes abbreviations
        self.check("extra", not reserved, f"{', '.join(reserved)} cannot be here; leave it out")


@dataclass
class Sweep(Settings):
    GROUP = "sweep."
    jobs: str = "1"  # at a time on this machine; auto: as many as it has cards, or cores / cores_each
    cores_each: int | None = None  # of a rank on the CPU; null: the cores divided by the jobs, or 1 with auto
    on: Where = Where.here
    slurm: Slurm = field(default_factory=Slurm)
    only: int | None = None  # train this job alone, by its number in the grid: for a job array that is the sweep
    sampler: Sampler | None = None  # null: a job for every combination
    trials: int = 20  # jobs of a search, those that failed or were pruned included
    startup: int | None = None  # of them at random, before the sampler or the pruner decides; null: Optuna's own number
    pruner: Pruner | None = None  # ends jobs early by the top-1 of their evaluations
    prune_from: int = 1  # the first evaluation of a job after which it may be pruned
    reduction_factor: int | None = None  # of halving, hyperband: one in so many goes on; null: Optuna's 4, 3
    goals: list[str] = field(default_factory=lambda: ["final/top1"])  # the first counts for what is called the best job
    # Optuna's journal, which several sweeps may share; null: study.journal in the sweep's folder
    study: str | None = None

    def __post_init__(self) -> None:
        self.check(
            "jobs",
            self.jobs == "auto" or (self.jobs.isdecimal() and int(self.jobs) > 0),
            "must be auto, or a number above 0",
        )
        self.check_above(0, "cores_each", "trials")
        self.check_at_least(0, "startup", "only")
        here, search = self.on is Where.here, self.sampler is not None
        self.check("only", self.only is None or not search, "a search has no list of jobs; leave it out")
        self.check("only", self.only is None or here, "trains in this process; leave it out, or use sweep.on=here")
        self.check(
            "jobs", self.jobs == "1" or self.only is None, "sweep.only= trains one job; leave one of the two out"
        )
        self.check("jobs", self.jobs == "1" or here or search, "is of this machine; use sweep.slurm.array_limit=")
        self.check("cores_each", self.cores_each is None or here, "is of this machine; use sweep.slurm.cpus=")
        for knob, value in vars(self.slurm).items():
            check(not here or value == getattr(Slurm(), knob), f"sweep.slurm.{knob}", value, "needs sweep.on=slurm")
        self.check_at_most(10_000, "trials", "startup")
        self.check_goals()
        for knob in ("pruner", "study", "startup"):
            alone = getattr(self, knob) is not None and self.sampler is None
            value = getattr(self, knob)
            shown = value.value if isinstance(value, Enum) else value
            check(not alone, f"sweep.{knob}", shown, "belongs to a search; add sweep.sampler=tpe")
        random = self.sampler in (Sampler.qmc, Sampler.random) and self.pruner is not Pruner.median
        way_out = f"sweep.sampler={self.sampler and self.sampler.value} has no start at random; use sweep.startup=null"
        self.check("startup", self.startup is None or not random, way_out)
        self.check_above(0, "prune_from")
        self.check("prune_from", self.prune_from == 1 or self.pruner is not None, "add sweep.pruner=halving")
        self.check_at_least(2, "reduction_factor")
        halves = self.reduction_factor is None or self.pruner in (Pruner.halving, Pruner.hyperband)
        self.check("reduction_factor", halves, "is of sweep.pruner=halving and hyperband")

    def check_goals(self) -> None:
        names = [goal.removeprefix("-") for goal in self.goals]
        known = bool(names) and set(names) <= set(METRICS) and len(names) == len(set(names))
        shown = f"[{','.join(self.goals)}]"
        check(known, "sweep.goals", shown, f"must be some of {', '.join(METRICS)}, with - before one to be minimized")
        alone = self.sampler is not Sampler.cmaes or len(self.goals) == 1
        check(alone, "sweep.goals", shown, "sweep.sampler=cmaes has one goal; use tpe or nsga2")
        by_top1 = self.pruner is None or (len(self.goals) == 1 and self.goals[0] in TOP1)
        check(by_top1, "sweep.goals", shown, "sweep.pruner goes by top-1; leave out one of the two")


@dataclass
class Command(Run):
    """What a command line describes: a run, and how a sweep of such runs goes."""

    sweep: Sweep = field(default_factory=Sweep)
