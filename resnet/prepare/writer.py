"""Images to a folder of shards. A shard is one job that depends on its own images only: any number of processes writes the
same bytes, and a finished shard stays when the rest is lost."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from resnet import UserError
from resnet.cli import REQUIRED, knob
from resnet.config.checks import check
from resnet.data import manifest, shards, tfexample
from resnet.prepare import archive, images, state, summary
from resnet.prepare.archive import raw
from resnet.prepare.listing import Listing
from resnet.prepare.state import Image, Split, State, Written
from resnet.prepare.workers import Workers, progress, tick

SHARD_IMAGES = 1000  # per shard, unless an established number of shards applies
FULL = 10  # images per shard: with fewer, the established number of shards would be mostly frames
RECORD_BYTES = 400  # of a record besides its image, at most about
NOT_OF_THE_BYTES = ("out", "processes", "max_rejected")  # knobs that may change from call to call
MAX_BYTES = 128 << 20  # of one image file
LAYOUTS = dict(zip(("img_train", "train", "flat"), shards.LAYOUTS, strict=True))


class Local:
    """Base of knobs with paths of this machine, which become absolute. Raises UserError for URLs."""

    PATHS: ClassVar[tuple[str, ...]] = ("out",)

    def __post_init__(self) -> None:
        for name in self.PATHS:
            if (path := getattr(self, name)) is not None:
                check(
                    "://" not in path,
                    name,
                    path,
                    "give a folder of this machine; finished shards can be copied anywhere",
                )
                check(bool(path.strip()), name, repr(path), "give a path")
                setattr(self, name, str(Path(path).expanduser().absolute()))


@dataclass(kw_only=True)
class Writing(Local):
    """The knobs of every source of images."""

    out: str = knob(REQUIRED, "the folder to make")
    layout: Literal["img_train", "train", "flat"] = knob(
        "img_train", "names: img_train/img_train-00000-of-01024, train/train-..., or train-... (flat)"
    )
    resize: int | None = knob(None, "encode anew with this short side in pixels; smaller images stay as they are")
    quality: int = knob(95, "of what is encoded anew, 1 to 100")
    seed: int = knob(1, "of the order of the images, and of the draw for validation")
    train_shards: int | None = knob(None, "how many (ImageNet 1024, others one for 1,000 images)")
    val_shards: int | None = knob(None, "how many (ImageNet 128, others one for 1,000 images)")
    max_rejected: float = knob(0.001, "share of the images that may be broken")
    processes: int | None = knob(None, "how many at work (one for each core)")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.resize is None or self.resize >= 8, "resize", self.resize, "must be at least 8 pixels, or null")
        check(1 <= self.quality <= 100, "quality", self.quality, "must be 1 to 100")
        check(0 <= self.seed < 2**31, "seed", self.seed, "must be at least 0 and below 2^31")
        check(0 <= self.max_rejected <= 1, "max_rejected", self.max_rejected, "is a share of the images, 0 to 1")
        for name in ("train_shards", "val_shards"):
            number = getattr(self, name)
            check(number is None or 0 < number <= 99_999, name, number, "must be 1 to 99,999, or null")
        check_processes(self.processes)


def check_processes(processes: int | None) -> None:
    """Raise UserError for a number of workers that no machine can run."""
    check(processes is None or 0 < processes <= 1024, "processes", processes, "must be 1 to 1024, or null")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


# ------------------------------------------------------------------------------------------------------------------ a folder
def build(
    settings: Writing,
    source: str,
    established: tuple[int, int] | None,
    fill: Callable[[Listing, Workers], None],
) -> None:
    """Write the images that `fill` lists to shards in settings.out, resuming what an earlier call has finished there.

    `established` numbers of shards, (training, validation), apply unless there are too few images. Raises UserError;
    whatever stops this, the earlier content of the folder stays.
    """
    out, start = Path(settings.out), time.monotonic()
    knobs = dataclasses.asdict(settings).items()
    options = {"source": source, **{name: value for name, value in knobs if name not in NOT_OF_THE_BYTES}}
    processes = settings.processes or cores()
    try:
        if is_finished(out, options):
            return
        with state.claim(out) as claimed:
            if is_finished(out, options):  # another process was faster
                return
            if claimed.settings:
                check_same(out, "half done", claimed.settings["options"], options)
            with Workers(processes) as workers:
                listing = Listing(claimed)
                fill(listing, workers)
                names = {
                    split: shard_names(settings, split, listed, established and established[split == "val"])
                    for split, listed in (("train", listing.train), ("val", listing.val))
                }
                save_settings(claimed, options, listing)
                for line in summary.headline(listing, names, out, processes):
                    print(line, flush=True)
                count = write(settings, listing, names, workers)
            seconds = time.monotonic() - start
            summary.conclude(listing, settings.max_rejected, count, seconds)
    except (OSError, sqlite3.OperationalError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "disk is full" in str(error):
            message = "the disk is full; what is finished stays: make room, and the same command resumes"
        else:
            reason = getattr(error, "strerror", None) or error
            message = f"cannot be written ({reason}); what stood there before still stands"
        raise UserError(f"out={out}: {message}") from error


def is_finished(out: Path, options: dict[str, Any]) -> bool:
    """Whether `out` is finished, with these options. Raises UserError if it has other options, or is no such folder."""
    content = manifest.read(out)
    if content:
        check_same(out, "finished", content["options"], options)
        shutil.rmtree(out / state.FOLDER, ignore_errors=True)  # of a call that was killed in its last moment
        print(f"{out}: prepared already, with these options: {summary.totals(content)}")
    elif (
        out.exists()
        and not (out / state.FOLDER / state.FILE).exists()
        and any(item.name != state.FOLDER for item in out.iterdir())
    ):
        raise UserError(f"out={out}: something else lies there; give a new folder")
    return content is not None


def check_same(out: Path, status: str, before: dict[str, Any], options: dict[str, Any]) -> None:
    """Raise UserError unless the options are those of the earlier call."""
    old, new = ({name: "null" if value is None else value for name, value in one.items()} for one in (before, options))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if changed := ", ".join(f"{name} was {old.get(name, 'null')} and is {new.get(name, 'null')}" for name in names):
        resume = "the same options to go on, or " if status == "half done" else ""
        raise UserError(
            f"out={out}: {status} with other options ({changed}); give another out=, or {resume}delete that folder"
        )


def save_settings(claimed: State, options: dict[str, Any], listing: Listing) -> None:
    """Record what the folder is made of. Raises UserError if that has changed since an earlier call."""
    settings: dict[str, Any] = {"options": options, "versions": manifest.versions(), "listing": listing.digest()}
    before = claimed.settings or settings
    if before["versions"] != settings["versions"]:
        versions = ", ".join(f"{name} {before['versions'].get(name)}" for name in manifest.versions())
        raise UserError(
            f"out={claimed.out}: half done with {versions}, and converted images would differ now; use those versions, or "
            "delete that folder"
        )
    if before["listing"] != settings["listing"]:
        raise UserError(
            f"out={claimed.out}: half done, and the source has changed since; delete that folder, and begin again"
        )
    claimed.save_settings(settings)


def shard_names(settings: Writing, split: str, listed: Split, established: int | None) -> list[str]:
    """The files of one split: as many as requested, or established, or one for SHARD_IMAGES images."""
    count = getattr(settings, f"{split}_shards")
    check(count is None or count <= len(listed), f"{split}_shards", count, f"there are {len(listed):,} images only")
    if count is None and established and len(listed) >= FULL * established:
        count = established
    count = count or max(1, math.ceil(len(listed) / SHARD_IMAGES))
    start, of, end = LAYOUTS[settings.layout][split == "val"].split("*")
    return [f"{start}{number:05d}{of}{count:05d}{end}" for number in range(count)]


def write(settings: Writing, listing: Listing, names: dict[str, list[str]], workers: Workers) -> int:
    """Write the shards that are missing. Returns how many images were read for it."""
    claimed, total = listing.state, len(listing.train) + len(listing.val)
    finished = claimed.finished()
    [(images, size)] = claimed.select("total(images), total(bytes) FROM shards")
    [(rejected,)] = claimed.select("count(*) FROM rejected WHERE shard != ''")
    already = int(images) + rejected
    if already:
        print(f"resuming: {already:,} of {total:,} images are done", flush=True)
    if settings.resize is None:
        needed = listing.train.jpeg_bytes + listing.val.jpeg_bytes + (total - already) * RECORD_BYTES - size
        free = shutil.disk_usage(claimed.out).free
        if needed > free:
            raise UserError(
                f"out={claimed.out}: about {summary.size(needed)} more are needed there and {summary.size(free)} are free; "
                "make room, or give another out="
            )
    with progress("images", total, workers.ticks, already):
        for result in workers.map(make, jobs(settings, listing, names, finished)):
            claimed.add_shard(*result)
    return total - already


# ------------------------------------------------------------------------------------------------------------------- a shard
@dataclass(frozen=True)
class Job:
    """One shard of a split, `file` below the folder `out`. `prefix` + name is an image's name for people."""

    out: str
    file: str
    split: str
    prefix: str
    images: list[Image]
    names: dict[int, tuple[bytes, bytes]]  # (synset, text) of every label
    resize: int | None
    quality: int


