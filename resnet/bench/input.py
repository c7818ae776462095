"""Input pipelines: this suite's against a naive tf.data pipeline, and against JPEG decoding alone."""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnet import UserError, addresses
from resnet.bench import far, images
from resnet.bench.result import Knobs, Result, Row, markdown_table, median_ratio
from resnet.bench.workers import Child, Unavailable
from resnet.cli import knob

TIMM_POLICY = "rand-m7-mstd0.5-inc1"


@dataclass(kw_only=True)
class Input(Knobs):
    """input pipelines: this suite's against a naive tf.data pipeline, and against JPEG decoding alone"""

    dir: str | None = knob(None, "also measure these shards, such as your own data.dir")
    images: int = knob(512, "images that each pipeline reads per round")
    cores: int = knob(1, "number of cores")
    batch: int = knob(64, "images per batch")
    augment: Literal["randaugment", "trivialaugment"] | None = knob(
        None, "instead: training images with this policy, against without it, and against timm with it"
    )
    torch_python: str | None = knob(None, "Python with timm and torchvision for augment=; without it timm is skipped")
    far_ms: float | None = knob(
        None, "instead: the shards from a server that waits so many ms before each answer, against the local disk"
    )
    far_mb: float = knob(100.0, "and sends so many MB/s a connection")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "images", "cores", "batch")
        if self.far_ms is not None:
            self.check_at_least(0, "far_ms")
            self.check_above(0, "far_mb")
            self.check("dir", not self.dir or not addresses.is_remote(self.dir), "give a local folder, or no far_ms=")
        self.check(
            "augment", self.augment is None or self.far_ms is None, "is measured on the local disk; give no far_ms="
        )
        self.check("torch_python", self.torch_python is None or self.augment is not None, "is for augment=")
        self.check("far_mb", self.far_ms is not None or self.far_mb == 100, "is for far_ms=30")
        self.check("images", self.images >= self.batch, f"must be at least batch={self.batch}")


def measure(knobs: Input, result: Result) -> None:
    """Pipelines over the same JPEG bytes, images/s a core, and ratios to the naive one."""
    cores = sorted(os.sched_getaffinity(0))[: knobs.cores]
    if len(cores) < knobs.cores:
        raise UserError(f"cores={knobs.cores}: this process may use {len(cores)}")
    result.facts |= {"cores": str(knobs.cores), "threads": f"{knobs.cores}, as many as cores (TensorFlow's default)"}
    if knobs.far_ms is not None:
        with tempfile.TemporaryDirectory() as place:
            far.measure(knobs, Path(place), cores, result)
        return
    large = images.photos(images.PHOTOS)
    if knobs.augment:
        augmented(knobs, large, cores, result)
        return
    result.about = (
        f"Pipelines over the same records, {knobs.images} images each in a round; JPEG of 500x375, "
        f"{statistics.mean(map(len, large)) / 1000:.0f} KB. The naive one decodes, slices, resizes, flips and normalizes "
        "image by image; the limit is decode_and_crop_jpeg alone."
    )
    with tempfile.TemporaryDirectory() as place:
        whole = -(-images.PHOTOS // knobs.batch) * knobs.batch  # the last batch of an evaluation is full too
        small = [images.resized(encoded, 256, 75) for encoded in large]
        folders = [
            images.shards(Path(place, name), photos, whole) for name, photos in (("large", large), ("small", small))
        ]
        words = [*map(str, folders), str(knobs.batch), *([knobs.dir] if knobs.dir else [])]
        with Child("children", ["pipelines", *words], cores=cores) as child:

            def rate(name: str) -> Callable[[], float]:
                return lambda: knobs.batch / child.step_time(knobs.images // knobs.batch, name) / knobs.cores

            names = child.facts["pipelines"]
            result.notes += child.facts["notes"]
            rates = result.measure({name: rate(name) for name in names}, knobs.rounds, "images/s a core")
    naive, limit, ours = rates[names[0]], rates[names[1]], rates["training, 500x375"]
    result.rows.append(Row("reading to train, images/s a core", ours, naive, "naive tf.data", limit))
    result.tables.append(table(rates, names[0]))


def augmented(knobs: Input, photos: list[bytes], cores: list[int], result: Result) -> None:
    """Our reading with a policy and without, and timm's transforms of the same JPEGs with the same policy."""
    policy = TIMM_POLICY if knobs.augment == "randaugment" else "trivialaugment"
    result.about = (
        f"The training pipeline over the same JPEGs of 500x375, {knobs.images} images each in a round, with {policy} and without, "
        "and timm's create_transform with Pillow and the same policy, image by image in one process. All bilinear, to uint8."
    )
    words = f"augment={knobs.augment}" + f" augment.timm={policy} augment.interpolation=bilinear" * (
        policy == TIMM_POLICY
    )
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = images.shards(Path(place, "shards"), photos, -(-images.PHOTOS // knobs.batch) * knobs.batch)
        for number, encoded in enumerate(photos):
            Path(place, f"{number:03d}.jpg").write_bytes(encoded)
        ours = stack.enter_context(Child("children", ["augmented", str(folder), str(knobs.batch), words], cores=cores))
        sides = {"with": (ours, "with"), "without": (ours, "without")}
        if knobs.torch_python:
            child = Child("timm_child", ["transform", policy, place, str(knobs.batch)], knobs.torch_python, cores[:1])
            try:
                sides["timm"] = stack.enter_context(child), ""
            except Unavailable as error:
                result.notes.append(f"timm left out: {error}.")
        else:
            result.notes.append("timm left out: torch_python= names no Python that has it.")
        used = {"with": knobs.cores, "without": knobs.cores, "timm": 1}

        def rate(name: str) -> float:
            child, side = sides[name]
            return knobs.batch / child.step_time(knobs.images // knobs.batch, side) / used[name]

        turns = {name: functools.partial(rate, name) for name in sides}
        rates = result.measure(turns, knobs.rounds, "images/s a core")
    for name, against in (("without", "without"), ("timm", "timm's create_transform")):
        if name in rates:
            result.rows.append(Row(f"training with {policy}, images/s a core", rates["with"], rates[name], against))


def table(rates: dict[str, list[float]], against: str) -> str:
    """Markdown; the ratio is the median of the rounds' own ratios."""
    rows = [
        [name, f"{statistics.median(values):,.0f}", f"{median_ratio(values, rates[against]):.2f}"]
        for name, values in rates.items()
    ]
    return markdown_table(["pipeline", "images/s a core", "to naive"], rows)
