"""Everything that a run reports: metrics.jsonl and MLflow, the terminal, MLPerf's log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resnet.cli import Stopped
from resnet.config.fingerprint import flat
from resnet.config.run import Run
from resnet.data.source import Source, described
from resnet.distributed.ranks import Ranks
from resnet.optim.schedule import Plan
from resnet.track import provenance
from resnet.track.tracker import NullTracker, Tracker
from resnet.training import mlperf, profiling, progress
from resnet.training.evaluation import Results
from resnet.training.meter import Reading
from resnet.training.state import TrainState, metrics


class RunLog:
    """Context of a run; on ranks other than 0 it reports nothing. Its exit sets the run's status: FINISHED, KILLED or FAILED."""

    def __init__(
        self, run: Run, out: Path, plan: Plan, source: Source, state: TrainState, ranks: Ranks, mlperf_log: mlperf.Log
    ) -> None:
        self.run, self.out, self.plan, self.source, self.state, self.ranks = run, out, plan, source, state, ranks
        self.mlperf = mlperf_log
        self.corrupt = 0  # records reported so far
        self.tracker: Tracker | NullTracker = NullTracker()
        if ranks.primary:
            tags = provenance.tags(run, ranks.device)
            self.tracker = Tracker(out, run.track, flat(run), tags, described(source), provenance.WRITERS)
        console = None if ranks.primary else progress.null_console()
        self.display = progress.Display(plan.total_steps, run.epochs, console)
        self.say: Callable[[str], None] = self.display.print
        self.metrics, self.artifact = self.tracker.log, self.tracker.artifact

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        stopped = kind is not None and issubclass(kind, (Stopped, KeyboardInterrupt))
        self.mlperf.end(finished=False)
        self.display.close()
        if trouble := self.tracker.close("FINISHED" if kind is None else "KILLED" if stopped else "FAILED"):
            self.say(trouble)

    def start(self, notes: list[str], eval_images: int) -> None:
        """Before the first image is read: what is about to happen, and `notes` of the restored state."""
        lines = progress.headline(self.run, self.plan, self.source, self.ranks.device, self.state.step)
        timed = self.mlperf.begin(self.plan, self.state.step, self.source.train_images, eval_images)
        for line in (*lines, *self.ranks.warnings, *notes, *timed):
            self.say(line)

    def advance(self, step: int) -> None:
        self.display.advance(step)

    def train(self, step: int, reading: Reading, skipped: dict[str, float | None]) -> None:
        """What the meter has read; `skipped` is the metric of skipped updates, if any."""
        epoch, lr = self.plan.epoch(step), float(self.plan.lr(step - 1)) * self.state.progress.lr_scale
        values = {
            "train/loss": reading.loss,
            "train/top1": reading.top1,
            "train/top5": reading.top5 if self.run.data.classes > 5 else None,  # else it is 1
            "train/lr": lr,
            "train/images_per_s": reading.images_per_s,
            "train/data_wait": reading.data_wait,
            "train/epoch": epoch,
            "train/images": step * self.run.batch,
        }
        self.metrics(step, {**values, **self.corrupt_records(), **skipped})
        self.display.train_line(step, epoch, reading.loss, lr, reading.images_per_s, reading.data_wait, reading.top1)

    def corrupt_records(self) -> dict[str, float | None]:
        """The metric of records that data.on_corrupt=skip has skipped, if any; each is reported once."""
        lines = self.source.corrupt()
        for line in lines[self.corrupt :]:
            self.say(f"data.on_corrupt=skip: {line}")
        self.corrupt = len(lines)
        return {"data/corrupt_records": len(lines)} if lines else {}

    def evaluation(self, evaluate: Callable[[], Results]) -> None:
        """Evaluate the weights as they are, record and report the results. Every rank calls it."""
        state, step = self.state, self.state.step
        self.mlperf.evaluating(step)
        result, averaged = evaluate()
        self.mlperf.evaluated(step, (averaged or result).top1)
        state.progress = state.progress.record_evaluation(step, result, averaged)
        best = {"best/top1": state.progress.best_top1}
        self.metrics(step, {**metrics("eval", result), **metrics("ema", averaged), **best})
        self.display.evaluation_lines(step, self.plan.epoch(step), result, averaged)

    @contextlib.contextmanager
    def finishing_profile(self, profiler: profiling.Profiler) -> Iterator[None]:
        """At the end report a profile that was cut short."""
        try:
            yield
        finally:
            with contextlib.suppress(Exception):  # it must not hide how the run ended
                self.profile(profiler.end(self.state.step))

    def profile(self, rows: list[profiling.Row]) -> None:
        """The table of a profile, if there is one."""
        if rows:
            self.say(profiling.as_line(rows, self.out / profiling.FOLDER))
            self.artifact(self.out / profiling.FOLDER / profiling.TABLE)

    def result(self, path: Path, content: dict[str, Any]) -> None:
        """The final metrics, and the file of the result."""
        self.artifact(path)
        if "final/time_to_train_minutes" in content:
            self.artifact(self.out / mlperf.FILE)
