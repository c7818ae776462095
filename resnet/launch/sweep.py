"""Sweeps: every job is a fresh process, `python -m resnet.rank <out>`.

Hydra's own launchers run all jobs in one process, where TensorFlow's global state (policies, threads, memory) leaks from one
job into the next.

A sweep's folder holds a folder for each job, <out>/<number>; summary.md, a table of them; and sweep.yaml, the command line,
from which `sweep.resume=<out>` resumes.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from resnet import UserError, cli, files, rundir, shell, uris
from resnet.config import compose, errors, fingerprint
from resnet.config.run import Run
from resnet.config.track import Mlflow, Track
from resnet.launch import launchers, search, supervisor
from resnet.launch.supervisor import ignoring_mlflow_errors
from resnet.launch.sweep_argv import RESUME, in_one_row, resume_argv, save_argv
from resnet.rundir import lock, result
from resnet.track import provenance, store, sync

open_sweeps: list[SubprocessLauncher] = []  # the sweep of this process, once it has a folder


@dataclass
class Job:
    """One run of a sweep; `varying` are the overrides that not all jobs share, `code` its exit status once it has one."""

    number: int
    run: Run
    varying: list[str]
    code: int | None = None

    @property
    def out(self) -> Path:
        return Path(self.run.out)

    @property
    def name(self) -> str:
        return f"job {self.number} ({' '.join(self.varying)})"


class SubprocessLauncher(Launcher):
    """Hydra's launcher of this suite: checks all jobs, then runs them one after the other, each in its own process."""

    def __init__(self, **_settings: Any) -> None:
        self.config: DictConfig
        self.context: HydraContext
        self.track: Track
        self.out: Path
        self.parent: str | None = None  # MLflow's id of the sweep
        self.jobs: list[Job] = []  # of all batches of the sweep so far
        self.failed: list[str] = []  # a line for each job that did not end well

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        self.context, self.config = hydra_context, config
        # Whether the sweeper chooses jobs by the results of those before.
        self.searches = config.hydra.runtime.choices.get("hydra/sweeper", "basic") != "basic"
        parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.overrides = parser.parse_overrides(list(config.hydra.overrides.task))
        if self.searches:
            search.check_settings(config.hydra.sweeper, self.overrides)
        else:
            search.check_count(self.overrides)
        logging.getLogger("optuna").setLevel(logging.WARNING)  # it reports each trial; so do we

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs; one that fails does not stop the others. `closing_sweeps` reports at the end."""
        str(self.config.out)  # resolved once: every job takes the time in its name from here
        jobs = [self.compose(list(words), number) for number, words in enumerate(job_overrides, initial_job_idx)]
        for job in jobs:
            rundir.check_folder(job.run, job.out)
            if (job.out / lock.FILE).exists():
                with lock.hold(job.out):  # the job of a sweep that was killed may still be training
                    pass
            if self.searches and (job.run.lr_find or not job.run.eval):
                knob = "lr_find=true" if job.run.lr_find else "eval=false"
                raise UserError(
                    f"{knob}: a search goes by the top-1 of its jobs, and there would be none; leave it out"
                )
        launchers.refuse_if_nested(jobs[0].run.cluster)
        if jobs[0].run.cluster.dry_run:
            print("\n".join(launchers.dry_run_text(job.run, job.out) for job in jobs))
            return [to_job_return(job) for job in jobs]
        if not self.jobs:
            self.open(jobs[0])
        for job in jobs:
            self.jobs.append(job)
            self.train(job)
        return [to_job_return(job) for job in jobs]

    def compose(self, overrides: list[str], number: int) -> Job:
        """The checked run of one job. Raises UserError naming the job."""
        same = {word.get_key_element() for word in self.overrides if not word.is_sweep_override()}
        varying = [word for word in overrides if word.partition("=")[0] not in same] or overrides
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        HydraConfig.instance().set_config(config)
        try:
            run = freeze(config)
        except UserError as error:
            raise UserError(f"job {number} ({' '.join(varying)}): {error}") from error
        if run.resume:
            raise UserError(f"resume={run.resume}: resumes one run; leave it out of a sweep; {RESUME}= resumes a sweep")
        run.out = f"{run.out}/{number}"
        return Job(number, run, varying)

    def open(self, job: Job) -> None:
        """Make the sweep's folder, and the MLflow run that the jobs nest under, whose parameters are what varies."""
        self.out, self.track = job.out.parent, job.run.track
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            save_argv(self.out)
        except OSError as error:
            raise UserError(f"out={self.out}: cannot be written to ({error.strerror}); give another folder") from error
        open_sweeps.append(self)
        params = {name: str(values) for name, values in (self.config.hydra.sweeper.get("params") or {}).items()}
        for word in self.overrides:
            name = word.get_key_element()
            if word.is_sweep_override():
                params[name] = str(word.input_line).partition("=")[2]
            else:
                params.pop(name, None)
        tags = {"sweep": "parent", **provenance.source_tags(Path(__file__).parent)}
        name = f"sweep {self.out.name}"
        self.parent = ignoring_mlflow_errors(store.start_parent, self.out, self.track, name, params, tags)

    def close(self, status: str) -> None:
        """Leave the table on the terminal, in the folder and in MLflow."""
        summary = table(self.jobs)
        files.write_text(self.out / "summary.md", summary + "\n")
        print(f"\n{summary}\n\nsweep folder: {self.out}", flush=True)
        if status != "FINISHED":
            resume = shell.command("resnet.train", shell.override(RESUME, self.out))
            print(f"resume, without the jobs that finished: {resume}", flush=True)
        ignoring_mlflow_errors(store.close_run, self.track, self.parent, status, artifacts=(self.out / "summary.md",))

    def train(self, job: Job) -> None:
        """Run one job to its end, unless it has finished already, and record how it ended."""
        if isinstance(job.run.track, Mlflow):
            job.run.track.parent_run = self.parent
            job.run.track.run_name = f"{job.run.track.run_name} [{' '.join(job.varying)}]"
        print(f"\njob {job.number} of {self.out}: {' '.join(job.varying)}", flush=True)
        content = result.read(job.out)
        if content and content.get("fingerprint") == fingerprint.fingerprint(job.run):
            print(f"{job.out}: this run has finished already", flush=True)
            sync.send_rest(job.run, job.out)
            job.code = 0
            return
        if self.searches and not content and (self.out / str(job.number + 1)).exists():
            self.failed.append(f"{job.name}: had failed, and those after it were chosen by that")
            job.code = 1
            return
        rundir.claim(job.run, job.out)
        job.code = process(job.out)
        if job.code:
            self.failed.append(f"{job.name}: exit status {job.code}, {job.out}")
            status = "KILLED" if job.code < 0 or job.code > 128 else "FAILED"
            run_id = supervisor.mlflow_run(job.run, job.out)
            ignoring_mlflow_errors(store.close_run, job.run.track, run_id, status, only_if_running=True)


