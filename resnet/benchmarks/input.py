"""How fast images are read, against the pipeline everybody writes first and the part nobody can leave out."""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet import UserError, shards
from resnet.benchmarks.sides import interleaved, machine, table
from resnet.checks import check
from resnet.knobs import knob
from resnet.settings.data import Records


@dataclass(kw_only=True)
class Input:
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


def photo(random: Any, height: int = 375, width: int = 500, quality: int = 94) -> bytes:
    """A JPEG with the size of an ImageNet photograph: smooth shapes under fine grain, about 100 KB."""
    import numpy as np
    from PIL import Image

    layers = []
    for cells in (3, 8, 24, 80):
        small = Image.fromarray(random.integers(0, 256, [cells, cells, 3], np.uint8))
        layers.append(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32) / cells**0.5)
    shapes = sum(layers) / sum(1 / cells**0.5 for cells in (3, 8, 24, 80))
    pixels = shapes + random.normal(0, 9, [height, width, 1])
    encoded = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def resized(encoded: bytes, side: int, quality: int) -> bytes:
    """A JPEG again, with the short side `side`."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        scale = side / min(image.size)
        small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        again = io.BytesIO()
        small.save(again, "JPEG", quality=quality)
    return again.getvalue()


def measure(asked: Input) -> None:
    """Print the table: pipelines over the same JPEG bytes, images/s a core, and ratios to the naive one."""
    cores = sorted(os.sched_getaffinity(0))[: asked.cores]
    if len(cores) < asked.cores:
        raise UserError(f"cores={asked.cores}: this process may use {len(cores)}")
    os.sched_setaffinity(0, cores)  # before TensorFlow sizes its thread pools
    import numpy as np

    from resnet import data, prepare, source

    random = np.random.default_rng(0)
    photos = [photo(random) for _ in range(64)]
    small = [resized(encoded, 256, 75) for encoded in photos]
    with tempfile.TemporaryDirectory() as folder:
        pipelines: dict[str, Any] = {}
        for name, encoded in (("500x375", photos), ("256 px, quality 75", small)):
            place = Path(folder, name)
            examples = [prepare.example(one, 1, "n", "n.jpg", 0, 0) for one in encoded]
            for part in ("img_train", "img_val"):
                prepare.write(place / part, part, examples, 4)
            settings = Records(dir=str(place), classes=1000)
            opened = source.opened(settings)
            if encoded is photos:
                pipelines["naive: decode, slice, resize, flip, normalise an image"] = naive(opened, asked.batch)
                pipelines["decode_and_crop_jpeg alone"] = crops_alone(opened, asked.batch)
                pipelines["decode_and_crop_jpeg and TensorFlow's resize alone"] = crops_alone(opened, asked.batch, 224)
            pipelines[f"resnet.data.train, {name}"] = data.train(opened, asked.batch, 1, 0)
            pipelines[f"resnet.data.evaluation, {name}"] = data.evaluation(opened, asked.batch).repeat()
        if asked.dir:
            own = source.opened(Records(dir=asked.dir, classes=2**31 - 1))
            pipelines["naive, " + asked.dir] = naive(own, asked.batch)
            pipelines["resnet.data.train, " + asked.dir] = data.train(own, asked.batch, 1, 0)
        rates = interleaved({name: stream(dataset, asked.images) for name, dataset in pipelines.items()}, asked.rounds)
    mean = statistics.mean(map(len, photos)) / 1000
    print(f"{machine()}; {asked.cores} core(s); JPEG of 500x375, {mean:.0f} KB; median of {asked.rounds} rounds\n")
    print(table(rates, next(iter(rates)), asked.cores))


def naive(opened: Any, batch: int) -> Any:
    """What a first tf.data pipeline looks like: everything to an image, in float, on the host. Dataset of single images."""
    import tensorflow as tf

    from resnet.data import FEATURES, crop_box

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

    from resnet.data import FEATURES, TRIES, crop_box, resize

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
