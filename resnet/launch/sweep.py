"""Turns one process into several: every job of a sweep is a fresh `python -m resnet.rank <out>`.

TensorFlow's global state (policies, threads, memory) leaks from one job into the next within a process, which is what
Hydra's own launchers do.

A sweep's folder holds a folder for each job, <out>/<number>; summary.md, its table; and sweep.yaml, what was typed, from
which `sweep.resume=<out>` goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from resnet import UserError, files, rundir
from resnet.config import compose, errors, fingerprint
from resnet.config.run import Run
from resnet.config.track import Mlflow
from resnet.data import source
from resnet.launch import launchers
from resnet.optim import schedule
from resnet.rundir import result
from resnet.track import provenance, store

FILE = "sweep.yaml"  # in a sweep's folder: what was typed, and where
RESUME = "sweep.resume"

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
        """Its folder."""
        return Path(self.run.out)


class SubprocessLauncher(Launcher):
    """Hydra's launcher of this suite: checks all jobs, then runs them one after the other, each in its own process."""

    def __init__(self, **_settings: Any) -> None:
        self.config: DictConfig
        self.context: HydraContext
        self.out = Path()
        self.track: Any = None
        self.parent: str | None = None  # MLflow's id of the sweep
        self.jobs: list[Job] = []  # of all batches of the sweep so far
        self.failed: list[str] = []  # those that did not end well, a line each

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        """Hydra's hook."""
        self.context, self.config = hydra_context, config
        logging.getLogger("optuna").setLevel(logging.WARNING)  # it tells each trial; so do we

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs; one that fails does not stop the others. `ended` sees to the end of the sweep."""
        str(self.config.out)  # told once: every job takes the time in it from here
        jobs = [
            self.compose(list(overrides), initial_job_idx + number) for number, overrides in enumerate(job_overrides)
        ]
        for job in jobs:
            rundir.check_folder(job.run, job.out)
            self.check_target(job.run)
        launchers.refuse_if_nested(jobs[0].run.cluster)
        if jobs[0].run.cluster.dry_run:
            print("\n".join(launchers.dry_run_text(job.run, job.out) for job in jobs))
            return [to_job_return(job) for job in jobs]
        if not self.jobs:
            self.open(jobs[0])
        for job in jobs:
            self.jobs.append(job)
            self.work(job)
        return [to_job_return(job) for job in jobs]

    @property
    def searches(self) -> bool:
        """Whether the sweeper chooses jobs by what came of those before."""
        return bool(self.config.hydra.runtime.choices.get("hydra/sweeper", "basic") != "basic")

    def check_target(self, run: Run) -> None:
        """Raise UserError if there will be nothing to search by."""
        knob = "lr_find=true" if run.lr_find else "eval=false"
        if self.searches and (run.lr_find or not run.eval):
            raise UserError(f"{knob}: a search goes by the top-1 of its jobs, and there would be none; leave it out")

    def open(self, job: Job) -> None:
        """Make the sweep's folder, and its run in MLflow."""
        self.out = job.out.parent
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            save_argv(self.out)
        except OSError as error:
            raise UserError(f"out={self.out}: cannot be written to ({error.strerror}); give another folder") from error
        self.track = job.run.track
        open_sweeps.append(self)
        self.parent = self.open_parent()

    def close(self, status: str) -> None:
        """Leave the table, on the terminal, in the folder and in MLflow."""
        summary = table(self.jobs)
        (self.out / "summary.md").write_text(summary + "\n")
        print(f"\n{summary}\n\nsweep folder: {self.out}", flush=True)
        if status != "FINISHED":
            again = shlex.quote(f"{RESUME}={self.out}")
            print(f"go on, without the jobs that finished: python -m resnet.train {again}", flush=True)
        ignoring_mlflow_errors(store.close_run, self.track, self.parent, status, artifacts=(self.out / "summary.md",))

    def work(self, job: Job) -> None:
        """Run one job to its end, unless it has come there already, and see to it that its end is known."""
        settings = job.run.track
        if isinstance(settings, Mlflow):
            settings.parent_run = self.parent
            settings.run_name = f"{settings.run_name} [{' '.join(job.varying)}]"
        print(f"\njob {job.number} of {self.out}: {' '.join(job.varying)}", flush=True)
        made = result.read(job.out)
        if made and made.get("fingerprint") == fingerprint.fingerprint(job.run):
            print(f"{job.out}: this run has finished already", flush=True)
            job.code = 0
            return
        if self.searches and not made and (self.out / str(job.number + 1)).exists():
            self.failed.append(
                f"job {job.number} ({' '.join(job.varying)}): had failed, and those after it were chosen by that"
            )
            job.code = 1
            return
        rundir.claim(job.run, job.out)
        job.code = process(job.out)
        if job.code:
            self.failed.append(f"job {job.number} ({' '.join(job.varying)}): exit status {job.code}, {job.out}")
            status = "KILLED" if job.code < 0 or job.code > 128 else "FAILED"
            kept = store.identity(job.out, getattr(settings, "uri", ""))
            ignoring_mlflow_errors(store.close_run, settings, kept, status, only_if_running=True)

    def typed(self) -> list[Override]:
        """What the command line says of the run."""
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        return list(parser.parse_overrides(list(self.config.hydra.overrides.task)))

    def compose(self, overrides: list[str], number: int) -> Job:
        """The checked run of one job. Raises UserError naming the job."""
        same = {word.get_key_element() for word in self.typed() if not word.is_sweep_override()}
        varying = [word for word in overrides if word.partition("=")[0] not in same] or overrides
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        HydraConfig.instance().set_config(config)
        try:
            run = compose.freeze(compose.task_config(config))
        except UserError as error:
            raise UserError(f"job {number} ({' '.join(varying)}): {error}") from error
        if run.resume:
            raise UserError(
                f"resume={run.resume}: goes on with one run; leave it out of a sweep; with a sweep goes on {RESUME}="
            )
        run.out = f"{run.out}/{number}"
        return Job(number, run, varying)

    def open_parent(self) -> str | None:
        """The MLflow run that the jobs nest under: the one this folder has, or a new one. Its parameters are what varies."""
        params = {name: str(values) for name, values in (self.config.hydra.sweeper.get("params") or {}).items()}
        for word in self.typed():
            name = word.get_key_element()
            if word.is_sweep_override():
                params[name] = str(word.input_line).partition("=")[2]
            else:
                params.pop(name, None)
        tags = {"sweep": "parent", **provenance.source_tags(Path(__file__).parent)}
        parent: str | None = ignoring_mlflow_errors(
            store.start_parent, self.out, self.track, f"sweep {self.out.name}", params, tags
        )
        return parent


