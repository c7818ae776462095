"""The loop: one run, from its configuration to its result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from resnet import rundir, shell
from resnet.cli import Stopped
from resnet.config.fingerprint import fingerprint
from resnet.config.run import Run
from resnet.config.track import Mlflow
from resnet.config.training import NanPolicy
from resnet.data import classes, reading
from resnet.data import source as sources
from resnet.distributed import device
from resnet.optim import schedule
from resnet.rundir import result
from resnet.training import artifacts, checkpoint, lr_find, mlperf
from resnet.training.checkpoint import CheckpointWriter
from resnet.training.evaluation import Evaluator
from resnet.training.meter import Meter, NotFinite
from resnet.training.nonfinite import NanHandler
from resnet.training.profiling import Profiler
from resnet.training.run_log import RunLog
from resnet.training.signals import Signals
from resnet.training.state import TrainState, summary
from resnet.training.step import TrainStep
from resnet.training.watchdog import Watchdog


def train(
    run: Run, out: Path, on_stall: Callable[[str], object] = print, make_step: type[TrainStep] = TrainStep
) -> dict[str, Any]:
    """Train `run` in the folder `out`, resuming from its newest checkpoint. Every rank calls it.

    `on_stall` is called before a run without progress ends its process. Returns the content of result.json. Raises UserError
    for what the user can fix, Stopped after a signal.
    """
    # ------------------------------------------------------------------------------------------------------------ set-up
    started = time.monotonic()
    ranks = device.init(run.cluster, run.dtype)
    mlperf_log = mlperf.open_log(run, out, ranks)
    tf.keras.utils.set_random_seed(run.seed)
    source = sources.open_source(run.data)
    plan = schedule.plan(run, source.train_images)  # the one place where epochs become steps
    images = {"training images": source.train_images, "evaluation images": source.eval_images}
    ranks.assert_same({"fingerprint": fingerprint(run), **images, "TensorFlow": tf.__version__})
    if ranks.primary:
        rundir.claim(run, out)
        classes.write(out, run.data)
    state = TrainState(run, ranks, started)
    notes = classes.notes(source) + state.restore(out)  # newest good checkpoint, else init=, else fresh weights
    train_step = make_step(run, plan, source, state, ranks)
    watchdog = Watchdog(run.cluster.stall_s, ranks.rank, on_stall)
    signals = Signals(watchdog.hurry)
    evaluate = Evaluator(run, source, state.networks, ranks, watchdog)
    checkpoints = CheckpointWriter(out, state.trackable, run.keep_checkpoints)
    profiler = Profiler(run.profile_steps if ranks.primary else None, out)
    meter = Meter(state.step, run.batch, ranks, run.on_nan.policy is NanPolicy.skip)
    reads = reading.reading(source, run.seed, run.batch, state)
    log = RunLog(run, out, plan, source, state, ranks, mlperf_log)
    nan_handler = NanHandler(run, out, plan, state, log)

    with log:
        log.start(notes, evaluate.images)
        with (
            signals,
            watchdog,
            device.device_scope(run.cluster),
            checkpoints,
            log.finishing_profile(profiler),
            contextlib.closing(train_step),
            reads,
        ):
            if run.lr_find:
                return lr_find.run(run, out, train_step, plan, signals, watchdog, log)
            if state.step and plan.evaluates(state.step) and not state.evaluated:  # killed before its evaluation
                log.evaluation(evaluate)
                state.amend()
            if not state.saved and run.on_nan.policy is NanPolicy.rollback:
                state.save(checkpoints)  # to roll back to
            # ------------------------------------------------------------------------------------------------------ loop
            while state.step < plan.total_steps and not state.reached(run.stop_at_top1):
                first, last = plan.next_call(state.step)
                mlperf_log.training(first)
                if train_step.prepare(first):
                    meter.skip_first_call()
                profiler.before(first, last)
                figures, flag = train_step.train(*train_step.inputs(first, last), signals.flag)
                meter.add(figures)  # the device may still be working
                stop = signals.agree(flag, ranks.size)
                watchdog.reset()
                state.step = last
                if state.ema and plan.averages(last):
                    state.ema.update(tf.constant(plan.decay(last), tf.float32))
                log.advance(last)
                log.profile(profiler.after(last, figures))
                save = plan.saves(last) or stop
                if save or plan.logs(first, last) or meter.first_call:
                    try:
                        measured = meter.read(train_step.data_wait.take)  # waits for the device
                        if save:
                            by_rank = state.average_statistics()
                            state.assert_finite()
                    except NotFinite as error:
                        nan_handler.roll_back(error, checkpoints)  # or raises UserError
                        meter = Meter(state.step, run.batch, ranks)
                        continue
                    log.train(last, measured, nan_handler.count_skipped(measured))
                if save:
                    state.progress = state.progress.add_time(*meter.take())
                    if plan.evaluates(last) and not stop:
                        log.evaluation(evaluate)
                    state.save(checkpoints, None if plan.saves(last) else by_rank)
                    meter.resume()
                if stop:
                    checkpoints.wait()
                    way = shell.command("resnet.train", shell.override("resume", out))
                    raise Stopped(f"saved {checkpoint.path_of(out, last).name}; resume with: {way}")
            predictions = evaluate.predictions() if isinstance(run.track, Mlflow) and state.evaluated else None
        # -------------------------------------------------------------------------------------------------------- result
        to_train = mlperf_log.end(finished=True)
        state.record_time()
        content = summary(state, plan.epoch(state.step), fingerprint(run), to_train)
        log.metrics(state.step, {name: value for name, value in content.items() if name.startswith("final/")})
        ranks.barrier()
        if ranks.primary:
            artifacts.make(run, out, source, predictions, log)  # a failure costs a line, not the run
            log.result(result.write(out, content), content)  # last: a folder that has it is finished
        return content
