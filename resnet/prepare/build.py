"""A listing to a finished folder of shards: what is left to do, is there room, do it, sum it up."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resnet import UserError
from resnet.cli import REQUIRED, knob
from resnet.config.checks import check
from resnet.data import manifest
from resnet.prepare import journal, summary, writer
from resnet.prepare.bar import Bar
from resnet.prepare.listing import Listing, Split
from resnet.prepare.summary import Tally
from resnet.prepare.workers import Workers

SHARD_IMAGES = 1000  # to a shard, where nothing else is established
FULL = 10  # images to a shard: with fewer, the established number of shards would be mostly frames
RECORD_BYTES = 400  # of a record besides its image, at most about
NOT_OF_THE_BYTES = ("out", "processes", "max_rejected")  # knobs that may change from call to call


@dataclass(kw_only=True)
class Writing:
    """What every source of images is asked."""

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
        self.out = local("out", self.out)
        check(self.resize is None or self.resize >= 8, "resize", self.resize, "must be at least 8 pixels, or null")
        check(1 <= self.quality <= 100, "quality", self.quality, "must be 1 to 100")
        check(0 <= self.seed < 2**31, "seed", self.seed, "must be at least 0 and below 2^31")
        check(0 <= self.max_rejected <= 1, "max_rejected", self.max_rejected, "is a share of the images, 0 to 1")
        for name in ("train_shards", "val_shards"):
            number = getattr(self, name)
            check(number is None or 0 < number <= 99_999, name, number, "must be 1 to 99,999, or null")
        check_processes(self.processes)


def local(name: str, path: str) -> str:
    """An absolute path. Raises UserError for a URL: shards are made on local disks and copied."""
    check("://" not in path, name, path, "give a folder of this machine; finished shards can be copied anywhere")
    check(bool(path.strip()), name, repr(path), "give a path")
    return str(Path(path).expanduser().absolute())


def check_processes(processes: int | None) -> None:
    """How many workers may be asked for."""
    check(processes is None or 0 < processes <= 1024, "processes", processes, "must be 1 to 1024, or null")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


# ------------------------------------------------------------------------------------------------------------------ a folder
def folder(
    settings: Writing,
    source: str,
    established: tuple[int, int] | None,
    fill: Callable[[Listing, Workers], None],
) -> None:
    """Make the shards of what `fill` lists in settings.out, going on from what an earlier call has finished there.

    `established` numbers of shards, (training, validation), hold unless the images are too few. Raises UserError; whatever
    stops this, what stood in the folder before still stands.
    """
    out, began = Path(settings.out), time.monotonic()
    options = {"source": source, **dataclasses.asdict(settings)}
    for name in NOT_OF_THE_BYTES:
        del options[name]
    processes = settings.processes or cores()
    try:
        if standing(out, options):
            return
        with journal.claimed(out) as state:
            if standing(out, options):  # another process was faster
                return
            with Workers(processes) as workers:
                listing = Listing(state)
                fill(listing, workers)
                files = {
                    "train": shard_names(settings, "train", listing.train, established and established[0]),
                    "val": shard_names(settings, "val", listing.val, established and established[1]),
                }
                agree(out, options, listing)
                for line in summary.headline(listing, files, out, processes):
                    print(line, flush=True)
                tally = Tally(files)
                done = written(out, settings, listing, files, tally, workers)
            seconds = time.monotonic() - began
            summary.conclude(out, options, listing, tally, settings.max_rejected, done, seconds)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            told = "the disk is full; what is finished stands: make room, and the same command goes on"
        else:
            told = f"cannot be written ({error.strerror or error}); what stood there before still stands"
        raise UserError(f"out={out}: {told}") from error


def standing(out: Path, options: dict[str, Any]) -> bool:
    """Whether `out` is finished, with these options. Raises UserError if something else lies there, half done or not."""
    made = manifest.read(out)
    if known := made or journal.settings(out):
        before = known["options"]
        changed = [name for name in {**before, **options} if before.get(name) != options.get(name)]
        if changed:
            told = ", ".join(
                f"{name} was {shown(before.get(name))} and is {shown(options.get(name))}" for name in changed
            )
            raise UserError(
                f"out={out}: {'finished' if made else 'half done'} with other options ({told}); give another out=, or "
                f"{'' if made else 'the same options to go on, or '}delete that folder"
            )
    elif out.exists() and any(item.name != journal.STATE for item in out.iterdir()):
        raise UserError(f"out={out}: something else lies there; give a new folder")
    if made:
        shutil.rmtree(out / journal.STATE, ignore_errors=True)  # of a call that was killed in its last moment
        print(f"{out}: prepared already, with these options: {summary.totals(made)}")
    return made is not None


def shown(value: object) -> str:
    """A value as it is written on the command line."""
    return "null" if value is None else str(value)


def agree(out: Path, options: dict[str, Any], listing: Listing) -> None:
    """Note down what `out` is made of, or compare it with what an earlier call noted down."""
    now = {"options": options, "versions": manifest.versions(), "listing": listing.digest()}
    before = journal.settings(out)
    if before is None:
        journal.begin(out, now)
    elif before["versions"] != now["versions"]:
        told = ", ".join(f"{name} {before['versions'].get(name)}" for name in now["versions"])
        raise UserError(
            f"out={out}: half done with {told}, and converted images would differ now; go on with those, or delete that folder"
        )
    elif before["listing"] != now["listing"]:
        raise UserError(f"out={out}: half done, and the source has changed since; delete that folder, and begin again")


def shard_names(settings: Writing, split: str, images: Split, established: int | None) -> list[str]:
    """The files of one split: as many as asked for, or established, or one for SHARD_IMAGES images."""
    asked = getattr(settings, f"{split}_shards")
    check(asked is None or asked <= len(images), f"{split}_shards", asked, f"there are {len(images):,} images only")
    if asked is None and established and len(images) >= FULL * established:
        asked = established
    return writer.names(settings.layout, split == "val", asked or max(1, math.ceil(len(images) / SHARD_IMAGES)))


def written(
    out: Path, settings: Writing, listing: Listing, files: dict[str, list[str]], tally: Tally, workers: Workers
) -> int:
    """Write the shards that are not there yet. Returns how many images were read for it."""
    left: dict[str, list[str]] = {split: [] for split in files}
    already = 0
    for split, names in files.items():
        for file in names:
            if (shard := journal.finished(out, file)) and not shard.unreadable:
                tally.add(shard)
                already += shard.images + len(shard.rejected)
            else:
                left[split].append(file)
    total = len(listing.train) + len(listing.val)
    if already:
        print(f"going on: {already:,} of {total:,} images are done", flush=True)
    if settings.resize is None:
        room(out, listing.train.jpeg_bytes + listing.val.jpeg_bytes + (total - already) * RECORD_BYTES, tally)
    jobs = itertools.chain.from_iterable(
        writer.jobs(out, listing, split, files[name], left[name], settings.seed, settings.resize, settings.quality)
        for name, split in (("train", listing.train), ("val", listing.val))
    )
    with Bar("images", total, workers.ticks, already):
        for shard in workers.map(writer.make, jobs):
            tally.add(shard)
    return total - already


def room(out: Path, needed: int, tally: Tally) -> None:
    """Raise UserError if the disk cannot take `needed` bytes, less those of the shards that stand."""
    needed -= sum(shard.bytes for shard in tally.shards.values())
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"out={out}: about {summary.size(needed)} more are needed there and {summary.size(free)} are free; make room, "
            "or give another out="
        )
