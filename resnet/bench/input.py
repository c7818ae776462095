"""How fast images are read, against the pipeline everybody writes first and the part nobody can leave out."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet import UserError
from resnet.bench import images
from resnet.bench.result import Kept, Outcome, Row
from resnet.bench.sides import facts, interleaved, table
from resnet.cli import knob
from resnet.config.checks import check
from resnet.config.data import Records
from resnet.data import shards

NAIVE = "naive: decode, slice, resize, flip, normalise an image"
UNIT = "images/s"
ALONE = "decode_and_crop_jpeg alone"


@dataclass(kw_only=True)
class Input(Kept):
    """how fast images are read, against the pipeline everybody writes first and the part nobody can leave out"""

    dir: str | None = knob(None, "shards to measure as well, such as your own data.dir")
    images: int = knob(512, "read by each pipeline in a round")
    rounds: int = knob(5, "interleaved; the table shows medians")
    cores: int = knob(1, "to run on")
    batch: int = knob(64, "images to a batch")

    def __post_init__(self) -> None:
        for name in ("images", "rounds", "cores", "batch"):
            check(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        check(self.images >= self.batch, "images", self.images, f"must be at least batch={self.batch}")


def measure(asked: Input) -> Outcome:
    """Pipelines over the same JPEG bytes, images/s a core, and ratios to the naive one."""
    cores = sorted(os.sched_getaffinity(0))[: asked.cores]
    if len(cores) < asked.cores:
        raise UserError(f"cores={asked.cores}: this process may use {len(cores)}")
    os.sched_setaffinity(0, cores)  # before TensorFlow sizes its thread pools
    from resnet.data import pipeline, source

    large = images.several(64)
    small = [images.resized(encoded, 256, 75) for encoded in large]
    with tempfile.TemporaryDirectory() as folder:
        pipelines: dict[str, Any] = {}
        for name, encoded in (("500x375", large), ("256 px, quality 75", small)):
            opened = source.open_source(Records(dir=str(images.shards(Path(folder, name), encoded)), classes=1000))
            if encoded is large:
                pipelines[NAIVE] = naive(opened, asked.batch)
                pipelines[ALONE] = crops_alone(opened, asked.batch)
                pipelines["decode_and_crop_jpeg and TensorFlow's resize alone"] = crops_alone(opened, asked.batch, 224)
            pipelines[f"resnet.data.train, {name}"] = pipeline.train(opened, asked.batch, 1, 0)
            pipelines[f"resnet.data.evaluation, {name}"] = pipeline.evaluation(opened, asked.batch).repeat()
        if asked.dir:
            own = source.open_source(Records(dir=asked.dir, classes=2**31 - 1))
            pipelines["naive, " + asked.dir] = naive(own, asked.batch)
            pipelines["resnet.data.train, " + asked.dir] = pipeline.train(own, asked.batch, 1, 0)
        rates = interleaved(
            {name: stream(dataset, asked.images) for name, dataset in pipelines.items()}, asked.rounds, UNIT
        )
    mean = statistics.mean(map(len, large)) / 1000
    ours, limit = ([value / asked.cores for value in rates[name]] for name in ("resnet.data.train, 500x375", ALONE))
    against = [value / asked.cores for value in rates[NAIVE]]
    row = Row("reading to train, images/s a core", ours, against, "naive tf.data", limit=limit)
    about = (
        f"Pipelines over the same records, {asked.images} images each in a round; JPEG of 500x375, {mean:.0f} KB. The naive one "
        "decodes, slices, resizes, flips and normalises image by image; the limit is decode_and_crop_jpeg alone."
    )
    return Outcome(about, [row], facts(asked.cores), [table(rates, NAIVE, asked.cores)])


def naive(opened: Any, batch: int) -> Any:
    """What a first tf.data pipeline looks like: everything to an image, in float, on the host. Dataset of single images."""
    import tensorflow as tf

    from resnet.data.pipeline import FEATURES, crop_box

    settings = opened.settings

    def decode(serialized: Any) -> Any:
        example = tf.io.parse_single_example(serialized, FEATURES)
        image = tf.io.decode_jpeg(example["image/encoded"], channels=3)
        top, left, height, width = tf.unstack(
            crop_box(tf.shape(image)[0], tf.shape(image)[1], tf.random.uniform([4, 10]), 0.08, 4 / 3)
        )
        image = tf.image.resize(image[top : top + height, left : left + width], [settings.image_size] * 2)
        image = tf.image.random_flip_left_right(image)
        return (image - settings.mean) / settings.std, example["image/class/label"]

    files = tf.data.Dataset.from_tensor_slices(list(opened.train.files))
    records = files.interleave(tf.data.TFRecordDataset, cycle_length=4).repeat().shuffle(64)
    return records.map(decode, tf.data.AUTOTUNE).batch(batch).prefetch(tf.data.AUTOTUNE)


def crops_alone(opened: Any, batch: int, size: int | None = None) -> Any:
    """The part that no pipeline can leave out: decoding the crop, with `size` resizing it. From memory; nothing is batched."""
    import tensorflow as tf

    from resnet.data.pipeline import FEATURES, TRIES, crop_box, resize

    blocks = [shards.read(opened.train, number) for number in range(len(opened.train))]
    encoded = tf.io.parse_example(blocks, FEATURES)["image/encoded"]

    def crop(one: Any) -> Any:
        shape = tf.image.extract_jpeg_shape(one)
        box = crop_box(shape[0], shape[1], tf.random.uniform([4, TRIES]), 0.08, 4 / 3)
        image = tf.image.decode_and_crop_jpeg(one, box, channels=3, dct_method="INTEGER_ACCURATE")
        return tf.shape(resize(image, [size, size]) if size else image)

    cropped = tf.data.Dataset.from_tensor_slices(encoded).repeat().map(crop, tf.data.AUTOTUNE)
    return cropped.batch(batch).prefetch(tf.data.AUTOTUNE)


def stream(dataset: Any, images: int) -> Callable[[], float]:
    """A function that reads `images` and returns images/s.

    Every call opens the dataset and closes it again, or its threads would read ahead while another side is measured.
    """

    def go() -> float:
        batches = iter(dataset)
        first = next(batches)
        size = int((first[0] if isinstance(first, tuple) else first).shape[0])
        began = time.perf_counter()
        for _ in range(images // size):
            next(batches)
        return images // size * size / (time.perf_counter() - began)

    return go
