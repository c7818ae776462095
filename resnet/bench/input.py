"""Input pipelines: this suite's against a naive tf.data pipeline, and against JPEG decoding alone."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resnet import UserError, addresses
from resnet.bench import far, images
from resnet.bench.result import Knobs, Result, Row, markdown_table, median_ratio
from resnet.bench.workers import Child
from resnet.cli import knob


@dataclass(kw_only=True)
class Input(Knobs):
    """input pipelines: this suite's against a naive tf.data pipeline, and against JPEG decoding alone"""

    dir: str | None = knob(None, "also measure these shards, such as your own data.dir")
    images: int = knob(512, "images that each pipeline reads per round")
    cores: int = knob(1, "number of cores")
    batch: int = knob(64, "images per batch")
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


def table(rates: dict[str, list[float]], against: str) -> str:
    """Markdown; the ratio is the median of the rounds' own ratios."""
    rows = [
        [name, f"{statistics.median(values):,.0f}", f"{median_ratio(values, rates[against]):.2f}"]
        for name, values in rates.items()
    ]
    return markdown_table(["pipeline", "images/s a core", "to naive"], rows)
