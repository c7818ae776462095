"""Images to a folder of shards. A shard is one job that depends on its own images only: any number of processes writes the
same bytes, and a finished shard stays when the rest is lost."""

from __future__ import annotations

import contextlib
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
from typing import Any

from resnet import UserError, remote
from resnet.config.checks import check
from resnet.data import images, manifest, shards
from resnet.data.formats import tfexample
from resnet.prepare import archive, state, summary, target
from resnet.prepare.archive import Entry, raw
from resnet.prepare.knobs import Writing
from resnet.prepare.listing import Listing
from resnet.prepare.state import Split, Written
from resnet.prepare.target import Target
from resnet.prepare.workers import Workers, progress, tick

SHARD_IMAGES = 1000  # per shard, unless an established number of shards applies
FULL = 10  # images per shard: with fewer, the established number of shards would be mostly frames
RECORD_BYTES = 400  # of a record besides its image, at most about
NOT_OF_THE_BYTES = ("out", "processes", "max_rejected")  # knobs that may change from call to call
LATER = {
    "links": "inside",
    "missing_classes": "refuse",
    "labels": None,
    "label_column": None,
}  # of options that lack them
MAX_BYTES = 128 << 20  # of one image file
LAYOUTS = dict(zip(("img_train", "train", "flat"), shards.LAYOUTS, strict=False))


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
    out, start = target.of(settings.out), time.monotonic()
    knobs = dataclasses.asdict(settings).items()
    options = {"source": source, **{name: value for name, value in knobs if name not in NOT_OF_THE_BYTES}}
    settings = dataclasses.replace(settings, out=str(out.folder))
    try:
        if is_finished(out, options):
            return
        with state.claim(out) as claimed:
            if is_finished(out, options):  # another process was faster
                return
            if claimed.settings:
                check_same(out.name, "half done", claimed.settings["options"], options)
            with Workers(settings.processes) as workers:
                listing = Listing(claimed)
                fill(listing, workers)
                summary.check_left_out(listing, settings.max_rejected)
                names = [
                    shard_names(settings, split, established and established[number])
                    for number, split in enumerate(listing.splits)
                ]
                save_settings(listing, options)
                summary.headline(listing, names, workers.processes)
                count = write(settings, listing, names, workers)
            seconds = time.monotonic() - start
            summary.conclude(listing, settings.max_rejected, count, seconds)
    except (OSError, sqlite3.OperationalError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "disk is full" in str(error):
            message = "the disk is full; what is finished stays: make room, and the same command resumes"
        else:
            known = remote.reason(error) if out.remote and isinstance(error, OSError) else None
            reason = known or getattr(error, "strerror", None) or error
            message = f"cannot be written ({reason}); what stood there before still stands"
        raise UserError(f"out={out.name}: {message}") from error


def is_finished(out: Target, options: dict[str, Any]) -> bool:
    """Whether `out` is finished, with these options. Raises UserError if it has other options, or is no such folder."""
    content = out.content()
    if content:
        check_same(out.name, "finished", content["options"], options)
        shutil.rmtree(out.folder / state.FOLDER, ignore_errors=True)  # of a call that was killed in its last moment
        print(f"{out.name}: prepared already, with these options: {summary.totals(content)}")
        return True
    if not out.is_free(state.FOLDER, (out.folder / state.FOLDER / state.FILE).exists()):
        raise UserError(f"out={out.name}: it holds something else; give a new folder")
    return False


def check_same(out: str, status: str, before: dict[str, Any], options: dict[str, Any]) -> None:
    """Raise UserError unless the options are those of the earlier call."""
    before = {name: LATER[name] for name in LATER if name in options} | before
    old, new = ({name: "null" if value is None else value for name, value in one.items()} for one in (before, options))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if changed := ", ".join(f"{name} was {old.get(name, 'null')} and is {new.get(name, 'null')}" for name in names):
        resume = "the same options to go on, or " if status == "half done" else ""
        raise UserError(
            f"out={out}: {status} with other options ({changed}); give another out=, or {resume}delete that folder"
        )


def save_settings(listing: Listing, options: dict[str, Any]) -> None:
    """Record what the folder is made of. Raises UserError if that has changed since an earlier call."""
    claimed, versions = listing.state, manifest.versions()
    settings: dict[str, Any] = {"options": options, "versions": versions, "listing": listing.digest()}
    before = claimed.settings or settings
    if before["versions"] != versions:
        earlier = ", ".join(f"{name} {before['versions'].get(name)}" for name in versions)
        raise UserError(
            f"out={claimed.target.name}: half done with {earlier}, and converted images would differ now; use those versions, or "
            "delete that folder"
        )
    if before["listing"] != settings["listing"]:
        raise UserError(
            f"out={claimed.target.name}: half done, and the source has changed since; delete that folder, and begin again"
        )
    claimed.save_settings(settings)


def shard_names(settings: Writing, split: Split, established: int | None) -> list[str]:
    """The files of one split: as many as requested, or established, or one for SHARD_IMAGES images."""
    count = getattr(settings, f"{split.name}_shards")
    check(count is None or count <= len(split), f"{split.name}_shards", count, f"there are {len(split):,} images only")
    if count is None and established and len(split) >= FULL * established:
        count = established
    count = count or max(1, math.ceil(len(split) / SHARD_IMAGES))
    start, of, end = LAYOUTS[settings.layout][split.name == "val"].split("*")
    return [f"{start}{number:05d}{of}{count:05d}{end}" for number in range(count)]


def write(settings: Writing, listing: Listing, names: list[list[str]], workers: Workers) -> int:
    """Write the shards that are missing. Returns how many images were read for it."""
    claimed, total = listing.state, sum(map(len, listing.splits))
    finished = claimed.finished()
    [(images, size)] = claimed.select("total(images), total(bytes) FROM shards")
    [(rejected,)] = claimed.select("count(*) FROM rejected WHERE shard != ''")
    already = int(images) + rejected
    if already:
        print(f"resuming: {already:,} of {total:,} images are done", flush=True)
    if settings.resize is None:
        needed = sum(split.jpeg_bytes for split in listing.splits) + (total - already) * RECORD_BYTES - size
        free = claimed.target.free()
        if needed > free:
            raise UserError(
                f"out={claimed.target.name}: about {summary.size(needed)} more are needed there and {summary.size(free)} are "
                "free; make room, or give another out="
            )
    claimed.target.claim()
    written = claimed.target.delivered(workers.map(make, jobs(settings, listing, names, finished)))
    with progress("images", total, workers.ticks, already), contextlib.closing(written):
        for result in written:
            claimed.add_shard(*result)
    return total - already


# ------------------------------------------------------------------------------------------------------------------- a shard
@dataclass(frozen=True)
class Job:
    """One shard of a split. `prefix` + name is an image's name for people."""

    settings: Writing
    file: str
    split: str
    prefix: str
    images: list[tuple[int, Entry]]  # with their labels
    names: dict[int, tuple[bytes, bytes]]  # (synset, text) of every label


def jobs(settings: Writing, listing: Listing, names: list[list[str]], finished: set[str]) -> Iterator[Job]:
    """The shards that are not finished: a split's images, by class and name, permuted by the seed and dealt out."""
    texts = [(raw(name), raw(listing.texts.get(name, ""))) for name in listing.classes]
    for epoch, (split, files) in enumerate(zip(listing.splits, names, strict=True)):
        order = shards.permutation(settings.seed, epoch, len(split))
        for number, file in enumerate(files):
            if file not in finished:
                drawn = [split[int(place)] for place in order[number :: len(files)]]
                labels = {label: texts[label - 1] for label, _ in drawn}
                yield Job(settings, file, split.name, split.prefix, drawn, labels)


def make(job: Job) -> tuple[shards.Shard, str, Written]:
    """Write one shard; runs in a worker. OSError is about writing: what cannot be read is rejected."""
    out, written = Path(job.settings.out), Written()
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
            picture = images.convert(archive.read(entry), job.settings.resize, job.settings.quality)
        except (images.Broken, archive.Unreadable) as reason:
            written.rejected.append((job.prefix + entry.name, str(reason)))
            written.unreadable += isinstance(reason, (archive.Unreadable, images.NoDecoder))
            continue
        written.counts[label, picture.kind] += 1
        written.resized += picture.resized
        name = raw(entry.name.rpartition("/")[2])
        record = tfexample.image(picture.encoded, picture.height, picture.width, label, *job.names[label], name)
        written.lengths.append(len(record))
        yield record
