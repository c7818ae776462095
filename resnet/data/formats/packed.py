"""Compressed shards. Nothing in the middle of one can be read, so they are expanded into the cache, once."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from resnet import UserError, addresses, files, home
from resnet.data import shards

THREADS = 32  # that look at the beginnings of shards
EXPANDING = 8  # shards at once
CHUNK = 8 << 20
EXPANDED = "expanded"  # the folder in the cache
LINE_S = 10.0  # between two lines of progress
EITHER = 32 + zlib.MAX_WBITS  # of zlib: gzip's header or its own
Stamp = tuple[str, int, int | str]  # as shards.stamps() returns them


def expanded(stamps: Sequence[Stamp]) -> list[str]:
    """The paths of these shards, or, of compressed ones, of their content in the cache. Raises UserError."""
    with ThreadPoolExecutor(THREADS) as pool:
        kinds = list(pool.map(kind_of, stamps))
    folder = home.cache() / EXPANDED
    places = [place_of(folder, stamp) if kind else None for kind, stamp in zip(kinds, stamps, strict=True)]
    new = [(stamp, place) for stamp, place in zip(stamps, places, strict=True) if place and not place.exists()]
    if new:
        expand_all(folder, new, next(filter(None, kinds)))
    return [str(place or path) for place, (path, _, _) in zip(places, stamps, strict=True)]


def is_expanded(path: str) -> bool:
    """Whether a file is the content of a compressed shard: it lies on the local disk already, wherever the shard does."""
    return path.startswith(f"{home.cache() / EXPANDED}/")


def kind_of(stamp: Stamp) -> str:
    """GZIP or ZLIB, by the first bytes of a shard; empty for one that is not compressed. Raises UserError."""
    path, size, _ = stamp
    if not size:
        return ""
    with files.explain_io_errors(path):
        head = next(chunks(path, min(size, 512), 512))
    framed = shards.masked_crc(head[:8]) == int.from_bytes(head[8:12], "little")
    kind = None if framed or head[257:262] == b"ustar" else shards.compression(head)
    return kind[0] if kind else ""


def place_of(folder: Path, stamp: Stamp) -> Path:
    return folder / f"{hashlib.sha256(repr(stamp).encode()).hexdigest()[:16]}-{stamp[0].rpartition('/')[2]}"


def expand_all(folder: Path, shards_to_expand: Sequence[tuple[Stamp, Path]], kind: str) -> None:
    """Write the content of these shards, and say so with its size. Raises UserError."""
    count, packed = len(shards_to_expand), sum(size for (_, size, _), _ in shards_to_expand)
    place = shards_to_expand[0][0][0].rpartition("/")[0]
    command = 'for f in *-of-*; do gzip -dc "$f" >"$f.tmp" && mv "$f.tmp" "$f"; done'
    way_out = f"set XDG_CACHE_HOME to a folder with more room, or write the shards anew without compression: {command}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if packed > free:
            lacking = f"at least {packed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free in {folder}"
            raise UserError(f"{place}: {count:,} shards compressed by {kind}, whose content needs {lacking}; {way_out}")
        say(f"{place}: {count:,} shards are compressed by {kind}; they are expanded into {folder}, once")
        with ThreadPoolExecutor(EXPANDING) as pool:
            written, shown = 0, time.monotonic()
            for number, size in enumerate(pool.map(lambda pair: expand(*pair), shards_to_expand), 1):
                written += size
                if time.monotonic() > shown + LINE_S:
                    shown = time.monotonic()
                    say(f"{number:,} of {count:,} shards expanded, {written / 1e9:,.1f} GB")
    except OSError as error:
        raise UserError(
            f"{place}: compressed by {kind}, and cannot be expanded into {folder} ({error}); {way_out}"
        ) from error
    say(
        f"{place}: expanded, {packed / 1e9:,.2f} GB to {written / 1e9:,.2f} GB; {folder} may be removed when no run reads it"
    )


def expand(stamp: Stamp, target: Path) -> int:
    """Write the content of one compressed shard to `target`, whole or not at all; its bytes. Raises UserError, OSError."""
    path, size, _ = stamp
    with files.locked(target.with_name(f".{target.name}.lock")):
        if not target.exists():  # or another process was faster
            try:
                # One name for all processes, who hold the lock: what a kill leaves is written over.
                with files.atomic_write(target, target.with_name(f".{target.name}.part")) as file:
                    file.writelines(inflated(chunks(path, size, CHUNK)))
            except (zlib.error, EOFError) as error:
                raise UserError(f"{path}: damaged ({error}); copy or prepare this shard again") from error
        return target.stat().st_size


def inflated(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The content of gzip or zlib streams, one behind the other. Raises zlib.error, and EOFError if the last has no end."""
    stream = zlib.decompressobj(EITHER)
    for part in parts:
        while part:
            if stream.eof:
                stream = zlib.decompressobj(EITHER)
            yield stream.decompress(part, CHUNK)
            part = stream.unused_data if stream.eof else stream.unconsumed_tail
    if not stream.eof:
        yield stream.flush()
    if not stream.eof:
        raise EOFError("its end is missing")


def chunks(path: str, size: int, chunk: int) -> Iterator[bytes]:
    """A file of `size` bytes in order. Raises UserError if it cannot be read."""
    at = 0
    with files.explain_io_errors(path):
        if addresses.is_remote(path):
            for at in range(0, size, chunk):
                yield addresses.read_exactly(path, at, min(size, at + chunk))
            return
        file: IO[bytes]
        with open(path, "rb", 0, opener=files.linked) as file:
            while part := file.read(chunk):
                yield part


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
