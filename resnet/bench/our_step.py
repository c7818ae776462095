"""A child that trains with this suite's compiled step on synthetic images: our_step WORDS OPTIM [STORE [onednn]]."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from resnet.bench import flops, turns

HALF_LIFE_STEPS = 1000.0  # of the averaged weights, where there are some


def composed(words: str, optim: str, store: str | None) -> Any:
    """The run: parts by `words`, its optimizer, and with `store` averaged weights and tracking there."""
    from resnet.config import compose
    from resnet.config.track import Mlflow
    from resnet.config.training import Ema

    run = compose.for_inference(words.split())
    run = replace(run, optim=compose.one_group("optim", f"optim={optim}", f"batch={run.batch}"))
    if store:
        settings = Mlflow(uri=store, run_name="bench")
        run = replace(run, ema=Ema(half_life_steps=HALF_LIFE_STEPS), track=settings)
    return run


def sides_of(run: Any) -> tuple[Any, Callable[[int], float]]:
    """(what is trained, steps -> their seconds): training's own step, called as training calls it."""
    import tensorflow as tf

    from resnet.data import augment, pipeline, source
    from resnet.distributed import device
    from resnet.training import state, step

    ranks = device.init(run.cluster, run.dtype)
    device.seed(run.seed)
    trained = state.build(run, ranks)
    batches = iter(pipeline.train(source.open_source(run.data), run.batch, run.seed, 0))
    train_steps = step.compiled(trained.network, trained.optimizer, run, ranks, batches.element_spec)
    lr, ratios = tf.constant([1e-4]), tf.constant(augment.mix_ratios(run.mixup, run.seed, range(1)))
    after, done = beside(run, trained), 0

    def work(steps: int) -> float:
        nonlocal done
        train_steps(batches, lr, ratios, tf.constant(0.0))  # one to find its feet
        began = time.perf_counter()
        for _ in range(steps):
            losses, _ = train_steps(batches, lr, ratios, tf.constant(0.0))
            done += 1
            after(done, losses)
        losses.numpy()
        return time.perf_counter() - began

    return trained, work


def beside(run: Any, trained: Any) -> Callable[[int, Any], None]:
    """What training does after a step: averages the weights, logs to MLflow, shows progress. Nothing if the run has none."""
    from rich.console import Console

    from resnet.config.track import Mlflow
    from resnet.optim import schedule
    from resnet.track import tracker as track
    from resnet.training import progress

    if not isinstance(run.track, Mlflow):
        return lambda _done, _losses: None
    import tensorflow as tf

    out = Path(tempfile.mkdtemp(dir=Path(run.track.uri.removeprefix("sqlite:///")).parent))
    (out / "config.yaml").touch()
    tracker = track.Tracker(out, run.track, {}, {})
    nowhere = Path("/dev/null").open("w")  # noqa: SIM115  # as long as the process
    display = progress.Display(10**6, 0, 1, Console(file=nowhere, force_terminal=True))
    trained.average.start()

    def after(done: int, losses: Any) -> None:
        if done % run.ema.every_steps == 0:
            decay = schedule.ema_decay(run.ema.kept, run.ema.every_steps, done)
            trained.average.follow(tf.constant(decay, tf.float32))
        display.move(done)
        if done % run.log_every_steps == 0:
            loss = float(losses[-1])
            tracker.log(done, {"train/loss": loss, "train/lr": 1e-4, "train/images_per_s": 1.0, "train/epoch": 1.0})
            display.step(done, 1.0, loss, 1e-4, 1.0)

    for done in range(run.log_every_steps):  # the graph of the average, and MLflow's import, before the clock runs
        after(done, tf.constant([1.0]))
    while tracker.run_id is None and tracker.sender and tracker.sender.is_alive():
        time.sleep(0.1)
    return after


def main(words: str, optim: str, store: str | None = None, ways: str = "") -> None:
    """Be the child; with `ways` of onednn with plain layers: Keras's batch norm, and gradients by oneDNN alone."""
    turns.quiet()
    import tensorflow as tf

    from resnet.distributed import device, ranks
    from resnet.training import state

    if ways == "onednn":
        device.uses_amx = lambda cluster, dtype: False  # noqa: ARG005
        state.batch_norm_class = lambda cluster, ranks: tf.keras.layers.BatchNormalization  # noqa: ARG005
    run = composed(words, optim, store)
    trained, work = sides_of(run)
    work(1)
    size = run.data.train_size or run.data.image_size
    turns.take_turns(
        {
            "versions": f"TensorFlow {tf.__version__}",
            "threads": ranks.cpu_count(),
            "gflop": flops.gflop(trained.network, size),
        },
        work,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
