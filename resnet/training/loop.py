"""The loop: one run, from its configuration to its result."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet import files
from resnet.cli import Stopped

if TYPE_CHECKING:
    from resnet.config.run import Run


def train(run: Run, out: Path, stalled: Callable[[str], object] = print) -> dict[str, Any]:
    """Train `run` in the folder `out`, going on from its newest checkpoint if there is one.

    With several ranks each of them calls it. `stalled` is told before a run that makes no progress ends its process. Returns
    what it also writes to <out>/result.json. Raises UserError for what the user can mend, Stopped after a signal.
    """
    import numpy as np
    import tensorflow as tf

    from resnet import rundir
    from resnet.config import fingerprint
    from resnet.config.track import Mlflow
    from resnet.config.training import NanPolicy
    from resnet.data import augment, pipeline, source
    from resnet.distributed import device as machine
    from resnet.optim import schedule
    from resnet.rundir import result
    from resnet.track import provenance
    from resnet.track import tracker as track
    from resnet.training import checkpoint, evaluation, lr_find, mlperf, nonfinite, profiling, progress, state, step
    from resnet.training.meter import Meter, NotFinite
    from resnet.training.signals import Signals
    from resnet.training.watchdog import Watchdog

    began = time.monotonic()
    ranks = machine.init(run.cluster, run.dtype)
    first = ranks.rank == 0
    mllog = mlperf.open_log(run, out, ranks)
    machine.seed(run.seed)
    images = source.open_source(run.data)
    plan = schedule.plan(run, images.train_images)
    ranks.assert_same(
        {
            "fingerprint": fingerprint.fingerprint(run),
            "training images": images.train_images,
            "evaluation images": images.eval_images,
            "TensorFlow": tf.__version__,
        }
    )
    if first:
        rundir.claim(run, out)
        if (names := source.class_names(run.data)) and len(names) == run.data.classes:
            files.write_classes(out, names)
    eval_images = min(images.eval_images, (run.eval_steps or images.eval_images) * run.batch)

    trained = state.build(run, ranks)
    saved, notes = state.begin(trained, run, out, ranks)
    done, standing = (saved.step, state.Progress(**saved.state)) if saved else (0, state.Progress())

    eval_batches = pipeline.evaluation(images, run.local_batch, run.eval_steps, ranks.rank, ranks.size)
    tags = provenance.tags(run, ranks.device)
    tracker = (
        track.Tracker(out, run.track, fingerprint.flat(run), tags, source.described(images), provenance.FILES)
        if first
        else track.NullTracker()
    )
    display = progress.Display(plan.total_steps, done, run.epochs, None if first else progress.null_console())
    timed = mllog.begin(plan, done, images.train_images, eval_images)
    for line in (*progress.headline(run, plan, images, ranks.device, done), *ranks.warnings, *notes, *timed):
        display.say(line)
    rescue = nonfinite.Recovery(run, out, ranks, trained.stored, trained.state, display, tracker)
    earlier = standing.minutes
    asked, watch, status = Signals(), Watchdog(run.cluster.stall_s, ranks.rank, stalled), "FAILED"
    writer = checkpoint.CheckpointWriter(out, trained.stored, run.keep_checkpoints)
    watched = profiling.Profiler(run.profile_steps if first else None, out)

    def ready(start: int) -> tuple[Any, Callable[[Any, Any, Any, Any], Any]]:
        """(batches, graph that trains on them) from step `start` on."""
        size, parts = plan.size(start), run.cluster.gradient_accumulation
        dataset = pipeline.train(images, run.batch, run.seed, start, ranks.rank, ranks.size, size, parts)
        batches = iter(machine.prefetch_to_device(dataset, run.cluster))
        return batches, step.compiled(trained.network, trained.optimizer, run, ranks, batches.element_spec)

    def range_test() -> dict[str, Any]:
        """What `lr_find=true` does instead of training; the result."""
        batches, train_steps = ready(0)

        def loss_at(number: int, lr: float) -> float:
            ratios = augment.mix_ratios(run.mixup, run.seed, range(number, number + 1))
            flag = tf.constant(float(asked.stop))
            losses, flag = train_steps(batches, tf.constant([lr], tf.float32), tf.constant(ratios), flag)
            watch.alive()
            if asked.agreed(flag, ranks.size):
                raise Stopped("a range test keeps nothing; start it again")
            return float(ranks.allreduce_sum(losses.numpy().astype(np.float64))[0] / ranks.size)

        came = lr_find.run(run, out if first else None, loss_at, plan.total_steps, tracker, display)
        came["fingerprint"] = fingerprint.fingerprint(run)
        ranks.barrier()
        if first:
            tracker.artifact(result.write(out, came))
        return came

    def profiled(rows: list[profiling.Row]) -> None:
        """Tell and keep what a profile has shown, if it is there."""
        if rows:
            display.say(profiling.told(rows, watched.folder))
            tracker.artifact(watched.folder / profiling.TABLE)

    def metered() -> Meter:
        """A meter of what comes after `done`."""
        skips = run.on_nan.policy is NanPolicy.skip
        return Meter(done, run.batch, over_ranks=lambda losses: ranks.allreduce_sum(losses) / ranks.size, skips=skips)

    told: deque[evaluation.Predictions] = deque(maxlen=1)  # of the newest evaluation, of this rank's images

    def expected() -> int:
        """Images an evaluation must have seen, over all ranks."""
        return eval_images - int(ranks.allreduce_sum(np.array([images.lost(eval_images)], np.float64))[0])

    def scored() -> tuple[evaluation.EvalResult, evaluation.EvalResult | None]:
        """Of the weights as they are, and of their average; the answers are in `told`."""
        sides = len(trained.networks)
        return evaluation.evaluate(
            watch.over(eval_batches), trained.evaluate, expected, sides, ranks.allreduce_sum, told.append
        )

    def judge(standing: state.Progress) -> state.Progress:
        """Evaluate the weights as they are, and their average."""
        mllog.evaluating(done)
        found, averaged = scored()
        mllog.evaluated(done, (averaged or found).top1)
        standing = standing.judged(found, done, averaged)
        tracker.log(
            done, {**state.metrics("eval", found), **state.metrics("ema", averaged), "best/top1": standing.best_top1}
        )
        display.scores(done, plan.epoch(done), found, averaged)
        return standing

    def minutes() -> float:
        """Of this start and those before it."""
        return earlier + (time.monotonic() - began) / 60

    def keep(standing: state.Progress) -> checkpoint.Saved:
        """Write a checkpoint of the weights as they are; rank 0 does."""
        top1, standing = standing.top1(done), replace(standing, minutes=minutes())
        if first:
            return writer.save(done, top1, standing)
        return checkpoint.Saved(checkpoint.path_of(out, done), done, top1, {})

    try:
        with asked, watch, machine.device_scope(run.cluster), writer:
            if run.lr_find:
                came = range_test()
                status = "FINISHED"
                return came
            if saved and done and plan.evaluates(done) and standing.scored_at != done:  # ended before its evaluation
                standing = judge(standing)
                saved = checkpoint.amend(saved, standing.top1(done), standing) if first else saved
            if not saved and run.on_nan.policy is NanPolicy.rollback:
                saved = keep(standing)  # to go back to
            meter = metered()
            while done < plan.total_steps and not standing.reached(run.stop_at_top1, done):
                start, end = next(plan.calls(done))
                mllog.training(start)
                if meter.calls == 0 or plan.resizes(start):
                    batches, train_steps = ready(start)
                    meter.rebuilt()
                lrs = plan.lr(np.arange(start, end)) * standing.lr_scale
                ratios = augment.mix_ratios(run.mixup, run.seed, range(start, end))
                flag = tf.constant(float(asked.stop))
                watched.before(start, end)
                losses, flag = train_steps(batches, tf.constant(lrs, tf.float32), tf.constant(ratios), flag)
                meter.add(losses)
                stop = asked.agreed(flag, ranks.size)
                watch.alive()
                done = end
                if trained.average and plan.averages(done):
                    trained.average.follow(
                        tf.constant(schedule.ema_decay(run.ema.kept, run.ema.every_steps, done), tf.float32)
                    )
                display.move(done)
                profiled(watched.after(done, losses))
                pauses = plan.saves(done) or stop
                if pauses or plan.logs(start, done) or meter.calls == 1 or plan.resizes(done):
                    try:
                        loss, speed = meter.read()
                        if pauses:
                            ranks.average_variables(trained.statistics)
                            rescue.check(done - 1)
                    except NotFinite as error:
                        writer.wait()
                        saved, standing = rescue.back(error, standing)
                        done = saved.step
                        meter = metered()
                        continue
                    standing, skipped = rescue.left_out(standing, meter.skipped)
                    tracker.log(
                        done,
                        {
                            "train/loss": loss,
                            "train/lr": float(lrs[-1]),
                            "train/images_per_s": speed,
                            "train/epoch": plan.epoch(done),
                            "train/images": done * run.batch,
                            **corrupt(images, display),
                            **skipped,
                        },
                    )
                    display.step(done, plan.epoch(done), loss, float(lrs[-1]), speed)
                if pauses:
                    standing = standing.timed(*meter.take())
                    if plan.evaluates(done) and not stop:
                        standing = judge(standing)
                    saved = keep(standing)
                    meter.resume()
                if stop and saved:
                    writer.wait()
                    raise Stopped(
                        f"saved {saved.path.name}; go on with: python -m resnet.train resume={shlex.quote(str(out))}"
                    )
            pictured = isinstance(run.track, Mlflow) and standing.scored_at == done
            if pictured and not told:  # an earlier start ended after its last checkpoint, and its answers went with it
                scored()
        mark = fingerprint.fingerprint(run)
        came = state.summary(run, standing, done, plan.epoch(done), minutes(), mark, mllog.end(finished=True))
        tracker.log(done, {name: value for name, value in came.items() if name.startswith("final/")})
        answers = told[0].gathered(eval_images, ranks.rank, ranks.size, ranks.allreduce_sum) if pictured else None
        ranks.barrier()
        if first and isinstance(run.track, Mlflow):
            from resnet.training import artifacts  # with matplotlib: nothing that the first step should wait for

            settings = run.track
            for line in artifacts.make(
                run, out, images, answers, tracker, artifacts.wants_model(settings), settings.register
            ):
                display.say(line)
        if first:  # last: a start that finds it makes nothing of the above
            tracker.artifact(result.write(out, came))
        if "final/time_to_train_minutes" in came:
            tracker.artifact(out / mlperf.FILE)
        status = "FINISHED"
    except NotFinite as error:
        lr = float(plan.lr(error.step)) * standing.lr_scale
        raise rescue.ended(error, lr, saved, standing) from None
    except (Stopped, KeyboardInterrupt):
        status = "KILLED"
        raise
    except tf.errors.OpError:
        # A reading thread's error, of which TensorFlow passes on only the text; or an image that its decoder refused.
        fault = images.fault or pipeline.undecodable(images, run.seed, done, run.batch)
        if fault:
            raise fault from None
        raise
    finally:
        with contextlib.suppress(Exception):  # a profile cut short is worth no other ending
            profiled(watched.end(done))
        mllog.end(finished=False)
        display.close()
        if trouble := tracker.close(status):
            display.say(trouble)
    return came


def corrupt(images: Any, display: Any) -> dict[str, float | None]:
    """The metric of records passed over, if any; each is told once."""
    told = images.corrupt()
    for line in told[images.told :]:
        display.say(f"data.on_corrupt=skip: {line}")
    images.told = len(told)
    return {"data/corrupt_records": len(told)} if told else {}
