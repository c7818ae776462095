"""Images, and how they are read: conf/data/."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from resnet.config.checks import MISSING, check, check_range


class OnCorrupt(Enum):
    """What a record that cannot be read does to a run: end it, or leave its place to the next one."""

    stop = "stop"
    skip = "skip"


class Cache(Enum):
    """What is kept in memory once it has been read: nothing, the JPEG records, or the decoded pixels."""

    off = "off"
    encoded = "encoded"
    decoded = "decoded"


@dataclass
class Data:
    """What every source of images says of itself. Mean and std are in units of 0..255, by channel."""

    name: str = MISSING
    classes: int = MISSING  # type: ignore[assignment]
    image_size: int = 224  # side of the square the network sees, pixels
    train_size: int | None = (
        None  # side of training crops; null: image_size. 176 for 224: published +0.16 (TorchVision)
    )
    mean: list[float] = field(default_factory=lambda: [123.68, 116.78, 103.94])
    std: list[float] = field(default_factory=lambda: [58.393, 57.12, 57.375])

    def __post_init__(self) -> None:
        check(self.classes > 1, "data.classes", self.classes, "a classifier needs at least 2")
        for knob, size in (("image_size", self.image_size), ("train_size", self.train_size)):
            check(size is None or size >= 8, f"data.{knob}", size, "must be at least 8 pixels")
        check_moments(self.mean, self.std)


@dataclass
class Records(Data):
    """JPEG images in TFRecord shards of the ImageNet layout, labels 1..classes on disk."""

    name: str = "imagenet"
    dir: str = MISSING
    eval_resize: int = 256  # short side before the centre crop, pixels. 232 for 224: published +0.22 (TorchVision)
    min_area: float = 0.08  # random resized crop: least share of the image (arXiv:1409.4842 sec. 6)
    max_aspect: float = 4 / 3  # and its aspect ratio, log-uniform in [1/max_aspect, max_aspect]
    flip: bool = True  # mirror half of the training images left to right
    on_corrupt: OnCorrupt = (
        OnCorrupt.stop
    )  # skip: pass over up to max_corrupt records that cannot be read, and count them
    max_corrupt: int = 100
    cache: Cache = Cache.off  # in the memory of each rank; refused with the figures if it would not fit

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.eval_resize >= self.image_size,
            "data.eval_resize",
            self.eval_resize,
            f"the centre crop of data.image_size={self.image_size} must fit in",
        )
        check(0 < self.min_area <= 1, "data.min_area", self.min_area, "must be above 0 and at most 1")
        check_range("data.max_aspect", self.max_aspect, 1, math.inf)
        check(self.max_corrupt >= 0, "data.max_corrupt", self.max_corrupt, "must be at least 0")


@dataclass
class Folder(Records):
    """What `python -m resnet.prepare source=folder` wrote: anybody's classes, named in its classes.txt."""

    name: str = "folder"


@dataclass
class Digits(Records):
    """scikit-learn's load_digits, written as shards when first used."""

    name: str = "digits"


@dataclass
class Synthetic(Data):
    """Random images made once and shown again and again: for measuring, not for learning."""

    name: str = "synthetic"
    train_images: int = 1_281_167
    eval_images: int = 50_000

    def __post_init__(self) -> None:
        super().__post_init__()
        for knob in ("train_images", "eval_images"):
            check(getattr(self, knob) > 0, f"data.{knob}", getattr(self, knob), "must be above 0")


def check_moments(mean: Sequence[float], std: Sequence[float]) -> None:
    """Normalization needs three finite means and three positive deviations, in units of 0..255."""
    check(
        len(mean) == 3 and all(math.isfinite(v) for v in mean), "data.mean", mean, "give three numbers, one a channel"
    )
    check(len(std) == 3 and all(0 < v < math.inf for v in std), "data.std", std, "give three numbers above 0")