SubprocessLauncher.__module__ = (
    "hydra_plugins.resnet"  # Hydra takes launchers from the namespace package hydra_plugins only
)


def register() -> None:
    """Give Hydra the configuration and this launcher. Doing it twice is harmless."""
    compose.register()
    try:
        space = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:
        space = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        space.__path__ = []
    space.resnet = sys.modules[__name__]  # type: ignore[attr-defined]
    Plugins.instance().register(SubprocessLauncher)


@contextlib.contextmanager
def closing_sweeps() -> Iterator[None]:
    """Context of a whole command: a sweep that begins in it is closed, whatever ends it. Raises UserError if jobs failed."""
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


# ------------------------------------------------------------------------------------------------------------ going on
def save_argv(out: Path) -> None:
    """Write <out>/sweep.yaml; users and passwords in URLs stay out of it."""
    words = [re.sub(r"//[^/@\s]+@", "//", word) for word in sys.argv[1:]]
    aside = out / f".{FILE}.{os.getpid()}"
    aside.write_text(yaml.safe_dump({"folder": str(Path.cwd()), "words": words}, sort_keys=False, width=10_000))
    aside.replace(out / FILE)


def resume_argv(words: list[str]) -> list[str]:
    """The command line that `sweep.resume=<folder>` in `words` stands for: the sweep's own, typed where that was; else `words`.

    Raises UserError if there is no sweep in the folder, or if `words` would make another one of it.
    """
    given = [word.partition("=")[2] for word in words if word.startswith(f"{RESUME}=")]
    if not given:
        return words
    asked = f"{RESUME}={given[-1]}"
    out = Path(files.absolute(given[-1].strip("'\""), Path.cwd()))
    if not given[-1] or not out.is_dir():
        raise UserError(f"{asked}: no such folder; give that of a sweep, as it was told when the sweep ended")
    if not (out / FILE).is_file():
        other = (
            f"a run lies here; go on with it by resume={out}" if (out / "config.yaml").exists() else "give a sweep's"
        )
        raise UserError(f"{asked}: not the folder of a sweep ({FILE} is missing); {other}")
    try:
        kept = yaml.safe_load((out / FILE).read_text())
        before, folder = [str(word) for word in kept["words"]], Path(kept["folder"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"{out / FILE}: cannot be read ({said}); give the sweep's command again with out={out}"
        ) from error
    more = [word for word in words if word not in before and not word.startswith((f"{RESUME}=", "-m", "--multirun"))]
    for word in more:
        name = named(word)
        if not fingerprint.may_change_on_resume(name) or name in ("out", "resume", "recipe"):
            raise UserError(
                f"{word}: {asked} goes on with that sweep's own settings ({shlex.join(before)}); only what does not move "
                "the weights may change, such as steps, cluster.* and track.*. For another sweep leave it out"
            )
    try:
        os.chdir(folder)  # where paths mean what they meant
    except OSError as error:
        raise UserError(f"{asked}: the sweep was started in {folder}, which is not there ({error.strerror})") from error
    changed = {"out", *map(named, more)}
    same = [word for word in before if named(word) not in changed]
    place = next((at for at, word in enumerate(same) if "=" in word and word[0] != "-"), len(same))
    # In one row with the other overrides, as argparse wants them.
    same[place:place] = [*more, f"out={QuotedString(str(out), Quote.double).with_quotes()}"]
    return same


def named(word: str) -> str:
    """The knob or group of an override."""
    return word.lstrip("+~").partition("=")[0]


# ------------------------------------------------------------------------------------------------------------ its parts
def process(out: Path) -> int:
    """Train the run of `out` in a fresh process and wait; its exit status, negative for a signal.

    The process has a session of its own, so that a Ctrl-C reaches it once: from here. When it has ended, the sweep ends too.
    """
    received: list[int] = []
    waiting: deque[int] = deque()  # for the process to be there
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        waiting.append(number if number != signal.SIGHUP else signal.SIGTERM)
        deliver()

    def deliver() -> None:
        with contextlib.suppress(IndexError):  # all are delivered, perhaps by a signal that came in between
            while children:
                children[0].send_signal(waiting.popleft())

    before = {
        number: signal.signal(number, pass_on)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        children.append(subprocess.Popen([sys.executable, "-m", "resnet.rank", str(out)], start_new_session=True))
        deliver()
        code = children[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt if signal.SIGINT in received else SystemExit(128 + received[0])
    return code


def ignoring_mlflow_errors(work: Callable[..., Any], *words: Any, **more: Any) -> Any:
    """What `work` returns, or None and a line on stderr: trouble with MLflow costs a sweep nothing."""
    try:
        return work(*words, **more)
    except Exception as error:
        print(f"MLflow: {type(error).__name__}: {str(error).partition(chr(10))[0]}", file=sys.stderr, flush=True)
        return None


def to_job_return(job: Job) -> JobReturn:
    """A job's end in Hydra's words; its value, for an optimising sweeper, is top-1.

    0 when it failed: Optuna forgets what it is told has failed, and would try the neighbours of a rate that diverged. Never
    Hydra's FAILED: that makes it raise the first failure and skip the batches that follow.
    """
    end = JobReturn(overrides=job.varying)
    end.status = JobStatus.COMPLETED
    end.return_value = 0.0 if job.code else float((result.read(job.out) or {}).get("final/top1") or 0.0)
    return end


def table(jobs: Sequence[Job]) -> str:
    """Markdown: every job, the best top-1 first, those without one last."""
    rows = []
    for job in jobs:
        made = {} if job.code != 0 else result.read(job.out) or {}
        top1, speed = made.get("final/top1"), made.get("final/images_per_s")
        rows.append(
            (
                -1.0 if top1 is None else top1,
                job.number,
                [
                    str(job.number),
                    " ".join(job.varying),
                    "-" if top1 is None else f"{100 * top1:.2f} %",
                    "-" if speed is None else f"{speed:,.1f}",
                    f"suggests lr {made['suggested_lr']:.3g}"
                    if "suggested_lr" in made
                    else made.get("status", "interrupted" if job.code is None else "failed"),
                ],
            )
        )
    head = [["job", "overrides", "top-1", "images/s", "status"]]
    body = head + [cells for _, _, cells in sorted(rows, key=lambda row: (-row[0], row[1]))]
    widths = [max(len(cells[column]) for cells in body) for column in range(len(head[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |" for cells in body
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def command_line() -> list[Run]:
    """The run that the command line describes; none after --help, --cfg or a sweep. Raises UserError before TensorFlow loads.

    Hydra composes and steps aside: the run starts outside of it.
    """
    composed: list[Run | UserError] = []

    def keep(config: DictConfig) -> None:
        try:
            with errors.explain():
                composed.append(rundir.resumed(config) if config.resume else compose.freeze(config))
        except UserError as error:  # raised below: Hydra would add lines of its own
            composed.append(error)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come out of Hydra whole
    register()
    sys.argv[1:] = resume_argv(sys.argv[1:])
    with errors.explain(), closing_sweeps():
        hydra.main(version_base="1.3", config_path=str(files.tree("conf")), config_name="config")(keep)()
    for run in composed:
        if isinstance(run, UserError):
            raise run
        rundir.check_folder(run, Path(run.out))
        rundir.check_init(run)
        if not run.cluster.dry_run:
            schedule.plan(run, source.open_source(run.data).train_images)
    return [run for run in composed if isinstance(run, Run)]
