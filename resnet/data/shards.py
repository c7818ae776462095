"""TFRecord shards: files of framed records that can be read in any order.

A record is: length (uint64), masked CRC-32C of it, the data, masked CRC-32C of that, all little-endian
(tensorflow/core/lib/io/record_writer.h). Scanning the lengths once gives every record's offset; after that an epoch is a
permutation of numbers, resuming is a slice, and ranks share images out by counting. No TensorFlow is needed.
"""

from __future__ import annotations

import fnmatch
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import google_crc32c

from resnet import UserError, addresses, files
from resnet.data.formats import numbering

if TYPE_CHECKING:  # imported where it is needed: --help and a typo do not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray

# The established layouts, (training, validation), tried in this order.
LAYOUTS = (
    ("img_train/img_train-*-of-*", "img_val/img_val-*-of-*"),
    ("train/train-*-of-*", "validation/validation-*-of-*"),
    ("train-*-of-*", "validation-*-of-*"),
    # the original suite's mini_imagenet
    ("imagenet_train_subset/imagenet_train_subset-*-of-*", "imagenet_val_subset/imagenet_val_subset-*-of-*"),
    ("*-train.tfrecord-*-of-*", "*-validation.tfrecord-*-of-*"),  # TensorFlow Datasets
    ("*-train.tfrecord-*-of-*", "*-test.tfrecord-*-of-*"),
    ("*train-*.tar", "*val-*.tar"),  # WebDataset
    ("*train-*.tar", "*validation-*.tar"),
    ("train/*.tar", "val/*.tar"),
    ("train/*.tar", "validation/*.tar"),
)
FRAME = 8 + 4 + 4  # bytes around a record's data
MAX_RECORD = 1 << 30  # bytes of a record's data, which is read whole


def listing(folder: str, pattern: str, knob: str = "data.dir", known: Iterable[str] = ()) -> list[str]:
    """Paths below `folder` that match `pattern`, sorted; of the `known` ones where a server lists nothing."""
    sub, _, name = pattern.rpartition("/")
    inside = f"{folder.rstrip('/')}/{sub}".rstrip("/")
    if addresses.is_remote(folder):
        addresses.system(folder, f"{knob}=")
    try:
        names = list(addresses.listing(inside)) if addresses.is_remote(folder) else os.listdir(inside)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if not known or not isinstance(error, PermissionError):
            raise UserError(f"{knob}={folder}: cannot be listed ({error}); check the address and the access") from error
        names = []
    if addresses.is_remote(folder) and not names:
        names = [path.removeprefix(f"{inside}/") for path in known if path.startswith(f"{inside}/")]
    return [f"{inside}/{entry}" for entry in sorted(fnmatch.filter(names, name)) if "/" not in entry]


def find(folder: str, prepare: str, knob: str = "data.dir", known: Iterable[str] = ()) -> tuple[list[str], list[str]]:
    """(training, validation) shard paths below `folder`, in the first layout that has both.

    `prepare` is the command that would make them, and `knob` names the folder, for the error. `known` are paths of an index,
    for servers that list nothing.
    """
    pairs = []
    for patterns in LAYOUTS:
        train, val = (listing(folder, pattern, knob, known) for pattern in patterns)
        pairs.append((train, val))
        if train and val:
            for paths in (train, val):
                numbering.check_complete(paths)
            return train, val
    for (train, val), patterns in zip(pairs, LAYOUTS, strict=True):
        if train or val:
            present, missing = patterns if train else reversed(patterns)
            others = sorted(set(listing(folder, "*-of-*", knob)) - {*train, *val})
            hint = f" ({os.path.basename(others[0])} has another name)" if others else ""
            raise UserError(f"{knob}={folder}: has {present} but no {missing}{hint}; prepare both with: {prepare}")
    if arrays := listing(folder, "*.array_record*", knob):
        way_out = "have TensorFlow Datasets write TFRecord files: tfds build --file_format=tfrecord"
        raise UserError(f"{knob}={folder}: {os.path.basename(arrays[0])}: ArrayRecord files are not read; {way_out}")
    tried = ", ".join(dict.fromkeys(pattern for pair in LAYOUTS for pattern in pair))
    raise UserError(f"{knob}={folder}: no shards here; tried {tried}; prepare them with: {prepare}")


