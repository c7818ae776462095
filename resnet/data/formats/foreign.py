"""Other people's shards: TFRecords of other features, compressed ones, tars. They are read through once, from front to back.

That tells where every record lies, its label, and the CRC of what has none; the result is cached. All labels are known before
the first step, so whether they begin at 0 or at 1 is decided by all of them: labels.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from resnet import UserError, files, home
from resnet.data import images, indexes, shards
from resnet.data.formats import ahead, packed, tars, tfexample
from resnet.data.shards import Index

VERSION = "labels 1"  # of what is cached
FILES, REQUESTS = 16, 32  # read at once; requests at once, over all files at addresses
UNREADABLE = np.iinfo(np.int64).min  # in place of a label: damaged, or no image with a label


class Stopped(Exception):
    """Another shard cannot be read."""


class Record(NamedTuple):
    """Where a record's data lie, its label as it is stored, and in a tar the CRC-32C of the data."""

    offset: int
    length: int
    label: int
    crc: int
    established: bool


def index(paths: Sequence[str]) -> Index:
    """The index of other people's shards, with labels as they are stored. Raises UserError."""
    stamps = shards.stamps(paths)
    parts = home.cache() / "index" / "parts" / key_of(paths)
    result = indexes.cached(json.dumps([VERSION, stamps]), lambda: read_through(stamps, parts))
    shutil.rmtree(parts, ignore_errors=True)  # only now: the whole index is stored
    return result


def read_through(stamps: Sequence[packed.Stamp], folder: Path) -> Index:
    """The index of all these shards. In `folder` lie the records of each until those of all are stored.

    So a start that was stopped does not begin again.
    """
    paths = packed.expanded(stamps)
    known = {path: (size, version) for path, size, version in stamps}
    if inflated := [path for path in paths if path not in known]:
        known |= {path: (size, version) for path, size, version in shards.stamps(inflated)}
    sizes, versions = [known[path][0] for path in paths], [f"{known[path][0]} {known[path][1]}" for path in paths]
    parts = read_all(paths, sizes, [folder / f"{key_of(stamp)}.npz" for stamp in stamps])
    offsets, lengths, labels, crcs, established = (
        [part[:, column] for part in parts] for column in range(len(Record._fields))
    )
    result = indexes.joined(paths, versions, offsets, lengths)
    return dataclasses.replace(
        result,
        label=np.concatenate(labels),
        crc=np.concatenate(crcs).astype(np.uint32) if is_tar(paths[0]) else None,
        established=all(part.all() for part in established),
    )


def key_of(value: object) -> str:
    return hashlib.sha256(json.dumps([VERSION, value]).encode()).hexdigest()[:24]


def is_tar(path: str) -> bool:
    return path.endswith(".tar")


def read_all(paths: Sequence[str], sizes: Sequence[int], places: Sequence[Path]) -> list[NDArray[np.int64]]:
    """The records of every shard, int64 [n, 5], several read at once; a line of progress now and then. Raises UserError."""
    stop, at, total = threading.Event(), [0] * len(paths), max(1, sum(sizes))
    depth = max(1, REQUESTS // len(paths))

    def job(number: int) -> NDArray[np.int64]:
        def step(position: int) -> None:
            at[number] = position
            if stop.is_set():
                raise Stopped

        path, size = paths[number], sizes[number]
        # Exception, because np.load raises half a dozen kinds for a damaged file; then the shard is read again.
        with contextlib.suppress(Exception), np.load(places[number]) as saved:
            return saved["records"]
        with files.explain_io_errors(path), ahead.open_file(path, size, requests, depth, stop) as file:
            records = read_shard(file, path, size, step)
        store(records, places[number])
        return records

    with ThreadPoolExecutor(REQUESTS) as requests, ThreadPoolExecutor(FILES) as pool:
        futures = [pool.submit(job, number) for number in range(len(paths))]
        try:
            report_until_done(futures, lambda: sum(at), total)
            return [future.result() for future in futures]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def store(records: NDArray[np.int64], place: Path) -> None:
    """Write what is known of one shard; where that is not possible, a start that was stopped begins again."""
    packed_records = io.BytesIO()  # np.savez to a file on a full disk raises errors of zipfile's own
    np.savez(packed_records, records=records)
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(place, place.with_suffix(".part")) as file:  # one name: a kill leaves no other
            file.write(packed_records.getbuffer())


def report_until_done(futures: Sequence[Future[NDArray[np.int64]]], position: Callable[[], int], total: int) -> None:
    """Wait for all, or for the first error, which is raised."""
    pending = True
    while pending:
        done, waiting = wait(futures, indexes.LINE_S, FIRST_EXCEPTION)
        for future in done:
            future.result()
        if pending := bool(waiting):
            share = f"{position() / 1e9:,.1f} of {total / 1e9:,.1f} GB"
            indexes.say(
                f"{share} read to index {len(futures):,} shards of other programs; the result is stored in the cache"
            )


def read_shard(file: IO[bytes], path: str, size: int, step: Callable[[int], None]) -> NDArray[np.int64]:
    """The records of one shard; `step` is called with the position of each. Raises UserError for damage that hides others."""
    records = []
    try:
        for record in in_tar(file, size) if is_tar(path) else in_frames(file, size):
            step(record.offset)
            records.append(record)
    except shards.FrameError as error:
        raise UserError(f"{path}: {error} at byte {error.at}; {error.way_out}") from error
    except tars.TarError as error:
        raise UserError(f"{path}: byte {error.at:,}: {error}") from error
    return np.array(records, np.int64).reshape(-1, len(Record._fields))


def in_frames(file: IO[bytes], size: int) -> Iterator[Record]:
    """The records of a TFRecord file."""
    for at, _, length in shards.frames(file, size):
        data, crc = file.read(length), file.read(4)
        label, established = UNREADABLE, True
        if shards.masked_crc(data) == int.from_bytes(crc, "little"):
            with contextlib.suppress(ValueError, images.Broken):
                image, stored, established = tfexample.sample(data)
                images.header(image)
                label = stored
        yield Record(at + 12, length, label, 0, established)


def in_tar(file: IO[bytes], size: int) -> Iterator[Record]:
    """The samples of a tar."""
    for sample in tars.samples(file, size):
        label = UNREADABLE
        with contextlib.suppress(images.Broken):
            images.header(sample.image)
            label = sample.label
        yield Record(sample.offset, len(sample.image), label, google_crc32c.value(sample.image), False)
