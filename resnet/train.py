"""`python -m resnet.train`: the entry point, and the one loop."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet import UserError
from resnet.roster import DONE, FAILED, INTERRUPTED, STOPPED, Failed, Stopped

if TYPE_CHECKING:
    from resnet.config import Run


def train(run: Run, out: Path, stalled: Callable[[str], object] = print) -> dict[str, Any]:
    """Train `run` in the folder `out`, going on from its newest checkpoint if there is one.

    With several ranks each of them calls it. `stalled` is told before a run that makes no progress ends its process. Returns
    what it also writes to <out>/result.json. Raises UserError for what the user can mend, Stopped after a signal.
    """
    import numpy as np
    import tensorflow as tf

    from resnet import (
        augment,
        checkpoint,
        comparison,
        data,
        learner,
        lr_find,
        mlperf,
        profiler,
        progress,
        recovery,
        result,
        run_folder,
        schedule,
        scores,
        source,
        step,
        surroundings,
        track,
    )
    from resnet import device as machine
    from resnet.meter import Meter, NotFinite
    from resnet.preparation import manifest
    from resnet.settings.extras import NanPolicy
    from resnet.settings.track import Mlflow
    from resnet.signals import Signals
    from resnet.watchdog import Watchdog

    began = time.monotonic()
    world = machine.up(run.cluster, run.dtype)
    first = world.rank == 0
    mllog = mlperf.opened(run, out, world)
    machine.seed(run.seed)
    images = source.opened(run.data)
    plan = schedule.plan(run, images.train_images)
    world.check_alike({"fingerprint": comparison.fingerprint(run), "training images": images.train_images,
                       "evaluation images": images.eval_images, "TensorFlow": tf.__version__})  # fmt: skip
    if first:
        run_folder.claim(run, out)
        if (names := source.class_names(run.data)) and len(names) == run.data.classes:
            manifest.write_classes(out, names)
    eval_images = min(images.eval_images, (run.eval_steps or images.eval_images) * run.batch)

    trained = learner.build(run, world)
    saved, notes = learner.begin(trained, run, out, world)
    done, standing = (saved.step, result.Standing(**saved.state)) if saved else (0, result.Standing())

    eval_batches = data.evaluation(images, run.local_batch, run.eval_steps, world.rank, world.ranks)
    tags = surroundings.tags(run, world.device)
    tracker = (
        track.Tracker(out, run.track, comparison.flat(run), tags, source.described(images), surroundings.FILES)
        if first
        else track.Nobody()
    )
    display = progress.Display(plan.total_steps, done, run.epochs, None if first else progress.nobody())
    timed = mllog.begin(plan, done, images.train_images, eval_images)
    for line in (*progress.headline(run, plan, images, world.device, done), *world.warnings, *notes, *timed):
        display.say(line)
    rescue = recovery.Recovery(run, out, world, trained.stored, trained.state, display, tracker)
    earlier = standing.minutes
    asked, watch, status = Signals(), Watchdog(run.cluster.stall_s, world.rank, stalled), "FAILED"
    writer = checkpoint.Writer(out, trained.stored, run.keep_checkpoints)
    watched = profiler.Profiler(run.profile_steps if first else None, out)

    def ready(start: int) -> tuple[Any, Callable[[Any, Any, Any, Any], Any]]:
        """(batches, graph that trains on them) from step `start` on."""
        size, parts = plan.size(start), run.cluster.gradient_accumulation
        dataset = data.train(images, run.batch, run.seed, start, world.rank, world.ranks, size, parts)
        batches = iter(machine.ahead(dataset, run.cluster))
        return batches, step.compiled(trained.network, trained.optimizer, run, world, batches.element_spec)

    def range_test() -> dict[str, Any]:
        """What `lr_find=true` does instead of training; the result."""
        batches, train_steps = ready(0)

        def loss_at(number: int, lr: float) -> float:
            ratios = augment.mix_ratios(run.mixup, run.seed, range(number, number + 1))
            flag = tf.constant(float(asked.stop))
            losses, flag = train_steps(batches, tf.constant([lr], tf.float32), tf.constant(ratios), flag)
            watch.alive()
            if asked.agreed(flag, world.ranks):
                raise Stopped("a range test keeps nothing; start it again")
            return float(world.sum(losses.numpy().astype(np.float64))[0] / world.ranks)

        came = lr_find.conduct(run, out if first else None, loss_at, plan.total_steps, tracker, display)
        came["fingerprint"] = comparison.fingerprint(run)
        world.wait()
        if first:
            tracker.artifact(result.write(out, came))
        return came

    def profiled(rows: list[profiler.Row]) -> None:
        """Tell and keep what a profile has shown, if it is there."""
        if rows:
            display.say(profiler.told(rows, watched.folder))
            tracker.artifact(watched.folder / profiler.TABLE)

    def metered() -> Meter:
        """A meter of what comes after `done`."""
        skips = run.on_nan.policy is NanPolicy.skip
        return Meter(done, run.batch, over_ranks=lambda losses: world.sum(losses) / world.ranks, skips=skips)

    told: deque[scores.Answers] = deque(maxlen=1)  # of the newest evaluation, of this rank's images

    def expected() -> int:
        """Images an evaluation must have seen, over all ranks."""
        return eval_images - int(world.sum(np.array([images.lost(eval_images)], np.float64))[0])

    def scored() -> tuple[scores.Scores, scores.Scores | None]:
        """Of the weights as they are, and of their average; the answers are in `told`."""
        sides = len(trained.networks)
        return scores.over(watch.over(eval_batches), trained.evaluate, expected, sides, world.sum, told.append)

    def judge(standing: result.Standing) -> result.Standing:
        """Evaluate the weights as they are, and their average."""
        mllog.evaluating(done)
        found, averaged = scored()
        mllog.evaluated(done, (averaged or found).top1)
        standing = standing.judged(found, done, averaged)
        tracker.log(done, {**result.metrics("eval", found), **result.metrics("ema", averaged),
                           "best/top1": standing.best_top1})  # fmt: skip
        display.scores(done, plan.epoch(done), found, averaged)
        return standing

    def minutes() -> float:
        """Of this start and those before it."""
        return earlier + (time.monotonic() - began) / 60

    def keep(standing: result.Standing) -> checkpoint.Saved:
        """Write a checkpoint of the weights as they are; rank 0 does."""
        top1, standing = standing.top1(done), replace(standing, minutes=minutes())
        if first:
            return writer.save(done, top1, standing)
        return checkpoint.Saved(checkpoint.place(out, done), done, top1, {})

    try:
        with asked, watch, machine.place(run.cluster), writer:
            if run.lr_find:
                came = range_test()
                status = "FINISHED"
                return came
            if saved and done and plan.evaluates(done) and standing.scored_at != done:  # ended before its evaluation
                standing = judge(standing)
                saved = checkpoint.amended(saved, standing.top1(done), standing) if first else saved
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
                stop = asked.agreed(flag, world.ranks)
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
                            world.level(trained.statistics)
                            rescue.check(done - 1)
                    except NotFinite as error:
                        writer.wait()
                        saved, standing = rescue.back(error, standing)
                        done = saved.step
                        meter = metered()
                        continue
                    standing, skipped = rescue.left_out(standing, meter.skipped)
                    tracker.log(done, {"train/loss": loss, "train/lr": float(lrs[-1]), "train/images_per_s": speed,
                                       "train/epoch": plan.epoch(done), "train/images": done * run.batch,
                                       **corrupt(images, display), **skipped})  # fmt: skip
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
        mark = comparison.fingerprint(run)
        came = result.conclusion(run, standing, done, plan.epoch(done), minutes(), mark, mllog.end(finished=True))
        tracker.log(done, {name: value for name, value in came.items() if name.startswith("final/")})
        answers = told[0].gathered(eval_images, world.rank, world.ranks, world.sum) if pictured else None
        world.wait()
        if first and isinstance(run.track, Mlflow):
            from resnet import keepsakes  # with matplotlib: nothing that the first step should wait for

            settings = run.track
            for line in keepsakes.make(
                run, out, images, answers, tracker, keepsakes.wants_model(settings), settings.register
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
        fault = images.fault or data.undecodable(images, run.seed, done, run.batch)
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


# ----------------------------------------------------------------------------------------------------- entry point
def go(run: Run, out: Path) -> None:
    """Train, here or in ranks, unless this folder holds the result already; either way, show it."""
    from resnet import comparison, lock, lr_find, orphans, progress, ranks, result, starter

    if run.cluster.dry_run:
        print(starter.shown(run, out))
        return
    starter.check_outside(run.cluster)
    made = result.read(out)
    if made and made.get("fingerprint") == comparison.fingerprint(run):
        print(f"{out}: this run has finished already")
    elif starter.needed(run.cluster):
        made = ranks.run(run, out)
    else:
        starter.check(run)
        os.environ.update(starter.device_environment(run))
        with lock.held(out):
            orphans.end(out)
            made = train(run, out)
    if run.lr_find:
        print(lr_find.told(made))
    else:
        progress.report(made, getattr(run.track, "uri", None))


def start() -> None:
    """Hydra composes and steps aside; what follows runs outside of it."""
    import hydra

    from resnet import complaints, compose, launch, paths, run_folder

    composed: list[Run | UserError] = []

    def keep(config: Any) -> None:
        try:
            with complaints.explained():
                composed.append(run_folder.resumed(config) if config.resume else compose.freeze(config))
        except UserError as error:  # raised below: Hydra would add lines of its own
            composed.append(error)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come out of Hydra whole; reported() makes a line of them
    compose.register()
    sys.argv[1:] = launch.resumed(sys.argv[1:])
    with launch.ended():
        hydra.main(version_base="1.3", config_path=str(paths.tree("conf")), config_name="config")(keep)()
    for run in composed:  # none after --help, --cfg or a sweep
        if isinstance(run, UserError):
            raise run
        from resnet import schedule, source  # and NumPy, which an answer to --help or to a typo need not wait for

        run_folder.check_folder(run, Path(run.out))
        run_folder.check_init(run)
        if not run.cluster.dry_run:
            schedule.plan(
                run, source.opened(run.data).train_images
            )  # what can be refused before TensorFlow is imported
        go(run, Path(run.out))


def reported(work: Callable[[], object]) -> int:
    """Run `work`; the exit status, with anything the user can mend told in one line."""
    from resnet.complaints import explained

    try:
        with explained():
            work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except Failed as failed:
        print(f"error: {failed}", file=sys.stderr)
        return FAILED
    except Stopped as stopped:
        print(f"stopped by a signal; {stopped}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("interrupted; the checkpoints written so far are whole", file=sys.stderr)
        return INTERRUPTED
    return DONE


def main() -> None:
    """The console script."""
    sys.exit(reported(start))


if __name__ == "__main__":
    main()