# ----------------------------------------------------------------------------------------------------------------- index
@dataclass(frozen=True)
class Index:
    """The location of every record: `files`, and for record i its file's number, its data's offset and length in bytes.

    Of other people's shards also its label as it is stored (int64 [n]), and the CRC-32C of its data where the shard has none
    (uint32 [n]). `established`: the records have the features of ours.
    """

    files: tuple[str, ...]
    file: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    versions: tuple[str, ...] = ()  # of the files: what changes with their content
    label: NDArray[np.int64] | None = None
    crc: NDArray[np.uint32] | None = None
    established: bool = True

    @property
    def tail(self) -> int:
        """How many bytes behind a record's data belong to it: its CRC, if the shard has one."""
        return 4 if self.crc is None else 0

    def sound(self, number: int, data: bytes, tail: bytes) -> bool:
        """Whether these bytes of record `number` have its length and its CRC."""
        if len(data) != self.length[number] or len(tail) != self.tail:
            return False
        if self.crc is None:
            return masked_crc(data) == int.from_bytes(tail, "little")
        return google_crc32c.value(data) == int(self.crc[number])

    def __len__(self) -> int:
        return len(self.file)

    def empty(self) -> list[str]:
        """The files without a record: the original suite leaves the last ones of its 1024 empty, if there are few images."""
        import numpy as np

        return [self.files[number] for number in np.flatnonzero(np.bincount(self.file, minlength=len(self.files)) == 0)]

    def place(self, number: int) -> str:
        """The file and byte where record `number` begins, for people."""
        return f"{self.files[self.file[number]]}, byte {self.start(number)}"

    def start(self, number: int) -> int:
        return int(self.offset[number]) - (12 if self.crc is None else 0)


class Damaged(UserError):
    """The bytes of a record could be read, and are wrong. Only such a record may be left out (data.on_corrupt=skip)."""


class FrameError(Exception):
    """The frame at byte `at` of a shard is damaged, so that the next one cannot be found; the message says how."""

    def __init__(self, at: int, message: str, way_out: str = "copy or prepare this shard again") -> None:
        super().__init__(message)
        self.at, self.way_out = at, way_out


def frames(shard: IO[bytes], size: int) -> Iterator[tuple[int, bytes, int]]:
    """(offset of the record, its header, length of its data) for a file of `size` bytes. Raises FrameError.

    The file's position is then where the data begins.
    """
    at = 0
    while at < size:
        shard.seek(at)
        head = shard.read(12)
        length = int.from_bytes(head[:8], "little")
        if len(head) < 12 or masked_crc(head[:8]) != int.from_bytes(head[8:], "little"):
            if at == 0 and (packed := compression(head)):
                raise FrameError(
                    at, f"compressed by {packed[0]}", f"write every shard anew, decompressed by {packed[1]}"
                )
            raise FrameError(at, "corrupt record header")
        if length > MAX_RECORD:
            raise FrameError(at, f"a record of {length:,} bytes, where {MAX_RECORD:,} are the most that is read")
        if at + length + FRAME > size:
            raise FrameError(at, f"truncated record ({at + length + FRAME - size:,} bytes are missing)")
        yield at, head, length
        at += length + FRAME


def compression(head: bytes) -> tuple[str, str] | None:
    """(name, what decompresses it) of TFRecord's two compressions of whole files, by a file's first bytes."""
    if head[:3] == b"\x1f\x8b\x08":
        return "GZIP", "gzip -dc"
    if head[:1] == b"\x78" and int.from_bytes(head[:2], "big") % 31 == 0:  # RFC 1950
        return "ZLIB", "Python's zlib.decompress"
    return None


def open_shard(path: str, ahead: int = addresses.AHEAD) -> Any:
    """A shard to read; at an address, by ranges of at least `ahead` bytes."""
    return addresses.Ranges(path, ahead) if addresses.is_remote(path) else open(path, "rb", 0, opener=files.linked)


def size_of(shard: Any) -> int:
    """The bytes of what open_shard() returned. Raises OSError."""
    return (
        addresses.stamp(shard.address)[0] if isinstance(shard, addresses.Ranges) else os.fstat(shard.fileno()).st_size
    )


