"""Turns one process into several: every job of a sweep is a fresh `python -m resnet.rank <out>`.

TensorFlow's global state (policies, threads, memory) leaks from one job into the next within a process, which is what
Hydra's own launchers do.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from resnet import UserError, result
from resnet.config import Mlflow, Run

failed: list[str] = []  # the jobs of this process's sweep that did not end well, for its exit status


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


class Processes(Launcher):
    """Hydra's launcher of this suite: checks all jobs, then runs them one after the other, each in its own process."""

    def __init__(self, **_settings: Any) -> None:
        self.config: DictConfig
        self.context: HydraContext
        self.parent: str | None = None
        self.jobs: list[Job] = []  # of all batches of the sweep so far

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        """Hydra's hook."""
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs; one that fails does not stop the others."""
        from resnet import compose, starter, track

        str(self.config.out)  # told once: every job takes the time in it from here
        jobs = [
            self.compose(list(overrides), initial_job_idx + number) for number, overrides in enumerate(job_overrides)
        ]
        for job in jobs:
            compose.check_folder(job.run, job.out)
        starter.check_outside(jobs[0].run.cluster)
        if jobs[0].run.cluster.dry_run:
            print("\n".join(starter.shown(job.run, job.out) for job in jobs))
            return [returned(job) for job in jobs]
        sweep = jobs[0].out.parent
        try:
            sweep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out={sweep}: cannot be written to ({error.strerror}); give another folder") from error
        if self.parent is None:
            self.parent = self.open_parent(jobs[0].run, sweep, [job.varying for job in jobs])
        status = "KILLED"
        try:
            for job in jobs:
                self.jobs.append(job)
                self.work(job, sweep)
            status = "FAILED" if failed else "FINISHED"
        finally:
            summary = table(self.jobs)
            print(
                f"\n{summary}\n\nsweep folder: {sweep}; the same command with out={shlex.quote(str(sweep))} goes on",
                flush=True,
            )
            (sweep / "summary.md").write_text(summary + "\n")
            told(track.close_run, jobs[0].run.track, self.parent, status, artifacts=(sweep / "summary.md",))
        return [returned(job) for job in jobs]

    def work(self, job: Job, sweep: Path) -> None:
        """Run one job to its end, and see to it that its end is known."""
        from resnet import compose, track

        settings = job.run.track
        if isinstance(settings, Mlflow):
            settings.parent_run = self.parent
            settings.run_name = f"{settings.run_name} [{' '.join(job.varying)}]"
        print(f"\njob {job.number} of {sweep}: {' '.join(job.varying)}", flush=True)
        compose.claim(job.run, job.out)
        job.code = process(job.out)
        if job.code:
            failed.append(f"job {job.number} ({' '.join(job.varying)}): exit status {job.code}, {job.out}")
            status = "KILLED" if job.code < 0 or job.code > 128 else "FAILED"
            kept = track.identity(job.out, getattr(settings, "uri", ""))
            told(track.close_run, settings, kept, status, only_if_running=True)

    def compose(self, overrides: list[str], number: int) -> Job:
        """The checked run of one job. Raises UserError naming the job."""
        from resnet import compose

        parser = OverridesParser.create(config_loader=self.context.config_loader)
        typed = parser.parse_overrides(list(self.config.hydra.overrides.task))
        same = {word.get_key_element() for word in typed if not word.is_sweep_override()}
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
                f"resume={run.resume}: goes on with one run; leave it out of a sweep, and give the sweep's out= instead"
            )
        run.out = f"{run.out}/{number}"
        return Job(number, run, varying)

    def open_parent(self, run: Run, sweep: Path, varying: Sequence[Sequence[str]]) -> str | None:
        """The MLflow run that the jobs nest under: the one this folder has, or a new one."""
        from resnet import track

        values: dict[str, list[str]] = {}
        for name, _, value in (word.partition("=") for words in varying for word in words):
            values.setdefault(name, [])
            if value not in values[name]:
                values[name].append(value)
        params = {name: ",".join(listed) for name, listed in values.items()}
        tags = {"sweep": "parent", **track.source_tags(Path(__file__).parent)}
        parent: str | None = told(track.open_parent, sweep, run.track, f"sweep {sweep.name}", params, tags)
        return parent


Processes.__module__ = "hydra_plugins.resnet"  # see compose.register()


def process(out: Path) -> int:
    """Train the run of `out` in a fresh process and wait; its exit status, negative for a signal.

    The process has a session of its own, so that a Ctrl-C reaches it once: from here. When it has ended, the sweep ends too.
    """
    received: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        for child in children:
            child.send_signal(number if number != signal.SIGHUP else signal.SIGTERM)

    before = {
        number: signal.signal(number, pass_on)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        children.append(subprocess.Popen([sys.executable, "-m", "resnet.rank", str(out)], start_new_session=True))
        code = children[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt if signal.SIGINT in received else SystemExit(128 + received[0])
    return code


def told(work: Callable[..., Any], *words: Any, **more: Any) -> Any:
    """What `work` returns, or None and a line on stderr: trouble with MLflow costs a sweep nothing."""
    try:
        return work(*words, **more)
    except Exception as error:
        print(f"MLflow: {type(error).__name__}: {str(error).partition(chr(10))[0]}", file=sys.stderr, flush=True)
        return None


def returned(job: Job) -> JobReturn:
    """A job's end in Hydra's words; its value, for an optimising sweeper, is top-1, and None when it failed.

    Never Hydra's FAILED: that makes it raise the first failure and skip the batches that follow.
    """
    ended = JobReturn(overrides=job.varying)
    ended.status = JobStatus.COMPLETED
    ended.return_value = None if job.code else (result.read(job.out) or {}).get("eval/top1")
    return ended


def table(jobs: Sequence[Job]) -> str:
    """Markdown: every job, the best top-1 first, those without one last."""
    rows = []
    for job in jobs:
        made = {} if job.code != 0 else result.read(job.out) or {}
        top1, speed = made.get("eval/top1"), made.get("final/images_per_s")
        rows.append(
            (
                -1.0 if top1 is None else top1,
                job.number,
                [
                    str(job.number),
                    " ".join(job.varying),
                    "-" if top1 is None else f"{100 * top1:.2f} %",
                    "-" if speed is None else f"{speed:,.1f}",
                    made.get("status", "interrupted" if job.code is None else "failed"),
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