def jobs(settings: Writing, listing: Listing, names: dict[str, list[str]], finished: set[str]) -> Iterator[Job]:
    """The shards that are not finished: a split's images, by class and name, permuted by the seed and dealt out."""
    texts = [(raw(name), raw(listing.texts.get(name, ""))) for name in listing.classes]
    for epoch, split in enumerate((listing.train, listing.val)):
        order = shards.permutation(settings.seed, epoch, len(split))
        for number, file in enumerate(names[split.name]):
            if file not in finished:
                drawn = [split[int(place)] for place in order[number :: len(names[split.name])]]
                labels = {image.label: texts[image.label - 1] for image in drawn}
                yield Job(
                    settings.out, file, split.name, split.prefix, drawn, labels, settings.resize, settings.quality
                )


def make(job: Job) -> tuple[shards.Shard, str, Written]:
    """Write one shard; runs in a worker. OSError is about writing: what cannot be read is rejected."""
    out, written = Path(job.out), Written()
    path = out / job.file
    path.parent.mkdir(exist_ok=True)
    aside = out / state.FOLDER / f"{path.name}.{os.getpid()}.part"
    return shards.write(out, job.file, records(job, written), aside), job.split, written


def records(job: Job, written: Written) -> Iterator[bytes]:
    """The records of a shard one after the other, counted in `written`."""
    for label, entry in job.images:
        tick()
        try:
            if entry.size > MAX_BYTES:
                raise images.Broken(f"{entry.size:,} bytes; at most {MAX_BYTES:,} are read")
            picture = images.convert(archive.read(entry), job.resize, job.quality)
        except (images.Broken, archive.Unreadable) as reason:
            written.rejected.append((job.prefix + entry.name, str(reason)))
            written.unreadable += isinstance(reason, archive.Unreadable)
            continue
        written.counts[label, picture.kind] += 1
        written.resized += picture.resized
        name = raw(entry.name.rpartition("/")[2])
        yield tfexample.image(picture.encoded, picture.height, picture.width, label, *job.names[label], name)