def scan(path: str) -> tuple[list[int], list[int]]:
    """(offsets, lengths) of the records' data in one shard; none in an empty file. Raises UserError for a damaged frame."""
    offsets, lengths = [], []
    with files.explain_io_errors(path), open_shard(path) as shard:
        try:
            for at, _, length in frames(shard, size_of(shard)):
                offsets.append(at + 12)
                lengths.append(length)
        except FrameError as error:
            raise UserError(f"{path}: {error} at byte {error.at}; {error.way_out}") from error
    return offsets, lengths


def stamps(paths: Sequence[str]) -> list[tuple[str, int, int | str]]:
    """(path, size in bytes, modification time in ns; at an address its ETag or time) of each shard. Raises UserError."""
    if addresses.is_remote(paths[0]):
        with files.explain_io_errors(os.path.dirname(paths[0])):
            return [(path, *stamp) for path, stamp in zip(paths, addresses.stamps(paths), strict=True)]
    local: list[tuple[str, int, int | str]] = []
    for path in paths:
        with files.explain_io_errors(path):
            status = os.stat(path)
            local.append((path, status.st_size, status.st_mtime_ns))
    return local


# --------------------------------------------------------------------------------------------------------------- records
def masked_crc(data: bytes) -> int:
    """CRC-32C rotated and offset, as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def encode_record(data: bytes) -> bytes:
    """`data` as one TFRecord."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data))))


@dataclass(frozen=True)
class Shard:
    """A written shard as the manifest lists it: `file` below its folder, its records, its bytes and their CRC-32C."""

    file: str
    images: int
    bytes: int
    crc32c: str


def write(folder: Path, file: str, records: Iterable[bytes], aside: Path | None = None) -> Shard:
    """Write <folder>/<file>, which gets its name when it is complete and on disk; until then it is `aside`."""
    count = size = crc = 0
    with files.atomic_write(folder / file, aside) as shard:
        for record in records:
            framed = encode_record(record)
            shard.write(framed)
            count, size, crc = count + 1, size + len(framed), google_crc32c.extend(crc, framed)
    return Shard(file, count, size, f"{crc:08x}")


def write_split(folder: Path, name: str, records: Sequence[bytes], count: int) -> list[Shard]:
    """Write `records`, dealt out over `count` shards <name>-00000-of-<count>, below <folder>/<name>."""
    (folder / name).mkdir(parents=True)
    names = [f"{name}/{name}-{number:05d}-of-{count:05d}" for number in range(count)]
    return [write(folder, file, records[number::count]) for number, file in enumerate(names)]


def read(records: Index, number: int) -> bytes:
    """The data of one record, checked against its CRC. Raises UserError naming file and byte, Damaged if the CRC is wrong."""
    path = records.files[records.file[number]]
    offset, length, tail = int(records.offset[number]), int(records.length[number]), records.tail
    with files.explain_io_errors(path, offset):
        if addresses.is_remote(path):
            whole = addresses.read_exactly(path, offset, offset + length + tail)
            data, crc = whole[:length], whole[length:]
        else:
            with open_shard(path) as shard:
                shard.seek(offset)
                # Two reads: taking four bytes off the end would copy the image.
                data, crc = shard.read(length), shard.read(tail) if tail else b""
    if not records.sound(number, data, crc):
        raise Damaged(f"{path}: corrupt record at byte {records.start(number)}; copy or prepare this shard again")
    return data


# ------------------------------------------------------------------------------------------------------------------ order
def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The permutation of 0..count-1 for (seed, epoch): the same on every machine and NumPy version."""
    import numpy as np

    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    return np.argsort(bits, kind="stable")


def positions_of_rank(count: int, batch: int, rank: int, ranks: int, skip: int = 0) -> NDArray[np.int64]:
    """Positions in an epoch's order that `rank` of `ranks` reads, from step `skip` on, step after step.

    Step s of the epoch is positions s*batch .. (s+1)*batch-1 whatever the number of ranks; the incomplete last one is dropped.
    """
    import numpy as np

    positions = np.arange(count // batch * batch, dtype=np.int64).reshape(-1, batch)[skip:]
    local = batch // ranks
    return positions[:, rank * local : (rank + 1) * local].reshape(-1)
