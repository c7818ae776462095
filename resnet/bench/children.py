"""This suite's sides of the benchmarks, each a process of its own: python -m resnet.bench.children NAME WORD ..."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow as tf
from rich.console import Console

from resnet import addresses, files
from resnet.bench import flops, workers
from resnet.bench.pixels import Pixels, crops_alone, naive
from resnet.bench.workers import Sides, Work, moving, require, timed
from resnet.config import compose
from resnet.config.data import Order, Records, Resample
from resnet.config.run import Run
from resnet.config.track import Mlflow
from resnet.config.training import Ema
from resnet.data import indexes, manifest, pipeline
from resnet.data.source import Source, beside, open_source
from resnet.distributed import cpu, device, ranks
from resnet.optim import schedule
from resnet.track import provenance
from resnet.track.tracker import Tracker
from resnet.training import mlperf, progress, state
from resnet.training.evaluation import Evaluator
from resnet.training.meter import Reading
from resnet.training.run_log import RunLog
from resnet.training.step import TrainStep
from resnet.training.watchdog import Watchdog

VERSIONS = {"versions": f"TensorFlow {tf.__version__}"}
NAIVE = "naive: decode, slice, resize, flip, normalize each image"
CROPS = "decode_and_crop_jpeg alone"
WARM = 512  # images; by blocks, the windows of all streams are being read then


def machine() -> Sides:
    """The machine and its software, without which a figure means nothing."""
    tags = provenance.source_tags(Path(__file__).parent)
    threads = ranks.cpu_count()
    facts = {
        "machine": cpu.cpu_name(),
        "cores": str(threads),
        "threads": f"{threads}, as many as cores (TensorFlow's default)",
        "instructions": " ".join(sorted({"amx_bf16", "avx512_bf16", "avx512f", "avx2"} & cpu.cpu_flags())),
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "commit": tags.get("mlflow.source.git.commit", "none")[:10] + "+" * (tags.get("git.dirty") == "true"),
        "day": time.strftime("%Y-%m-%d"),
    }
    return facts, {}


# --------------------------------------------------------------------------------------------------------------- training
def step(words: str, optim: str = "sgd", variant: str = "", folder: str = "") -> Sides:
    """The compiled train step on synthetic images, called as the training loop calls it.

    `variant`: `plain` has Keras's batch norm, and gradients by oneDNN alone; `tracked` also averages weights, logs and shows
    progress, with MLflow's store in `folder`; `clip` clips the gradients.
    """
    if variant == "plain":
        device.uses_amx = lambda cluster, dtype: False  # noqa: ARG005
        vars(state)["batch_norm_class"] = lambda cluster, hvd=None: tf.keras.layers.BatchNormalization  # noqa: ARG005
    run = compose.for_inference(words.split())
    run = replace(run, optim=compose.one_group("optim", f"optim={optim}", f"batch={run.batch}"))
    if variant == "clip":
        run = replace(run, optim=replace(run.optim, clip_norm=1.0))
    if variant == "tracked":
        settings = Mlflow(uri=f"sqlite:///{folder}/mlflow.db", run_name="bench")
        run = replace(run, ema=Ema(half_life_steps=1000.0), track=settings, out=folder)
    world = device.init(run.cluster, run.dtype)
    tf.keras.utils.set_random_seed(run.seed)
    source = open_source(run.data)
    plan = schedule.plan(run, source.train_images)
    trained = state.TrainState(run, world)
    train_step = TrainStep(run, plan, source, trained, world)
    train_step.prepare(0)
    inputs, flag = train_step.inputs(0, 1, [1e-4]), tf.constant(0.0)
    after = tracking(run, plan, source, trained, world) if variant == "tracked" else lambda _losses: None
    changed = moving(partial(checksum, trained.network.trainable_variables[-1]))
    averaged = moving(partial(checksum, trained.ema.mean.trainable_variables[-1])) if trained.ema else None
    averages = [trained.step // run.ema.every_steps]

    def one() -> Any:
        losses, _ = train_step.train(*inputs, flag)
        after(losses)
        return losses

    def check(losses: Any) -> None:
        require(
            losses.shape == [1, 3] and bool(tf.reduce_all(tf.math.is_finite(losses))),
            f"the losses are {losses.numpy()}",
        )
        changed()
        averages.append(trained.step // run.ema.every_steps)
        if averaged and averages.pop(0) != averages[0]:
            averaged()

    size = run.data.train_size or run.data.image_size
    facts = {**VERSIONS, "threads": ranks.cpu_count(), "gflop": flops.gflop(trained.network, size)}
    return facts, {"": timed(one, lambda losses: losses.numpy(), check)}


def checksum(variable: tf.Variable) -> float:
    return float(tf.reduce_sum(tf.abs(tf.cast(variable, tf.float64))))


def tracking(
    run: Run, plan: schedule.Plan, source: Source, trained: state.TrainState, world: ranks.Ranks
) -> Callable[[Any], None]:
    """What the training loop does with the losses of a step: average the weights, log to MLflow, show progress."""
    out = Path(run.out)
    (out / "config.yaml").touch()
    log = RunLog(run, out, plan, source, trained, world, mlperf.open_log(run, out, world))
    terminal = Console(file=Path(os.devnull).open("w"), force_terminal=True)  # noqa: SIM115  # as long as the process
    log.display = progress.Display(plan.total_steps, run.epochs, terminal)
    ema = trained.ema
    assert ema
    ema.start()

    def after(losses: Any) -> None:
        trained.step = done = trained.step + 1
        if plan.averages(done):
            ema.update(tf.constant(plan.decay(done), tf.float32))
        log.advance(done)
        if plan.logs(done - 1, done):
            log.train(done, Reading(float(losses[-1]), 1.0), {})

    for _ in range(run.log_every_steps):  # traces the average and imports MLflow before the clock runs
        after(tf.constant([1.0]))
    tracker = log.tracker
    assert isinstance(tracker, Tracker)
    while tracker.run_id is None and tracker.sender and tracker.sender.is_alive():
        time.sleep(0.1)
    return after


def evaluate(words: str) -> Sides:
    """`evaluation`: a whole one, its last batch not full. `forward`: as many forward passes over one batch. A step is a batch."""
    run = compose.for_inference(words.split())
    world = device.init(run.cluster, run.dtype)
    source, network = open_source(run.data), state.TrainState(run, world).network
    forward_pass = tf.function(lambda images: network(images, training=False))
    images = tf.random.normal([run.batch, run.data.image_size, run.data.image_size, 3])

    def check(logits: Any) -> None:
        finite = bool(tf.reduce_all(tf.math.is_finite(logits)))
        require(finite and logits.shape == [run.batch, run.data.classes], f"the logits are {logits.numpy()}")

    forward = timed(lambda: forward_pass(images), lambda logits: logits.numpy(), check)
    evaluator = Evaluator(run, source, [network], world, Watchdog(run.cluster.stall_s, 0, print))
    graph: Any = evaluator.step
    facts: dict[str, Any] = dict(VERSIONS)

    def evaluation(steps: int) -> float:
        source.eval_images = evaluator.images = steps * run.batch - run.batch // 2
        began = time.perf_counter()
        evaluator.batches = pipeline.evaluation(source, run.batch)
        results = evaluator()[0]
        seconds = time.perf_counter() - began
        facts["graphs"] = graph.experimental_get_tracing_count()
        require(results.images == evaluator.images and math.isfinite(results.loss), f"the results are {results}")
        return seconds

    return facts, {"evaluation": evaluation, "forward": forward}


# ---------------------------------------------------------------------------------------------------------------- reading
def read(folder: str, batch: str, size: str) -> Sides:
    """The training pipeline of the shards in `folder`. A step is a batch."""
    source = open_source(records(folder, image_size=int(size)))
    pixels = Pixels(source, (int(batch), int(size), int(size), 3))
    return VERSIONS, {"": training(source, int(batch), pixels.check)}


def training(source: Source, batch: int, check: Callable[[Any], None]) -> Work:
    """Batches to train on. A turn begins with nothing read, and the first WARM images are not in its time."""

    def work(batches: int) -> float:
        dataset = pipeline.train(source, batch, 1, 0)
        seconds = reading(dataset, check, max(1, min(batches, WARM // batch)))(batches)
        assert source.train_reader
        source.train_reader.close()  # of an address: nothing is read while another side is measured
        return seconds

    return work


def records(folder: str, **knobs: Any) -> Records:
    """Shards as training reads them: by blocks at an address. Labels, which nothing here learns, are taken from 0 on."""
    order = Order.blocks if addresses.is_remote(folder) else Order.images
    ours = beside(folder, manifest.NAME) or indexes.load(folder, None)
    return Records(dir=folder, classes=files.MAX_CLASSES, order=order, label_offset=None if ours else 0, **knobs)


def first_batch(folder: str, batch: str, size: str) -> Sides:
    """A step opens the shards in `folder` and reads the first batch."""

    def one() -> Any:
        source = open_source(records(folder, image_size=int(size)))
        batches = iter(pipeline.train(source, int(batch), 1, 0))
        first = next(batches)
        assert source.train_reader
        source.train_reader.close()
        return first

    def work(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            require(len(one()[0]) == int(batch), "not a batch")
        return time.perf_counter() - began

    return VERSIONS, {"": work}


def pipelines(large: str, small: str, batch: str, own: str = "") -> Sides:
    """Pipelines by name, of the shards in these folders; the naive one and `CROPS` are of `large`. A step is a batch."""
    size, sides, notes = int(batch), {}, list[str]()
    for name, folder in (("500x375", large), ("256 px, quality 75", small)):
        source = open_source(Records(dir=folder, classes=1000))
        pixels = Pixels(source, (size, 224, 224, 3))
        if folder == large:
            sides[NAIVE] = reading(naive(source, size), pixels.check_normalized)
            sides[CROPS] = reading(crops_alone(source, size), pixels.check_means)
            sides["decode_and_crop_jpeg and TensorFlow's resize alone"] = reading(
                crops_alone(source, size, 224), pixels.check_means
            )
        sides[f"training, {name}"] = reading(pipeline.train(source, size, 1, 0), pixels.check)
        sides[f"evaluation, {name}"] = reading(pipeline.evaluation(source, size).repeat(), pixels.check)
        source = open_source(Records(dir=folder, classes=1000, eval_resample=Resample.antialias))
        sides[f"evaluation antialiased, {name}"] = reading(pipeline.evaluation(source, size).repeat(), pixels.check)
    if own:
        source = open_source(records(own))
        pixels = Pixels(source, (size, 224, 224, 3))
        assert source.train
        if source.train.crc is not None or not source.train.established:
            notes.append(f"No naive side of {own}: it reads TFRecords with image/encoded alone.")
        elif not addresses.is_remote(own):
            sides[f"naive, {own}"] = reading(naive(source, size), pixels.check_normalized)
        sides[f"training, {own}"] = training(source, size, pixels.check)
    return {**VERSIONS, "pipelines": list(sides), "notes": notes}, sides


def augmented(folder: str, batch: str, augment: str) -> Sides:
    """The training pipeline of the shards in `folder`, with the words of `augment` and without. A step is a batch."""
    source, size = open_source(Records(dir=folder, classes=1000)), int(batch)
    pixels = Pixels(source, (size, 224, 224, 3))
    changed = pipeline.train(source, size, 1, 0, augment=compose.one_group("augment", *augment.split()))

    def check(parts: Any) -> None:
        require(parts[0].shape == (size, 224, 224, 3), f"images of the shape {parts[0].shape}")
        plain = next(iter(pipeline.train(source, size, 1, 0)))[0].numpy()
        require(bool((next(iter(changed))[0].numpy() != plain).any()), "the images are not augmented")

    return VERSIONS, {
        "with": reading(changed, check),
        "without": reading(pipeline.train(source, size, 1, 0), pixels.check),
    }


def reading(dataset: Any, check: Callable[[Any], None], warm: int = 1) -> Work:
    """A turn opens the dataset and closes it again: its threads would read ahead while another side is measured."""

    def work(batches: int) -> float:
        step = partial(next, iter(dataset))
        for _ in range(warm - 1):
            step()
        return timed(step, check=check)(batches)

    return work


def peak(dtype: str) -> Sides:
    """A turn is the seconds of a GFLOP of matrix products, whatever the steps."""
    return VERSIONS, {"": flops.products(dtype)}


if __name__ == "__main__":
    workers.serve(
        {
            builder.__name__: builder
            for builder in (machine, step, evaluate, read, first_batch, pipelines, augmented, peak)
        }
    )
