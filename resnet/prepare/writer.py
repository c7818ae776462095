"""Writing a listing as shards. A shard is one job and depends on its own images only: any number of processes makes the
same bytes, and a shard that is finished stays when the rest is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from resnet.data import shards, tfexample
from resnet.prepare import archive, images, journal
from resnet.prepare.archive import Entry, raw
from resnet.prepare.journal import Shard
from resnet.prepare.listing import Listing, Split
from resnet.prepare.workers import tick

MAX_BYTES = 128 << 20  # of one image file
LAYOUTS = dict(zip(("img_train", "train", "flat"), shards.LAYOUTS, strict=True))


@dataclass(frozen=True)
class Picked:
    """One image on its way into a shard."""

    entry: Entry
    label: int
    synset: bytes
    text: bytes


@dataclass(frozen=True)
class Job:
    """One shard, `file` below the folder `out`. People are told `prefix` + an image's name."""

    out: str
    file: str
    prefix: str
    picked: list[Picked]
    resize: int | None
    quality: int


def names(layout: str, val: bool, count: int) -> list[str]:
    """The shards' files below their folder."""
    start, of, end = LAYOUTS[layout][val].split("*")
    return [f"{start}{number:05d}{of}{count:05d}{end}" for number in range(count)]


def jobs(
    out: Path,
    listing: Listing,
    split: Split,
    files: list[str],
    wanted: list[str],
    seed: int,
    resize: int | None,
    quality: int,
) -> Iterator[Job]:
    """Those `wanted` of the shards of one split: its images, by class and name, permuted by the seed and dealt out."""
    order = shards.permutation(seed, 0 if split is listing.train else 1, len(split))
    known = [(raw(name), raw(listing.texts.get(name, ""))) for name in listing.classes]
    for number, file in enumerate(files):
        if file not in wanted:
            continue
        drawn = [split[int(place)] for place in order[number :: len(files)]]
        picked = [Picked(image.entry, image.label, *known[image.label - 1]) for image in drawn]
        yield Job(str(out), file, split.prefix, picked, resize, quality)


def make(job: Job) -> Shard:
    """Write one shard and note it down; for a worker. OSError is about writing: what cannot be read is rejected."""
    out = Path(job.out)
    path, shard = out / job.file, Shard(job.file)
    path.parent.mkdir(exist_ok=True)
    aside = out / journal.STATE / f"{path.name}.{os.getpid()}.part"
    vars(shard).update(vars(shards.write(out, job.file, records(job, shard), aside)))
    journal.keep(out, shard)
    return shard


def records(job: Job, shard: Shard) -> Iterator[bytes]:
    """The records of a shard one after the other, counted in `shard`."""
    for picked in job.picked:
        tick()
        try:
            if picked.entry.size > MAX_BYTES:
                raise images.Broken(f"{picked.entry.size:,} bytes; at most {MAX_BYTES:,} are read")
            picture = images.convert(archive.read(picked.entry), job.resize, job.quality)
        except (images.Broken, archive.Unreadable) as reason:
            shard.rejected.append((job.prefix + picked.entry.name, str(reason)))
            shard.unreadable += isinstance(reason, archive.Unreadable)
            continue
        shard.classes[str(picked.label)] += 1
        shard.kinds[picture.kind] += 1
        shard.resized += picture.resized
        name = raw(picked.entry.name.rpartition("/")[2])
        yield tfexample.image(
            picture.encoded, picture.height, picture.width, picked.label, picked.synset, picked.text, name
        )
