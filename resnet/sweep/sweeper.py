"""Hydra's sweeper of this suite: a grid or a search, whose jobs are processes of their own.

Hydra's own launchers run all jobs in one process, where TensorFlow's global state (policies, threads, memory) leaks from one
job into the next.

A sweep's folder holds a folder for each job, <out>/<number>; summary.md, a table of them; sweep.yaml, the command line, from
which `sweep.resume=<out>` resumes; and a search's study.journal.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from resnet import UserError, cli, files, rundir, shell, uris
from resnet.config import compose, errors, fingerprint
from resnet.config.run import Run
from resnet.config.sweep import Sweep, Where
from resnet.config.track import Mlflow, Track
from resnet.launch import launchers, supervisor
from resnet.launch.forked import LOST
from resnet.launch.supervisor import ignoring_mlflow_errors
from resnet.rundir import lock, result
from resnet.sweep import live, local, pictures, slurm, space, study
from resnet.sweep.argv import BEST, RESUME, save_argv, save_best
from resnet.sweep.job import Job, best, table
from resnet.sweep.places import Place, Places
from resnet.sweep.pool import Pool, Process
from resnet.track import provenance, store, sync

MAX_JOBS = 10_000


class ProcessSweeper(Sweeper):
    """A sweep: composes and checks its jobs, runs them, and leaves a table and MLflow's parent run."""

    config: DictConfig
    context: HydraContext
    settings: Sweep
    track: Track
    out: Path

    def __init__(self, params: dict[str, str] | None = None, **_settings: Any) -> None:
        self.params = params or {}
        self.jobs: list[Job] = []  # in the order of their starts
        self.failed: list[str] = []  # a line for each job that did not end well
        self.parent: str | None = None  # MLflow's id of the sweep
        self.stack = ExitStack()  # the lock of the folder
        self.display: live.Display | None = None
        self.queue: slurm.Queue | None = None
        self.study: study.Study | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        self.context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs of a command line; one that fails does not stop the others. `close` reports at the end."""
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
        if self.settings.on is Where.slurm:
            self.queue = slurm.Queue(self.settings.slurm, dry_run=jobs[0].run.cluster.dry_run)
        for job in jobs:
            places.check(job.run, job.name)
            if not self.settings.sampler:
                self.check_folder(job)
        if self.settings.only is not None:
            single.append(jobs[0].run)
            return
        if self.queue is None:
            launchers.refuse_if_nested(jobs[0].run.cluster)
        if jobs[0].run.cluster.dry_run:
            text = self.queue.dry_run_text if self.queue else lambda job: launchers.dry_run_text(job.run, job.out)
            print("\n".join(map(text, jobs)))
            return
        self.places = places
        self.open(jobs[0], len(jobs))
        Pool(places, self).run(jobs if self.study is None else self.unfinished())

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

    def check_folder(self, job: Job) -> None:
        """Raise UserError for a job whose folder is another run's, or in which it still trains, though its sweep was killed."""
        rundir.check_folder(job.run, job.out)
        if self.queue:
            self.queue.check(job)
        if (job.out / lock.FILE).exists() and not (self.queue and self.queue.find(job)):
            with lock.hold(job.out):  # the job of a sweep that was killed may still be training
                pass

    # ------------------------------------------------------------------------------------------------------------- its folder
    def open(self, job: Job, count: int) -> None:
        """Claim the sweep's folder, and make the MLflow run that the jobs nest under, whose parameters are what varies."""
        self.out, self.track = job.out.parent, job.run.track
        self.stack.enter_context(lock.hold(self.out))
        with files.writing_to(self.out):
            save_argv(self.out)
        if self.settings.sampler:
            self.study = study.Study(self.settings, self.space, job.run.seed, self.out)
        open_sweeps.append(self)
        params = {name: str(override.input_line).partition("=")[2] for name, override in self.space.items()}
        tags = {"sweep": "parent", **provenance.source_tags(Path(__file__).parent)}
        name = f"sweep {self.out.name}"
        self.parent = ignoring_mlflow_errors(store.start_parent, self.out, self.track, name, params, tags)
        if self.places.jobs > 1:
            self.display = live.Display(self.settings.trials if self.study else count)
        if self.queue:
            slurm.write_script(self.out)

    def close(self, status: str) -> None:
        """Leave the table on the terminal, in the folder and in MLflow."""
        if self.display:
            self.display.close()
        goals = self.settings.goals
        summary = table(self.jobs, goals)
        files.write_text(self.out / "summary.md", summary + "\n")
        print(f"\n{summary}\n\nsweep folder: {self.out}", flush=True)
        if status != "FINISHED":
            resume = shell.command("resnet.train", shell.override(RESUME, self.out))
            print(f"resume, without the jobs that finished: {resume}", flush=True)
        pictures.parallel_coordinates(self.jobs, list(self.space), goals, self.out)
        pictures.importances(self.study.importances() if self.study else {}, goals[0], self.out)
        paths = [self.out / name for name in ("summary.md", pictures.PARALLEL, pictures.IMPORTANCES)]
        if winner := best(self.jobs, goals[0]):
            save_best(self.out, winner.varying, winner.number)
            paths += [self.out / BEST, winner.out / "config.yaml"]
            ignoring_mlflow_errors(store.set_tags, self.track, self.parent, {"sweep.best": winner.name})
        artifacts = tuple(path for path in paths if path.exists())
        ignoring_mlflow_errors(store.close_run, self.track, self.parent, status, artifacts=artifacts)
        self.stack.close()

    # -------------------------------------------------------------------------------------------------- what the pool tells us
    def unfinished(self) -> list[Job]:
        """The jobs that a search which was killed has left; those that had ended go into the table."""
        assert self.study
        left: list[Job] = []
        for number, words, code in self.study.jobs():
            if job := self.of_trial(number, words, code):
                job.code = code
                (left if code is None else self.jobs).append(job)
                if code == cli.FAILED:
                    self.failed.append(f"{job.name}: had failed, and those after it were chosen by that")
        for job in left:
            self.check_folder(job)
        return left

    def more(self) -> Job | None:
        """The next job of a search."""
        while self.study and (trial := self.study.ask()):
            if job := self.of_trial(*trial):
                self.places.check(job.run, job.name)
                self.check_folder(job)
                return job
        return None

    def of_trial(self, number: int, words: list[str], code: int | None = None) -> Job | None:
        """The job of a trial; None for values that do not go together, which counts as a failed job."""
        assert self.study
        try:
            return self.compose([*self.fixed(), *words], number)
        except UserError as error:
            self.line(str(error))
            self.failed.append(str(error))
            if code is None:
                self.study.tell(number, {}, pruned=False)
            return None

    def start(self, job: Job, place: Place) -> Process | None:
        """Start a job, unless it has finished already."""
        self.jobs.append(job)
        if isinstance(job.run.track, Mlflow):
            job.run.track.parent_run = self.parent
        self.line(
            f"\njob {job.number} of {self.out}: {' '.join(job.varying)}"
            if self.places.jobs == 1
            else f"{job.name} starts"
        )
        content = result.read(job.out)
        if content and content.get("fingerprint") == fingerprint.fingerprint(job.run):
            self.line(f"{job.out}: this run has finished already")
            sync.send_rest(job.run, job.out)
            job.code = cli.DONE
            return None
        if self.queue and (process := self.queue.find(job)):
            self.line(f"{job.name} is Slurm's job {process.number} already")
            return process
        rundir.claim(job.run, job.out)
        (job.out / result.PRUNE).unlink(missing_ok=True)
        if self.queue:
            return self.queue.start(job)
        return local.start(job, place, quiet=self.places.jobs > 1)

    def progress(self, job: Job) -> bool:
        rows = job.follow()
        prune = self.study is not None and self.study.prune(job.number, rows)
        if prune:
            files.write_text(job.out / result.PRUNE, "")
        return prune

    def finish(self, job: Job) -> None:
        if job.code == LOST and result.read(job.out):
            job.code = cli.DONE
        if self.study and job.code not in (cli.STOPPED, cli.INTERRUPTED, LOST):  # these go on when the search does
            self.study.tell(job.number, job.result, pruned=job.code == cli.PRUNED)
        if job.code == cli.PRUNED:
            ignoring_mlflow_errors(
                store.set_tags, job.run.track, supervisor.mlflow_run(job.run, job.out), {"pruned": "true"}
            )
        if job.code in (cli.DONE, cli.PRUNED):
            top1 = job.latest.get("best/top1")
            self.line(f"{job.name}: {job.status}" + ("" if top1 is None else f", top-1 {100 * top1:.2f} %"))
            return
        assert job.code is not None
        self.failed.append(f"{job.name}: exit status {job.code}, {job.out}")
        status = "KILLED" if job.code < 0 or job.code > 128 else "FAILED"
        run_id = supervisor.mlflow_run(job.run, job.out)
        ignoring_mlflow_errors(store.close_run, job.run.track, run_id, status, only_if_running=True)

    def show(self, running: Sequence[Job]) -> None:
        if self.display:
            self.display.show(running, len(self.jobs) - len(running))

    def line(self, text: str) -> None:
        if self.display:
            self.display.line(text)
        else:
            print(text, flush=True)


open_sweeps: list[ProcessSweeper] = []  # the sweep of this process, once it has a folder
single: list[Run] = []  # the job of sweep.only=, which the command then trains as a run without a sweep


def freeze(config: DictConfig) -> Run:
    """compose.freeze(); the store counts as named by the user, who typed it or wrote the option file."""
    run = compose.freeze(config)
    if isinstance(run.track, Mlflow):
        os.environ.setdefault(uris.STORE, run.track.uri)
    return run
