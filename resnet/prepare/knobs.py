"""The knobs of every command of `python -m resnet.prepare`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from resnet import home
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
    """Base of the commands. Paths become absolute. Raises UserError for URLs and for values outside their limits."""

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if value is None:
                continue
            if name in PATHS:
                way_out = "give a folder of this machine; finished shards can be copied anywhere"
                check("://" not in value, name, value, way_out)
                check(bool(value.strip()), name, repr(value), "give a path")
                setattr(self, name, str(home.expand(value).absolute()))
            elif name in LIMITS:
                low, high, way_out = LIMITS[name]
                check(low <= value <= high, name, value, way_out)


@dataclass(kw_only=True)
class Writing(Knobs):
    """The knobs of every source of images."""

    out: str = knob(REQUIRED, "folder to write")
    layout: Literal["img_train", "train", "flat"] = knob(
        "img_train", "names: img_train/img_train-00000-of-01024, train/train-..., or train-... (flat)"
    )
    resize: int | None = knob(None, "re-encode with this short side in pixels; smaller images are not changed")
    quality: int = knob(95, "JPEG quality of re-encoded images, 1 to 100")
    seed: int = knob(1, "seed of the image order and of the validation split")
    train_shards: int | None = knob(None, "number of shards (ImageNet 1024, others one per 1,000 images)")
    val_shards: int | None = knob(None, "number of shards (ImageNet 128, others one per 1,000 images)")
    max_rejected: float = knob(0.001, "share of files that may be unreadable, or left out for their endings")
    processes: int | None = knob(None, "worker processes (one per core)")


@dataclass(kw_only=True)
class Imagenet(Writing):
    """ILSVRC 2012: the tar files as downloaded, or unpacked"""

    dir: str | None = knob(
        None, "folder with ILSVRC2012_img_{train,val}.tar, or img_train/ (train/) and img_val/ (val/)"
    )
    train: str | None = knob(None, "training tar or folder, if it is elsewhere")
    val: str | None = knob(None, "validation tar or folder, if it is elsewhere")
    labels: str | None = knob(
        None, "synsets of the validation images, one per line by file name (dir/synset_labels.txt)"
    )
    texts: str | None = knob(None, "lines `synset text` (dir/imagenet_metadata.txt or dir/LOC_synset_mapping.txt)")


@dataclass(kw_only=True)
class Folder(Writing):
    """your own images: jpg, jpeg, png, webp, bmp, one folder per class"""

    dir: str | None = knob(
        None, "folder with one folder per class, or with train/ and val/ (Training, valid, ...) of such"
    )
    train: str | None = knob(None, "training tree, if it is elsewhere")
    val: str | None = knob(None, "validation tree, if it is elsewhere")
    val_fraction: float | None = knob(None, "share of each class held out if there is no validation tree (0.1)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_fraction is not None:
            check_range("val_fraction", self.val_fraction, 0, 1, open_low=True)


@dataclass(kw_only=True)
class Digits(Knobs):
    """scikit-learn's hand-written digits, embedded"""

    out: str = knob(REQUIRED, "folder to write")


@dataclass(kw_only=True)
class Idx(Knobs):
    """IDX files of uint8 images and labels, gzipped or not: MNIST, Fashion-MNIST, KMNIST, EMNIST"""

    out: str = knob(REQUIRED, "folder to write")
    dir: str | None = knob(None, "folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte, or the same with .gz")
    train: str | None = knob(None, "file of training images, if it is elsewhere; its labels lie beside it")
    val: str | None = knob(None, "file of validation images, if it is elsewhere")
    names: str | None = knob(None, "of the classes: a,b,c or a file with one a line, or fashion (their numbers)")


@dataclass(kw_only=True)
class Check(Knobs):
    """verify shards by their manifest: CRC of every file and record, counts, labels"""

    check: str = knob(REQUIRED, "folder of shards")
    deep: bool = knob(False, "also decode every image")
    processes: int | None = knob(None, "worker processes (one per core)")


@dataclass(kw_only=True)
class Show(Knobs):
    """draw training images as the network gets them, and evaluation images"""

    show: str = knob(REQUIRED, "folder of shards")
    out: str = knob("sheet.png", "PNG file to write")
    images: int = knob(24, "number of each")
    seed: int = knob(1, "seed of the order and of the crops")
    label_offset: int | None = knob(None, "label of the first class in shards of another program, if it is unclear")
