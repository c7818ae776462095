"""Turns one process into several: every job of a sweep is a fresh `python -m resnet.rank <out>`.

TensorFlow's global state (policies, threads, memory) leaks from one job into the next within a process, which is what
Hydra's own launchers do.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from resnet import UserError, result
from resnet.config import Mlflow, Run

failed: list[str] = []  # the jobs of this process's sweep that did not end well, for its exit status


class Processes(Launcher):
    """Hydra's launcher of this suite: checks all jobs, then runs them one after the other, each in its own process."""

    def __init__(self, **_settings: Any) -> None:
        self.config: DictConfig
        self.context: HydraContext
        self.parent: str | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        """Hydra's hook."""
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs; one that fails does not stop the others."""
        from resnet import compose, track

        jobs = [
            self.compose(list(overrides), initial_job_idx + number) for number, overrides in enumerate(job_overrides)
        ]
        sweep = Path(jobs[0][0].out).parent
        if self.parent is None:
            sweep.mkdir(parents=True, exist_ok=True)
            self.parent = self.open_parent(jobs[0][0], sweep, job_overrides)
        returns = []
        for number, (run, overrides) in enumerate(jobs):
            if isinstance(run.track, Mlflow):
                run.track.parent_run = self.parent
                run.track.run_name = f"{run.track.run_name} [{' '.join(overrides)}]"
            print(f"\njob {initial_job_idx + number} of {sweep}: {' '.join(overrides)}", flush=True)
            out = Path(run.out)
            if not (out / "config.yaml").exists():
                compose.save(run, out)
            code = process(out)
            if code:
                failed.append(f"job {initial_job_idx + number} ({' '.join(overrides)}): exit status {code}, {out}")
                track.close_run(
                    run.track,
                    track.identity(out, getattr(run.track, "uri", "")),
                    "KILLED" if code < 0 or code > 128 else "FAILED",
                    only_if_running=True,
                )
            returns.append(returned(overrides, code, result.read(out)))
        summary = table(jobs)
        print("\n" + summary, flush=True)
        (sweep / "summary.md").write_text(summary + "\n")
        track.close_run(
            jobs[0][0].track, self.parent, "FAILED" if failed else "FINISHED", artifacts=(sweep / "summary.md",)
        )
        return returns

    def compose(self, overrides: list[str], number: int) -> tuple[Run, list[str]]:
        """The checked run of one job. Raises UserError naming the job."""
        from resnet import compose

        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        HydraConfig.instance().set_config(config)
        try:
            run = compose.freeze(compose.task_config(config))
        except UserError as error:
            raise UserError(f"job {number} ({' '.join(overrides)}): {error}") from error
        if run.resume:
            raise UserError(
                f"resume={run.resume}: goes on with one run; leave it out of a sweep, and give the sweep's out= instead"
            )
        run.out = f"{run.out}/{number}"
        varying = [word for word in overrides if word not in set(self.config.hydra.overrides.task)]
        return run, varying or overrides

    def open_parent(self, run: Run, sweep: Path, job_overrides: Sequence[Sequence[str]]) -> str | None:
        """The MLflow run that the jobs nest under: the one this folder has, or a new one."""
        from resnet import track

        uri = getattr(run.track, "uri", "")
        if kept := track.identity(sweep, uri):
            return kept
        values: dict[str, list[str]] = {}
        for word in (word for overrides in job_overrides for word in overrides):
            name, _, value = word.partition("=")
            values.setdefault(name, [])
            if value not in values[name]:
                values[name].append(value)
        parent = track.open_parent(
            run.track,
            f"sweep {sweep.name}",
            {k: ",".join(v) for k, v in values.items()},
            {"sweep": "parent", **track.source_tags(Path(__file__).parent)},
        )
        if parent:
            (sweep / track.IDENTITY).write_text(json.dumps({"uri": uri, "run_id": parent}) + "\n")
        return parent


Processes.__module__ = "hydra_plugins.resnet"  # see compose.register()


def process(out: Path) -> int:
    """Train the run of `out` in a fresh process and wait; its exit status, negative for a signal."""
    child = subprocess.Popen([sys.executable, "-m", "resnet.rank", str(out)])
    try:
        return child.wait()
    except KeyboardInterrupt:  # the terminal has told the child as well: let it save
        child.send_signal(signal.SIGINT) if child.poll() is None and not sys.stdin.isatty() else None
        child.wait()
        raise


def returned(overrides: Sequence[str], code: int, made: dict[str, Any] | None) -> JobReturn:
    """A job's end in Hydra's words; its value, for an optimising sweeper, is top-1."""
    job = JobReturn(overrides=overrides)
    job.status = JobStatus.FAILED if code else JobStatus.COMPLETED
    job.return_value = RuntimeError(f"exit status {code}") if code else (made or {}).get("eval/top1")
    return job


def table(jobs: Sequence[tuple[Run, list[str]]]) -> str:
    """Markdown: every job, the best top-1 first, those without one last."""
    rows = []
    for number, (run, overrides) in enumerate(jobs):
        made = result.read(Path(run.out)) or {}
        top1, speed = made.get("eval/top1"), made.get("final/images_per_s")
        rows.append(
            (
                -1.0 if top1 is None else top1,
                number,
                [
                    str(number),
                    " ".join(overrides),
                    "-" if top1 is None else f"{100 * top1:.2f} %",
                    "-" if speed is None else f"{speed:,.1f}",
                    made.get("status", "failed"),
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