def process(out: Path) -> int:
    """Train the run of `out` in a fresh process; its exit status, negative for a signal. After a signal the sweep ends too."""
    env = {**os.environ, **launchers.python_environment()}
    with cli.SignalRelay() as relay:
        code = relay.run([sys.executable, *launchers.PROGRAM, str(out)], env)
    if relay.received:
        raise KeyboardInterrupt if signal.SIGINT in relay.received else SystemExit(128 + relay.received[0])
    return code


def register() -> None:
    """Give Hydra the configuration and this launcher. Doing it twice is harmless."""
    compose.register()
    SubprocessLauncher.__module__ = "hydra_plugins.resnet"  # Hydra takes launchers from this namespace package only
    try:
        space = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:
        space = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        space.__path__ = []
    space.resnet = sys.modules[__name__]  # type: ignore[attr-defined]
    Plugins.instance().register(SubprocessLauncher)


@contextlib.contextmanager
def closing_sweeps() -> Iterator[None]:
    """Context of a whole command: its sweep is closed, however it ends. Raises UserError if jobs failed."""
    status = "FAILED"
    try:
        yield
        status = "FAILED" if any(sweep.failed for sweep in open_sweeps) else "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        sweeps = open_sweeps[:]
        open_sweeps.clear()
        for sweep in sweeps:
            sweep.close(status)
    if failed := [line for sweep in sweeps for line in sweep.failed]:
        raise UserError(f"{len(failed)} of the sweep's jobs failed: {'; '.join(failed)}")


def to_job_return(job: Job) -> JobReturn:
    """A job's end for Hydra; its value, for an optimizing sweeper, is top-1.

    0 when it failed: Optuna ignores trials that have failed, and would try the neighbours of a rate that diverged. Never
    Hydra's FAILED: that makes it raise the first failure and skip the batches that follow.
    """
    end = JobReturn(overrides=job.varying, status=JobStatus.COMPLETED)
    end.return_value = 0.0 if job.code else float((result.read(job.out) or {}).get("final/top1") or 0.0)
    return end


def table(jobs: Sequence[Job]) -> str:
    """Markdown: every job, the best top-1 first, those without one last."""
    rows = []
    for job in jobs:
        content = {} if job.code != 0 else result.read(job.out) or {}
        top1, speed = content.get("final/top1"), content.get("final/images_per_s")
        status = content.get("status", "interrupted" if job.code is None else "failed")
        if "suggested_lr" in content:
            status = f"suggests lr {content['suggested_lr']:.3g}"
        shown = ("-" if top1 is None else f"{100 * top1:.2f} %", "-" if speed is None else f"{speed:,.1f}")
        cells = [str(job.number), " ".join(job.varying), *shown, status]
        rows.append((1.0 if top1 is None else -top1, job.number, cells))
    body = [["job", "overrides", "top-1", "images/s", "status"], *(cells for _, _, cells in sorted(rows))]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in body]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def freeze(config: DictConfig) -> Run:
    """compose.freeze(); the store counts as named by the user, who typed it or wrote the option file."""
    run = compose.freeze(config)
    if isinstance(run.track, Mlflow):
        os.environ.setdefault(uris.STORE, run.track.uri)
    return run


def command_line() -> list[Run]:
    """The run that the command line describes; none after --help, --cfg or a sweep. Raises UserError before TensorFlow loads.

    Hydra composes and steps aside: the run starts outside of it.
    """
    composed: list[Run | UserError] = []

    def compose_run(config: DictConfig) -> None:
        try:
            with errors.explain():
                composed.append(rundir.resume(config) if config.resume else freeze(config))
        except UserError as error:  # raised below: Hydra would add lines of its own
            composed.append(error)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come out of Hydra whole
    register()
    os.environ.pop(uris.STORE, None)
    typed = uris.take_words(sys.argv[1:])
    if any(word.startswith((f"{RESUME}=", "resume=")) for word in typed):
        os.environ.setdefault(uris.STORE, "")  # the store of a file, if none was typed
    sys.argv[1:] = in_one_row(resume_argv(typed))
    with errors.explain(), closing_sweeps():
        hydra.main(version_base="1.3", config_path=str(files.tree("conf")), config_name="config")(compose_run)()
    runs = []
    for run in composed:
        if isinstance(run, UserError):
            raise run
        rundir.check_folder(run, Path(run.out))
        rundir.check_init(run)
        runs.append(run)
    return runs
