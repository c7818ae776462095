"""Images, and how they are read: conf/data/."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from resnet import addresses, photos
from resnet.config.checks import MISSING, Settings, check

FASHION_DIR = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist


class OnCorrupt(Enum):
    stop = "stop"
    skip = "skip"  # the next record takes its place


class Cache(Enum):
    off = "off"
    encoded = "encoded"  # the JPEG records
    decoded = "decoded"  # the pixels
    disk = "disk"  # on the local disk, what was read of an address or a slower disk


class Disk(Enum):
    ssd = "ssd"
    hdd = "hdd"  # whose reads each wait for a seek


class Links(Enum):
    inside = "inside"  # those to files inside of the folder
    follow = "follow"  # all, those to folders too


class Resample(Enum):
    original = "original"  # each pixel from four, whatever the scale; sides rounded
    antialias = "antialias"  # as Pillow does, from all that it covers; sides and offsets as torchvision has them


class Interpolation(Enum):
    bilinear = "bilinear"
    bicubic = "bicubic"


class Order(Enum):
    images = "images"  # any image may follow any other
    blocks = "blocks"  # neighbouring records are read together, then mixed with those of other places


@dataclass
class Data(Settings):
    GROUP = "data."
    name: str = MISSING
    classes: int = MISSING
    image_size: int = 224  # side of the square the network sees, pixels
    # Side of training crops; null: image_size. 176 for 224: published +0.16 (TorchVision)
    train_size: int | None = None
    mean: list[float] = field(default_factory=lambda: [123.68, 116.78, 103.94])  # of pixels in 0..255, by channel
    std: list[float] = field(default_factory=lambda: [58.393, 57.12, 57.375])

    def __post_init__(self) -> None:
        self.check("classes", self.classes > 1, "a classifier needs at least 2")
        self.check_at_most(100_000, "classes")
        self.check_at_most(4096, "image_size", "train_size")
        self.check("image_size", self.image_size >= 8, "must be at least 8 pixels")
        self.check("train_size", self.train_size is None or self.train_size >= 8, "must be at least 8 pixels")
        three = len(self.mean) == 3 and all(map(math.isfinite, self.mean))
        self.check("mean", three, "give three numbers, one a channel")
        three = len(self.std) == 3 and all(0 < value < math.inf for value in self.std)
        self.check("std", three, "give three numbers above 0")


@dataclass
class Records(Data):
    """Images in shards: TFRecords of ours or of others, or tars; see docs/data.md."""

    name: str = "imagenet"
    dir: str = MISSING
    label_offset: int | None = (
        None  # label of the first class in other people's shards; null: 0 or 1, as all labels tell
    )
    # Short side before the centre crop, pixels; null: by eval_crop. 232 for 224: published +0.22 (TorchVision)
    eval_resize: int | None = 256
    eval_crop: float | None = (
        None  # instead of eval_resize: share of the short side that the crop takes, timm's crop_pct
    )
    eval_resample: Resample = Resample.original  # antialias: as torchvision and timm resize
    eval_interpolation: Interpolation = Interpolation.bilinear
    eval_flip: bool = False  # average the logits of an image and of its mirror image, as FFCV does
    min_area: float = 0.08  # random resized crop: least share of the image (arXiv:1409.4842 sec. 6)
    max_aspect: float = 4 / 3  # and its aspect ratio, log-uniform in [1/max_aspect, max_aspect]
    flip: bool = True  # mirror half of the training images left to right
    on_corrupt: OnCorrupt = OnCorrupt.stop  # skip: leave out up to max_corrupt unreadable records, and count them
    max_corrupt: int = 100
    cache: Cache = (
        Cache.off
    )  # what each rank keeps in memory once it has read it; refused with the figures if it would not fit
    order: Order = Order.images  # blocks: for slow disks and networks; see docs/data.md
    streams: int = 48  # of blocks, mixed one image of each in turn; the number of ranks must divide it
    block_mb: float = 1.0  # what is read at once, megabytes
    window: float = 4.0  # blocks of a stream among which its images are mixed
    fetch_mb: float = 192.0  # of blocks, or images of an address, that each rank reads ahead, megabytes
    disk: Disk = Disk.ssd  # that a local data.dir lies on. hdd: data.order is blocks, unless you say otherwise
    cache_dir: str | None = None  # of cache=disk; null: blocks/ in the user's cache
    cache_gb: float = 100.0  # that it holds at most; the least recently used goes

    @property
    def shards(self) -> str:
        """The folder or address of the shards."""
        return self.dir

    @property
    def eval_short(self) -> int:
        """The short side before the centre crop, pixels; by a share it is truncated, as timm does."""
        if self.eval_crop is not None:
            return math.floor(self.image_size / self.eval_crop)
        assert self.eval_resize is not None
        return self.eval_resize

    @property
    def fetches(self) -> bool:
        """Whether records are read ahead of their use."""
        return self.order is Order.blocks or self.cache is Cache.disk or addresses.is_remote(self.dir)

    def __post_init__(self) -> None:
        super().__post_init__()
        if addresses.is_remote(self.dir):
            addresses.check(self.dir, "data.dir=")
        self.check_at_least(0, "label_offset")
        self.check_at_most(100_000, "label_offset")
        self.check_eval()
        self.check("min_area", 0 < self.min_area <= 1, "must be above 0 and at most 1")
        self.check_at_least(1, "max_aspect")
        self.check_at_least(0, "max_corrupt", "window")
        self.check_above(0, "block_mb", "streams", "fetch_mb", "cache_gb")
        self.check_at_most(10_000, "block_mb", "streams", "window")
        self.check_at_most(1_000_000, "fetch_mb", "cache_gb")
        used = self.order is Order.blocks or (self.streams, self.block_mb, self.window) == (48, 1.0, 4.0)
        check(used, "data.order", self.order.name, "has no streams, blocks or window; use data.order=blocks")
        used = self.fetches or self.fetch_mb == 192
        self.check(
            "fetch_mb",
            used,
            "is for data.order=blocks, data.cache=disk and for addresses, such as data.dir=s3://bucket/x",
        )
        way_out = "nothing is read ahead for it; use data.cache=encoded, or data.order=images and a local data.dir"
        check(not self.fetches or self.cache is not Cache.decoded, "data.cache", self.cache.name, way_out)
        self.check_disk()

    def check_eval(self) -> None:
        if self.eval_crop is None:
            self.check(
                "eval_resize", self.eval_resize is not None, "give data.eval_resize=256, or data.eval_crop=0.875"
            )
            self.check_at_most(8192, "eval_resize")
            fits = self.eval_short >= self.image_size
            self.check("eval_resize", fits, f"the centre crop of data.image_size={self.image_size} must fit in")
        else:
            way_out = f"is for data.eval_resize=null, and it is {self.eval_resize}; leave out one of the two"
            self.check("eval_crop", self.eval_resize in (None, 256), way_out)
            least = self.image_size / 8192
            way_out = f"must be at most 1, the whole short side, and at least {least:.3g}, of 8192 pixels"
            self.check("eval_crop", least <= self.eval_crop <= 1, way_out)
        used = self.eval_resample is Resample.antialias or self.eval_interpolation is Interpolation.bilinear
        way_out = "is for data.eval_resample=antialias; leave out one of the two"
        check(used, "data.eval_interpolation", self.eval_interpolation.name, way_out)

    def check_disk(self) -> None:
        if self.disk is Disk.hdd:
            way_out = "is for a local data.dir; an address is read by blocks anyway; use data.disk=ssd"
            check(not addresses.is_remote(self.dir), "data.disk", "hdd", way_out)
            way_out = "changes nothing with data.order=images; leave out one of the two"
            check(self.order is Order.blocks, "data.disk", "hdd", way_out)
        used = self.cache is Cache.disk or (self.cache_dir, self.cache_gb) == (None, 100.0)
        check(
            used,
            "data.cache",
            self.cache.name,
            "has no folder or limit; use data.cache=disk, or data.cache_dir=null data.cache_gb=100",
        )
        local = self.cache_dir is None or not addresses.is_remote(self.cache_dir)
        self.check("cache_dir", local, "must be a folder of this machine")


@dataclass
class Folder(Records):
    """Anybody's images: what `python -m resnet.prepare source=folder` wrote, or photographs that it prepares by itself."""

    name: str = "folder"
    labels: str | None = None  # CSV of file names and labels of the photographs; null: their folders are the classes
    label_column: str | None = None  # its column of labels, by its name or number from 1; null: the one it must be
    links: Links = Links.inside  # which links among the photographs are read
    max_rejected: float = 0.001  # share of photographs that may be unreadable
    prepared: str | None = None  # folder for the shards that are made of photographs; null: the cache
    listing: str | None = None  # of the photographs of this run: set by itself

    @property
    def photographs(self) -> photos.Photos:
        """The photographs in `dir`, if there are any."""
        knobs = self.labels, self.label_column, self.links.value, self.max_rejected, self.prepared
        return photos.Photos(self.dir, *knobs)

    @property
    def shards(self) -> str:
        """The folder of the shards: `dir`, or that of the photographs in it."""
        return str(photos.place(self.listing, self.prepared)) if self.listing else self.dir

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(0, "max_rejected")
        self.check_at_most(1, "max_rejected")
        self.check("label_column", self.label_column is None or self.labels is not None, "is for data.labels=")
        known = self.listing is None or photos.LISTING.fullmatch(self.listing)
        self.check("listing", bool(known), "is set by itself; leave it out")


@dataclass
class Digits(Records):
    """scikit-learn's load_digits, written as shards when first used."""

    name: str = "digits"


@dataclass
class Fashion(Records):
    """Fashion-MNIST of Debian's package dataset-fashion-mnist, written as shards when first used."""

    name: str = "fashion"


@dataclass
class Synthetic(Data):
    """Random images made once and used again and again: for measuring, not for learning."""

    name: str = "synthetic"
    train_images: int = 1_281_167
    eval_images: int = 50_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "train_images", "eval_images")
        self.check_at_most(1_000_000_000, "train_images", "eval_images")
