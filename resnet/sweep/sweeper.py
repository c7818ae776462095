"""Hydra's sweeper of this suite: a grid or a search, whose jobs are processes of their own.

Hydra's own launchers run all jobs in one process, where TensorFlow's global state (policies, threads, memory) leaks from one
job into the next.

A sweep's folder holds a folder for each job, <out>/<number>; summary.md, a table of them; sweep.yaml, the command line, from
which `sweep.resume=<out>` resumes; and a search's study.journal.
"""

from __future__ import annotations

import itertools
import os
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from resnet import UserError, uris
from resnet.config import compose, errors
from resnet.config.cluster import Device
from resnet.config.run import Run
from resnet.config.sweep import Sweep, Where
from resnet.config.track import Mlflow
from resnet.launch import launchers
from resnet.sweep import local, slurm, space, study
from resnet.sweep.argv import RESUME
from resnet.sweep.execution import Execution, check_folder
from resnet.sweep.job import Job
from resnet.sweep.places import Places

MAX_JOBS = 10_000


class ProcessSweeper(Sweeper):
    """Composes and checks the jobs of a sweep; an Execution runs them."""

    config: DictConfig
    context: HydraContext
    settings: Sweep

    def __init__(self, params: dict[str, str] | None = None, **_settings: Any) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        self.context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs of a command line."""
        typed = [*(f"{name}={values}" for name, values in self.params.items()), *arguments]
        parsed = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(typed)
        self.overrides = {override.get_key_element(): override for override in parsed}  # the last of each counts
        config = self.config
        with errors.explain():
            self.settings = cast(Sweep, OmegaConf.to_object(config.sweep))
        self.space = {name: one for name, one in self.overrides.items() if one.is_sweep_override()}
        if several := [one.input_line for name, one in self.space.items() if name.startswith("sweep.")]:
            raise UserError(f"{several[0]}: is of the sweep, not of its jobs; give it one value")
        str(config.out)  # resolved once: every job takes the time in its name from here
        places = Places(self.settings)
        jobs = self.first_jobs() if self.settings.sampler else self.grid()
        dry_run = jobs[0].run.cluster.dry_run
        queue = slurm.Queue(self.settings.slurm, dry_run=dry_run) if self.settings.on is Where.slurm else None
        for job in jobs:
            places.check(job.run, job.name)
            if not self.settings.sampler:
                check_folder(job, queue)
        if self.settings.only is not None:
            single.append(jobs[0].run)
            return
        if queue is None:
            launchers.refuse_if_nested(jobs[0].run.cluster)
        if dry_run:
            text = queue.dry_run_text if queue else lambda job: launchers.dry_run_text(job.run, job.out)
            print("\n".join(map(text, jobs)))
            return
        if queue is None and any(job.run.cluster.device is not Device.hpu for job in jobs):
            local.start_server(tracks=any(isinstance(job.run.track, Mlflow) for job in jobs))
        trial = lambda words, number: self.compose([*self.fixed(), *words], number)  # noqa: E731
        Execution(self.settings, self.space, jobs, trial, places, queue).run()

    # ------------------------------------------------------------------------------------------------- which jobs there are
    def grid(self) -> list[Job]:
        """A job for every combination. Raises UserError for more than anybody waits for, or values that only a search has."""
        lists, count = [], 1
        for name, override in self.overrides.items():
            if not override.is_sweep_override():
                lists.append([f"{name}={override.get_value_element_as_str()}"])
                continue
            if not override.is_discrete_sweep():
                raise UserError(
                    f"{override.input_line}: an interval has no end of values; add sweep.sampler=tpe, or list values"
                )
            values = list(itertools.islice(override.sweep_string_iterator(), MAX_JOBS + 1))
            count *= len(values)
            if count > MAX_JOBS:
                raise UserError(f"{override.input_line}: more than {MAX_JOBS:,} jobs in one sweep; give fewer values")
            lists.append([f"{name}={value}" for value in values])
        rows, only = list(itertools.product(*lists)), self.settings.only
        if only is None:
            return [self.compose(list(words), number) for number, words in enumerate(rows)]
        if only >= len(rows):
            raise UserError(f"sweep.only={only}: the sweep has {len(rows)} jobs, from 0 to {len(rows) - 1}")
        if "out" not in self.overrides:
            raise UserError(f"sweep.only={only}: give out=, the folder that all jobs of the sweep share")
        return [self.compose(list(rows[only]), only)]

    def first_jobs(self) -> list[Job]:
        """Jobs with every choice of each knob of a search, and its numbers' ends, to be checked before the search begins."""
        study.check_installed(self.settings)
        if not self.space:
            raise UserError(
                "sweep.sampler: there is nothing to search; give a knob several values, as in 'optim.lr=interval(0.01,0.1)'"
            )
        space.check_space(self.space, self.settings)
        values = {name: [f"{name}={value}" for value in space.edges(one)] for name, one in self.space.items()}
        first = {name: words[0] for name, words in values.items()}
        tried = [first, *({**first, name: word} for name, words in values.items() for word in words[1:])]
        jobs = [self.compose([*self.fixed(), *words.values()], 0) for words in tried]
        study.check_run(jobs[0].run, self.settings)
        return jobs

    def fixed(self) -> list[str]:
        """The overrides that all jobs of a search share."""
        names = self.overrides.keys() - self.space.keys()
        return [f"{name}={self.overrides[name].get_value_element_as_str()}" for name in self.overrides if name in names]

    def compose(self, overrides: list[str], number: int) -> Job:
        """The checked run of one job. Raises UserError naming the job."""
        varying = [word for word in overrides if word.partition("=")[0] in self.space] or overrides
        try:
            with errors.explain():
                config = self.context.config_loader.load_sweep_config(self.config, overrides)
                with open_dict(config):
                    config.hydra.job.id, config.hydra.job.num = str(number), number
                HydraConfig.instance().set_config(config)
                run = freeze(config)
        except UserError as error:
            raise UserError(f"job {number} ({' '.join(varying)}): {error}") from error
        if run.resume:
            raise UserError(f"resume={run.resume}: resumes one run; leave it out of a sweep; {RESUME}= resumes a sweep")
        run.out = f"{run.out}/{number}"
        if isinstance(run.track, Mlflow):
            run.track.run_name = f"{run.track.run_name} [{' '.join(varying)}]"
        return Job(number, run, varying)


single: list[Run] = []  # the job of sweep.only=, which the command then trains as a run without a sweep


def freeze(config: DictConfig) -> Run:
    """compose.freeze(); the store counts as named by the user, who typed it or wrote the option file."""
    run = compose.freeze(config)
    if isinstance(run.track, Mlflow):
        os.environ.setdefault(uris.STORE, run.track.uri)
    return run
