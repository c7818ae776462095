"""A sweep that runs: its folder, its study, its run in MLflow, and what becomes of each job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from hydra.core.override_parser.types import Override

from resnet import UserError, cli, files, rundir, shell
from resnet.config import fingerprint
from resnet.config.sweep import Sweep
from resnet.config.track import Mlflow
from resnet.launch import supervisor
from resnet.launch.forked import LOST
from resnet.launch.supervisor import ignoring_mlflow_errors
from resnet.rundir import lock, result
from resnet.sweep import live, local, pictures, slurm, study
from resnet.sweep.argv import BEST, RESUME, save_argv, save_best
from resnet.sweep.job import Job, best, table
from resnet.sweep.places import Place, Places
from resnet.sweep.pool import Pool, Process
from resnet.track import provenance, store, sync

open_sweeps: list[Execution] = []  # the sweep of this process, once it has a folder


class Execution:
    """The jobs of a sweep, as the pool runs them."""

    def __init__(
        self,
        settings: Sweep,
        space: Mapping[str, Override],
        jobs: Sequence[Job],
        compose: Callable[[list[str], int], Job],
        places: Places,
        queue: slurm.Queue | None,
    ) -> None:
        """`space` has what varies; `jobs` are those of a grid, or samples of a search, which composes its own.

        Claims the folder, and makes the MLflow run that the jobs nest under, whose parameters are what varies.
        """
        self.settings, self.space, self.compose = settings, space, compose
        self.places, self.queue = places, queue
        self.planned = list(jobs)
        self.jobs: list[Job] = []  # in the order of their starts
        self.failed: list[str] = []  # a line for each job that did not end well
        self.out, self.track = jobs[0].out.parent, jobs[0].run.track
        self.stack = ExitStack()  # the lock of the folder
        self.stack.enter_context(lock.hold(self.out))
        with files.writing_to(self.out):
            save_argv(self.out)
        searches = settings.sampler is not None
        self.study = study.Study(settings, space, jobs[0].run.seed, self.out) if searches else None
        open_sweeps.append(self)
        params = {name: str(override.input_line).partition("=")[2] for name, override in space.items()}
        tags = {"sweep": "parent", **provenance.source_tags(Path(__file__).parent)}
        name = f"sweep {self.out.name}"
        self.parent: str | None  # MLflow's id of the sweep
        self.parent = ignoring_mlflow_errors(store.start_parent, self.out, self.track, name, params, tags)
        self.display = live.Display(settings.trials if searches else len(jobs)) if places.jobs > 1 else None
        if queue:
            slurm.write_script(self.out)

    def run(self) -> None:
        """Run the jobs; one that fails does not stop the others. `close` reports at the end."""
        Pool(self.places, self).run(self.planned if self.study is None else self.unfinished())

    def close(self, status: str) -> None:
        """Leave the table on the terminal, in the folder and in MLflow. Raises UserError for a folder that is full."""
        if self.display:
            self.display.close()
        summary = table(self.jobs, self.settings.goals)
        print(f"\n{summary}\n\nsweep folder: {self.out}", flush=True)
        if status != "FINISHED":
            resume = shell.command("resnet.train", shell.override(RESUME, self.out))
            print(f"resume, without the jobs that finished: {resume}", flush=True)
        goals, winner = self.settings.goals, best(self.jobs, self.settings.goals[0])
        try:
            with files.writing_to(self.out):
                files.write_text(self.out / "summary.md", summary + "\n")
                if winner:
                    save_best(self.out, winner.varying, winner.number)
                pictures.parallel_coordinates(self.jobs, list(self.space), goals, self.out)
                pictures.importances(self.study.importances() if self.study else {}, goals[0], self.out)
        finally:
            paths = [self.out / name for name in ("summary.md", pictures.PARALLEL, pictures.IMPORTANCES)]
            if winner:
                paths += [self.out / BEST, winner.out / "config.yaml"]
                ignoring_mlflow_errors(store.set_tags, self.track, self.parent, {"sweep.best": winner.name})
            artifacts = tuple(path for path in paths if path.exists())
            ignoring_mlflow_errors(store.close_run, self.track, self.parent, status, artifacts=artifacts)
            self.stack.close()

    # ---------------------------------------------------------------------------------------------------------- for the pool
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
            check_folder(job, self.queue)
        return left

    def more(self) -> Job | None:
        """The next job of a search."""
        while self.study and (trial := self.study.ask()):
            if job := self.of_trial(*trial):
                self.places.check(job.run, job.name)
                check_folder(job, self.queue)
                return job
        return None

    def of_trial(self, number: int, words: list[str], code: int | None = None) -> Job | None:
        """The job of a trial; None for values that do not go together, which counts as a failed job."""
        assert self.study
        try:
            return self.compose(words, number)
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
            with files.writing_to(job.out):
                files.write_text(job.out / result.PRUNE, "")
        return prune

    def finish(self, job: Job) -> None:
        job.follow()
        if job.code == LOST and result.read(job.out):
            job.code = cli.DONE
        if self.study and job.code not in (cli.STOPPED, cli.INTERRUPTED, LOST):  # these go on when the search does
            self.study.tell(job.number, job.result, pruned=job.code == cli.PRUNED)
        if job.code == cli.PRUNED:
            ignoring_mlflow_errors(
                store.set_tags, job.run.track, supervisor.mlflow_run(job.run, job.out), {"pruned": "true"}
            )
        if job.code in (cli.DONE, cli.PRUNED):
            top1 = "" if job.top1 is None else f", top-1 {100 * job.top1:.2f} %"
            self.line(f"{job.name}: {job.status}{top1}")
            return
        assert job.code is not None
        if self.display:
            self.line(f"{job.name}: exit status {job.code}, {job.log}")
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


def check_folder(job: Job, queue: slurm.Queue | None) -> None:
    """Raise UserError for a job whose folder is another run's, or in which it still trains, though its sweep was killed."""
    rundir.check_folder(job.run, job.out)
    if queue:
        queue.check(job)
    if (job.out / lock.FILE).exists() and not (queue and queue.find(job)):
        with lock.hold(job.out):
            pass
