"""The knobs of every command of `python -m resnet.prepare`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnet import addresses, files, remote
from resnet.cli import REQUIRED, knob
from resnet.config.checks import check, check_range

PATHS = ("out", "dir", "train", "val", "labels", "texts", "check", "show")
SHARDS = (1, 99_999, "must be 1 to 99,999, or null")
# (lowest, highest, what the error says); null always means the default.
LIMITS = {
    "resize": (8, math.inf, "must be at least 8 pixels, or null"),
    "quality": (1, 100, "must be 1 to 100"),
    "seed": (0, 2**31 - 1, "must be at least 0 and below 2^31"),
    "max_rejected": (0, 1, "is a share of the images, 0 to 1"),
    "train_shards": SHARDS,
    "val_shards": SHARDS,
    "processes": (1, 1024, "must be 1 to 1024, or null"),
    "images": (1, 200, "must be 1 to 200"),
}


class Knobs:
    """Base of the commands. Paths become absolute. Raises UserError for values outside their limits."""

    READ: tuple[str, ...] = ()  # knobs that may be addresses to read
    WRITTEN: tuple[str, ...] = ()  # or to write

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if value is None:
                continue
            if name in PATHS:
                setattr(self, name, self.path(name, value))
            elif name in LIMITS:
                low, high, way_out = LIMITS[name]
                check(low <= value <= high, name, value, way_out)

    def path(self, name: str, value: str) -> str:
        """The absolute path, or the address, that a knob names. Raises UserError."""
        check(bool(value.strip()), name, repr(value), "give a path")
        if not addresses.is_remote(value):
            return files.absolute(value, Path.cwd())
        addresses.check(value, f"{name}=")
        check(name in (*self.READ, *self.WRITTEN), name, value, "give a path of this machine")
        if name in self.WRITTEN:
            return remote.checked(value, f"{name}=")
        addresses.system(value, f"{name}=")
        return value.rstrip("/")


@dataclass(kw_only=True)
class Writing(Knobs):
    """The knobs of every source of images."""

    WRITTEN = ("out",)

    out: str = knob(REQUIRED, "folder to write, or an address such as s3://bucket/shards")
    layout: Literal["img_train", "train", "flat"] = knob(
        "img_train", "names: img_train/img_train-00000-of-01024, train/train-..., or train-... (flat)"
    )
    resize: int | None = knob(None, "re-encode with this short side in pixels; smaller images are not changed")
    quality: int = knob(95, "JPEG quality of re-encoded images, 1 to 100")
    seed: int = knob(1, "seed of the image order and of the validation split")
    train_shards: int | None = knob(None, "number of shards (ImageNet 1024, others one per 1,000 images)")
    val_shards: int | None = knob(None, "number of shards (ImageNet 128, others one per 1,000 images)")
    max_rejected: float = knob(0.001, "share of files that may be unreadable, or left out for their endings")
    links: Literal["inside", "follow"] = knob(
        "inside",
        "which links are read: to files inside of the tree, or all (follow), those to folders too",
    )
    missing_classes: Literal["refuse", "allow"] = knob(
        "refuse", "allow: training may have classes of which there is no validation image"
    )
    processes: int | None = knob(None, "worker processes (one per core)")


@dataclass(kw_only=True)
class Imagenet(Writing):
    """ILSVRC 2012: the tar files as downloaded, or unpacked"""

    dir: str | None = knob(
        None,
        "folder with ILSVRC2012_img_{train,val}.tar, img_{train,val}/ or {train,val}/, or Kaggle's ILSVRC/",
    )
    train: str | None = knob(None, "training tar or folder, if it is elsewhere")
    val: str | None = knob(None, "validation tar or folder, if it is elsewhere")
    labels: str | None = knob(
        None, "synsets of the validation images: one a line, Kaggle's LOC_val_solution.csv or Caffe's val.txt"
    )
    texts: str | None = knob(None, "lines `synset text` (dir/imagenet_metadata.txt or dir/LOC_synset_mapping.txt)")


@dataclass(kw_only=True)
class Folder(Writing):
    """your own images: one folder per class, or a CSV of file names and labels"""

    dir: str | None = knob(
        None, "folder with one folder per class, or with train/ and val/ (Training, valid, ...) of such"
    )
    train: str | None = knob(None, "training tree, if it is elsewhere")
    val: str | None = knob(None, "validation tree, if it is elsewhere")
    val_fraction: float | None = knob(None, "share of each class held out if there is no validation tree (0.1)")
    labels: str | None = knob(None, "CSV of file names and labels for the images in dir, whatever folders they lie in")
    label_column: str | None = knob(None, "the column of labels, by its name or number from 1, if the CSV has several")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.label_column is None or self.labels is not None, "label_column", self.label_column, "is for labels=")
        if self.val_fraction is not None:
            check_range("val_fraction", self.val_fraction, 0, 1, open_low=True)


@dataclass(kw_only=True)
class Digits(Knobs):
    """scikit-learn's hand-written digits, embedded"""

    WRITTEN = ("out",)

    out: str = knob(REQUIRED, "folder to write, or an address such as s3://bucket/shards")


@dataclass(kw_only=True)
class Idx(Knobs):
    """IDX files of uint8 images and labels, gzipped or not: MNIST, Fashion-MNIST, KMNIST, EMNIST"""

    WRITTEN = ("out",)

    out: str = knob(REQUIRED, "folder to write, or an address such as s3://bucket/shards")
    dir: str | None = knob(None, "folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte, or the same with .gz")
    train: str | None = knob(None, "file of training images, if it is elsewhere; its labels lie beside it")
    val: str | None = knob(None, "file of validation images, if it is elsewhere")
    names: str | None = knob(None, "of the classes: a,b,c or a file with one a line, or fashion (their numbers)")


@dataclass(kw_only=True)
class Check(Knobs):
    """verify shards by their manifest: CRC of every file and record, counts, labels"""

    READ = ("check",)

    check: str = knob(REQUIRED, "folder of shards, or their address")
    deep: bool = knob(False, "also decode every image")
    processes: int | None = knob(None, "worker processes (one per core)")


@dataclass(kw_only=True)
class Show(Knobs):
    """draw training images as the network gets them, and evaluation images"""

    READ = ("show",)

    show: str = knob(REQUIRED, "folder of shards, or their address")
    out: str = knob("sheet.png", "PNG file to write")
    images: int = knob(24, "number of each")
    seed: int = knob(1, "seed of the order and of the crops")
    label_offset: int | None = knob(None, "label of the first class in shards of another program, if it is unclear")
    augment: str = knob(
        "none", "augmentation of the training images, as in training; also its knobs, augment.timm= and so on"
    )
