"""Where every record lies: read from index.bin beside the shards, or by walking through the shards, once.

index.bin is MAGIC, the length of the header (uint64), the header (JSON), the length in bytes of every record's data (uint32) and
the CRC-32C (uint32) of all that, little-endian. The records of a shard lie one behind the other, so the lengths give the offsets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c

from resnet import UserError, addresses, files, home
from resnet.data import manifest, shards
from resnet.data.shards import FRAME, Index, Shard

if TYPE_CHECKING:  # imported where it is needed: --help and a typo do not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray

NAME = "index.bin"
MAGIC = b"RESNETI1"
MAX_BYTES = 1 << 30  # of an index: 4 bytes a record
THREADS, REMOTE_THREADS = 16, 64  # that walk through shards: they wait for the disk or the network, not for a core
NPZ = {"file": "shard"}  # names in the cache: savez() has a parameter of the first name
LINE_S = 10.0  # between two lines of progress


@dataclass(frozen=True)
class Lengths:
    """A shard as its manifest lists it, and the lengths of its records' data in bytes, uint32 [n]."""

    shard: Shard
    lengths: NDArray[np.uint32]


def write(folder: Path, written: Sequence[Shard], lengths: Iterable[bytes]) -> None:
    """Write index.bin for shards below `folder`; `lengths` are those of each shard's records, as little-endian uint32."""
    header = json.dumps({"shards": [dataclasses.astuple(shard) for shard in written]}).encode()
    crc = 0
    with files.atomic_write(folder / NAME) as file:
        for part in (MAGIC, struct.pack("<Q", len(header)), header, *lengths):
            file.write(part)
            crc = google_crc32c.extend(crc, part)
        file.write(struct.pack("<I", crc))


class Unfit(Exception):
    """An index beside the shards that cannot be used; the message is for people."""


def load(folder: str, content: dict[str, Any] | None) -> dict[str, Lengths]:
    """read(); an index that cannot be used counts as none, and a line says so."""
    try:
        return read(folder, content)
    except Unfit as reason:
        say(f"{reason}, so the lengths of all records are read; copy it again with the shards, or prepare them again")
        return {}


def read(folder: str, content: dict[str, Any] | None) -> dict[str, Lengths]:
    """The lengths of every shard below `folder` by its path; empty without an index. Raises Unfit.

    `content` is the manifest's, if there is one.
    """
    path = f"{folder.rstrip('/')}/{NAME}"
    try:
        known = parse(files.read_content(path, MAX_BYTES))
    except OSError:
        return {}
    except (ValueError, TypeError, KeyError) as error:
        raise Unfit(f"{path}: damaged ({error})") from error
    if content and [dataclasses.asdict(one.shard) for one in known] != list(manifest.shards_of(content)):
        raise Unfit(f"{path}: not of the shards in {manifest.NAME}")
    return {f"{folder.rstrip('/')}/{one.shard.file}": one for one in known}


def parse(data: bytes) -> list[Lengths]:
    """The shards of an index. Raises ValueError, TypeError or KeyError for a damaged one."""
    import numpy as np

    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("not an index of this version")
    if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its checksum is wrong")
    start = len(MAGIC) + 8
    size = int.from_bytes(data[len(MAGIC) : start], "little")
    written = [Shard(*shard) for shard in files.parse_json(data[start : start + size])["shards"]]
    lengths = np.frombuffer(data[start + size : -4], "<u4")
    if sum(shard.images for shard in written) != len(lengths):
        raise ValueError(f"{len(lengths):,} lengths")
    ends = np.cumsum([shard.images for shard in written], dtype=np.int64)
    parts = [Lengths(*pair) for pair in zip(written, np.split(lengths, ends[:-1]), strict=True)]
    for one in parts:
        if int(one.lengths.sum(dtype=np.int64)) + FRAME * len(one.lengths) != one.shard.bytes:
            raise ValueError(f"its records do not fill {one.shard.file}")
    return parts


def index(paths: Sequence[str], known: dict[str, Lengths] | None = None) -> Index:
    """The index of all records of `paths`, in order: of the lengths that are `known`, if they fit the sizes of the files.

    Else it is cached under a key of the shards' sizes and times.
    """
    import numpy as np

    stamps = shards.stamps(paths)
    versions = [f"{size} {version}" for _, size, version in stamps]
    if known:
        wrong = [path for path, size, _ in stamps if path not in known or known[path].shard.bytes != size]
        if not wrong:
            lengths = [known[path].lengths.astype(np.int64) for path in paths]
            return joined(paths, versions, [np.cumsum(part + FRAME) - part - 4 for part in lengths], lengths)
        say(f"{wrong[0]}: not of the size that {NAME} says, so the lengths of all records are read")
    return cached(json.dumps(stamps), lambda: joined(paths, versions, *zip(*scanned(paths), strict=True)))


def cached(key: str, build: Callable[[], Index]) -> Index:
    """The index in the cache under this key, else what `build` returns, which is stored there."""
    import numpy as np

    cache = home.cache() / "index" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without a cache the next start scans again, nothing else
            cache.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.locked(cache.with_suffix(".lock")))  # the other ranks of this host wait
        # Exception, because np.load raises half a dozen kinds for a damaged file; then the shards are scanned again.
        with contextlib.suppress(Exception), np.load(cache) as saved:
            return unpacked(saved)
        result = build()
        with contextlib.suppress(OSError):
            packed = io.BytesIO()  # np.savez to a file on a full disk raises errors of zipfile's own
            parts = {NPZ.get(name, name): value for name, value in vars(result).items() if value is not None}
            np.savez(packed, **parts)
            with files.atomic_write(cache, cache.with_suffix(".part")) as file:  # one name: a kill leaves no other
                file.write(packed.getbuffer())
        return result


def unpacked(saved: Any) -> Index:
    """The index in an archive of NumPy's. Raises an Exception for a damaged one, or if a file of the cache has been removed."""
    paths = tuple(saved["files"].tolist())
    for path in paths:
        if path.startswith(str(home.cache())):
            Path(path).stat()
    optional = {name: saved.get(name) for name in ("label", "crc")}
    versions, established = tuple(saved["versions"].tolist()), bool(saved["established"])
    return Index(paths, saved["shard"], saved["offset"], saved["length"], versions, **optional, established=established)


def joined(paths: Sequence[str], versions: Sequence[str], offsets: Sequence[Any], lengths: Sequence[Any]) -> Index:
    """One index of the records of `paths`, whose offsets and lengths are one array a shard. Raises UserError without a record."""
    import numpy as np

    counts = [len(part) for part in lengths]
    if not any(counts):
        raise UserError(
            f"{paths[0]}: no record in this shard, nor in the {len(paths) - 1} beside it; copy or prepare them again"
        )
    return Index(
        tuple(paths),
        np.repeat(np.arange(len(paths), dtype=np.int32), counts),
        np.concatenate([np.asarray(part, np.int64) for part in offsets]),
        np.concatenate([np.asarray(part, np.int64) for part in lengths]),
        tuple(versions),
    )


def scanned(paths: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
    """(offsets, lengths) of each shard's records, in order; a line of progress every LINE_S seconds. Raises UserError."""
    shown = time.monotonic()
    with ThreadPoolExecutor(REMOTE_THREADS if addresses.is_remote(paths[0]) else THREADS) as pool:
        for number, result in enumerate(pool.map(shards.scan, paths)):
            if time.monotonic() > shown + LINE_S:
                shown = time.monotonic()
                say(
                    f"{number:,} of {len(paths):,} shards indexed, which have no {NAME}; the result is stored in the cache"
                )
            yield result


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
