"""Input pipelines: this suite's against a naive tf.data pipeline, and against JPEG decoding alone."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resnet import UserError
from resnet.bench import images
from resnet.bench.result import Knobs, Result, Row, markdown_table, median_ratio
from resnet.bench.workers import Child
from resnet.cli import knob

PHOTOS = 64  # different ones


@dataclass(kw_only=True)
class Input(Knobs):
    """input pipelines: this suite's against a naive tf.data pipeline, and against JPEG decoding alone"""

    dir: str | None = knob(None, "also measure these shards, such as your own data.dir")
    images: int = knob(512, "images that each pipeline reads per round")
    cores: int = knob(1, "number of cores")
    batch: int = knob(64, "images per batch")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "images", "cores", "batch")
        self.check("images", self.images >= self.batch, f"must be at least batch={self.batch}")


def measure(knobs: Input, result: Result) -> None:
    """Pipelines over the same JPEG bytes, images/s a core, and ratios to the naive one."""
    cores = sorted(os.sched_getaffinity(0))[: knobs.cores]
    if len(cores) < knobs.cores:
        raise UserError(f"cores={knobs.cores}: this process may use {len(cores)}")
    large = images.photos(PHOTOS)
    result.about = (
        f"Pipelines over the same records, {knobs.images} images each in a round; JPEG of 500x375, "
        f"{statistics.mean(map(len, large)) / 1000:.0f} KB. The naive one decodes, slices, resizes, flips and normalizes "
        "image by image; the limit is decode_and_crop_jpeg alone."
    )
    result.facts |= {"cores": str(knobs.cores), "threads": f"{knobs.cores}, as many as cores (TensorFlow's default)"}
    with tempfile.TemporaryDirectory() as place:
        whole = -(-PHOTOS // knobs.batch) * knobs.batch  # the last batch of an evaluation is full too
        small = [images.resized(encoded, 256, 75) for encoded in large]
        folders = [
            images.shards(Path(place, name), photos, whole) for name, photos in (("large", large), ("small", small))
        ]
        words = [*map(str, folders), str(knobs.batch), *([knobs.dir] if knobs.dir else [])]
        with Child("children", ["pipelines", *words], cores=cores) as child:

            def rate(name: str) -> Callable[[], float]:
                return lambda: knobs.batch / child.step_time(knobs.images // knobs.batch, name) / knobs.cores

            names = child.facts["pipelines"]
            rates = result.measure({name: rate(name) for name in names}, knobs.rounds, "images/s a core")
    naive, limit, ours = rates[names[0]], rates[names[1]], rates["training, 500x375"]
    result.rows.append(Row("reading to train, images/s a core", ours, naive, "naive tf.data", limit))
    result.tables.append(table(rates, names[0]))


def table(rates: dict[str, list[float]], against: str) -> str:
    """Markdown; the ratio is the median of the rounds' own ratios."""
    rows = [
        [name, f"{statistics.median(values):,.0f}", f"{median_ratio(values, rates[against]):.2f}"]
        for name, values in rates.items()
    ]
    return markdown_table(["pipeline", "images/s a core", "to naive"], rows)
