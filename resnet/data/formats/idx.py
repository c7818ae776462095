"""IDX files of images and labels, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST, as they are or gzipped.

Two zeros, the type (8: uint8), the number of dimensions, each dimension as a big-endian uint32, the values (Y. LeCun,
http://yann.lecun.com/exdb/mnist). No line of a file is believed before it is checked: sizes are bounded, and must be those of
the file.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnet import UserError, files, shell
from resnet.config.data import FASHION_DIR
from resnet.data import embedded, images
from resnet.data.embedded import Content, Half
from resnet.data.formats import tfexample

UINT8 = 8
MAX_BYTES = 1 << 30  # of one file's values; EMNIST, the largest of its kind, has 547 MB
CHUNK = 1 << 20
PARTS = {"train": "train", "val": "t10k|test"}  # what the names of the files begin with, or have in them
SHARD_IMAGES = 1000

# Debian's package dataset-fashion-mnist: 70,000 photographs of clothes, 28 px, grey, MIT (arXiv:1708.07747).
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def write_fashion(folder: str) -> None:
    """embedded.write() of Fashion-MNIST from Debian's package. Raises UserError, with what installs it, if it is not there."""

    def content() -> Content:
        if not Path(FASHION_DIR).is_dir():
            way_out = shell.command("resnet.prepare", "source=idx", "names=fashion", "dir=FOLDER", f"out={folder}")
            raise UserError(
                "data=fashion: the pictures are in Debian's package dataset-fashion-mnist, which is not installed; "
                f"apt-get install dataset-fashion-mnist, or, with its four files in a folder of your own, {way_out}"
            )
        train, val = (file_in(FASHION_DIR, part, "data=fashion") for part in PARTS)
        return read(train, val, FASHION)

    embedded.write(folder, "data.dir", {"source": "fashion"}, content)


# ---------------------------------------------------------------------------------------------------------------- files
def file_in(folder: str, part: str, where: str) -> str:
    """The file of the images of `part`, train or val, in a folder. Raises UserError, beginning with `where`, without one."""
    pattern = re.compile(rf"(.*[-_.])?({PARTS[part]})[-_.]images[-_.]idx\d[-_.]ubyte(\.gz)?", re.IGNORECASE)
    try:
        names = sorted(path.name for path in Path(folder).iterdir() if pattern.fullmatch(path.name))
    except OSError as error:
        raise UserError(f"{where}: {folder} cannot be listed ({error.strerror})") from error
    sets = {name.removesuffix(".gz") for name in names}
    if len(sets) == 1:
        return f"{folder}/{names[0]}"
    problem = f"{len(sets)} files of such images ({', '.join(sorted(sets))})" if sets else "no file of images"
    example = f"{PARTS[part].partition('|')[0]}-images-idx3-ubyte.gz"
    raise UserError(f"{where}: {problem} in {folder}, such as {example}; name one with {part}=FILE")


def labels_beside(path: str) -> str:
    """The file of the labels of a file of images: of the same name with labels for images, gzipped or not."""
    folder, _, name = path.rpartition("/")
    plain = re.sub(r"idx\d", "idx1", name.removesuffix(".gz").replace("images", "labels"))
    present = [f"{folder}/{one}" for one in (plain, f"{plain}.gz") if Path(folder, one).exists()]
    if not present or plain == name.removesuffix(".gz"):
        raise UserError(f"{path}: its labels must lie beside it, as {plain.replace('images', 'labels')} or with .gz")
    return present[0]


def values(path: str, dimensions: Sequence[int]) -> NDArray[np.uint8]:
    """The values of an IDX file, whose number of dimensions must be one of these. Raises UserError."""
    try:
        with files.open_bytes(path, MAX_BYTES, links=True) as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if zipped else file as plain:
                return checked(plain, path, dimensions)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def checked(file: IO[bytes] | gzip.GzipFile, path: str, dimensions: Sequence[int]) -> NDArray[np.uint8]:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise UserError(f"{path}: no IDX file; it does not begin with two zeros, a type and a number of dimensions")
    if start[2] != UINT8 or start[3] not in dimensions:
        counts = " or ".join(map(str, dimensions))
        raise UserError(f"{path}: values of type {start[2]} in {start[3]} dimensions; must be uint8 (8) in {counts}")
    sizes = file.read(4 * start[3])
    shape = struct.unpack(f">{start[3]}I", sizes) if len(sizes) == 4 * start[3] else ()
    wanted = math.prod(shape)
    if not shape or not wanted or wanted > MAX_BYTES:
        raise UserError(f"{path}: {wanted if shape else 0:,} values by its header; must be 1 to {MAX_BYTES:,}")
    content = bytearray()
    while len(content) <= wanted and (chunk := file.read(min(CHUNK, wanted + 1 - len(content)))):
        content += chunk  # to its end, or the checksum of a gzip would not be looked at
    if len(content) != wanted:
        size = f"more than {wanted:,}" if len(content) > wanted else f"{len(content):,}"
        raise UserError(f"{path}: {size} values, and its header says {wanted:,}; copy it again")
    return np.frombuffer(bytes(content), np.uint8).reshape(shape)


# --------------------------------------------------------------------------------------------------------------- images
def read(train: str, val: str, names: Sequence[str] | None = None) -> Content:
    """What embedded.write() writes of two files of images [n, h, w] or [n, h, w, 1 or 3], with labels 0 to 255 beside them.

    Classes without `names` are called by their numbers. Raises UserError.
    """
    pairs = {part: pair(path) for part, path in (("train", train), ("val", val))}
    highest = max(int(labels.max()) for _, labels in pairs.values())
    names = names or [str(label) for label in range(highest + 1)]
    if not 2 <= len(names) > highest:
        raise UserError(
            f"{train}: labels up to {highest}, and {len(names)} classes; there must be 2 or more, and as many"
        )
    halves = {part: half(pixels, labels, names, part) for part, (pixels, labels) in pairs.items()}
    return names, halves


def pair(path: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(pixels, labels) of a file of images and of the one beside it. Raises UserError."""
    pixels, beside = values(path, (3, 4)), labels_beside(path)
    labels = values(beside, (1,))
    if len(labels) != len(pixels):
        raise UserError(f"{path}: {len(pixels):,} images, and {len(labels):,} labels in {beside}; they belong together")
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3):
        raise UserError(f"{path}: {pixels.shape[3]} values a pixel; must be 1 (grey) or 3 (RGB)")
    try:
        images.check_size(pixels.shape[2], pixels.shape[1])
    except images.Broken as reason:
        raise UserError(f"{path}: {reason}") from reason
    return pixels, labels


def half(pixels: NDArray[np.uint8], labels: NDArray[np.uint8], names: Sequence[str], part: str) -> Half:
    records = []
    height, width = pixels.shape[1:3]
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        name, filename = names[label].encode(), f"{part}-{number:05d}.jpg".encode()
        records.append(tfexample.image(jpeg(image), height, width, int(label) + 1, name, name, filename))
    return Half(labels.tolist(), records, math.ceil(len(records) / SHARD_IMAGES))


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """An image as RGB JPEG of quality 100 without subsampling, the training's format.

    Of Fashion-MNIST: within 2 of the 255 levels of each pixel (0.06 in the mean); at quality 95 within 11 (0.9).
    """
    encoded = io.BytesIO()
    plain = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    Image.fromarray(plain).convert("RGB").save(encoded, "JPEG", quality=100, subsampling=0, optimize=True)
    return encoded.getvalue()
