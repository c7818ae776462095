"""An image as everything of the suite sees it: upright, eight-bit RGB. The content decides what a file is, never its name.

These rules hold in preparation, in the reading of shards and in the served model, which has a copy of this file: so it imports
nothing of resnet.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

# A bomb is refused before it is decoded: Pillow's own bound; three bytes a pixel make it 256 MiB.
MAX_PIXELS = 89_478_485
# Of the longer side to the shorter. Evaluation scales the short side to 256 and so the long one to 256 times this at most.
MAX_ASPECT = 100
# Decoders for other people's bytes, beside those of PACKAGES; the first frame of an animation.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
PACKAGES = {  # what decodes the formats that not every Pillow does, and the way to it
    "AVIF": "a Pillow with AVIF: pip install -U pillow",
    "HEIF": "the package pillow-heif: pip install -e '.[heic]'",
}
STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
BRANDS = {b"avif": "AVIF", b"avis": "AVIF"}  # of an ISO base media file (ISO 14496-12 4.3)
BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIF")
HEAD = 32  # bytes by which form_of() recognizes a format
TWELVE, SIXTEEN = 4095, 65535  # the largest values of so many bits
QUALITY = 95  # of a converted image, unless asked otherwise
ORIENTATION = 0x0112  # EXIF tag: how the camera was held
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
COMMON_FRAMES = (0xC0, 0xC1, 0xC2)  # markers that every decoder knows: baseline, extended, progressive; Huffman coded
APP1, SCAN = 0xE1, 0xDA  # markers: of EXIF and XMP; of the compressed pixels, before which all headers are

warnings.filterwarnings("ignore", module=r"PIL\.")  # odd EXIF, harmless; what matters is an exception


class Broken(Exception):
    """This image cannot be used; the message is the reason, without its name."""


class NoDecoder(Broken):
    """This image could be used if a package were installed."""


class Header(NamedTuple):
    """Width and height in pixels. `plain`: an upright JPEG, RGB or grey, which TensorFlow decodes as Pillow does."""

    width: int
    height: int
    plain: bool


@dataclass(frozen=True)
class Picture:
    """An RGB JPEG. `kind` is what it was before: "JPEG" for what is one already."""

    encoded: bytes
    height: int
    width: int
    kind: str
    resized: bool = False


@contextlib.contextmanager
def broken() -> Iterator[None]:
    """Context in which every error of a decoder is Broken, but for a lack of memory."""
    try:
        yield
    except (Broken, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise Broken(f"at least {2 * MAX_PIXELS:,} pixels; at most {MAX_PIXELS:,} are decoded") from None
    except Exception as error:  # the parsers of decoders raise anything for damaged data
        message = " ".join(str(error).split()) or type(error).__name__
        unknown = "cannot identify" in message
        raise Broken(
            "not a JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or HEIC image" if unknown else message[:200]
        ) from error


def form_of(head: bytes) -> str:
    """The format that the first HEAD bytes of a file announce, by Pillow's name; empty for any other."""
    if head[4:8] == b"ftyp":
        brands = [head[at : at + 4] for at in (8, *range(16, len(head), 4))]  # the major one, then the compatible ones
        return next((BRANDS[brand] for brand in brands if brand in BRANDS), "")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "BMP"
    return next((form for start, form in STARTS.items() if head.startswith(start)), "")


@functools.cache
def decodes(form: str) -> bool:
    """Whether images of a format of PACKAGES are decoded here; of any other they are."""
    if form == "AVIF":
        return bool(features.check("avif"))
    if form == "HEIF":
        try:
            import pillow_heif
        except ImportError:
            return False
        pillow_heif.register_heif_opener()
    return True


def check_size(width: int, height: int) -> None:
    """Raise Broken for more than MAX_PIXELS, or a side more than MAX_ASPECT times the other."""
    if width * height > MAX_PIXELS:
        raise Broken(f"{width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Broken(f"{width} x {height} pixels; one side is more than {MAX_ASPECT} times the other")


def header(data: bytes | memoryview) -> Header:
    """What the header of an image says; nothing is decoded. Raises Broken, also for a size that is not decoded."""
    if data[:2] == b"\xff\xd8":
        parts = list(segments(data))
        frame = next((data[start:end] for marker, start, end in parts if marker in COMMON_FRAMES), b"")
        if len(frame) > 5 and frame[0] == 8 and frame[5] in (1, 3) and APP1 not in [marker for marker, _, _ in parts]:
            height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            check_size(width, height)
            return Header(width, height, min(width, height) > 0)
    with broken():
        image, turn = open_image(bytes(data))
        plain = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and frame_marker(data) in COMMON_FRAMES
        return Header(image.width, image.height, plain and turn is None)


def open_image(data: bytes) -> tuple[Image.Image, Image.Transpose | None]:
    """(an image, not decoded yet; how to turn it upright). Raises Broken for its size, and what Pillow raises."""
    form = form_of(data[:HEAD])
    if form in PACKAGES and not decodes(form):
        raise NoDecoder(f"{form}, which needs {PACKAGES[form]}")
    image: Image.Image = Image.open(io.BytesIO(data), formats=(form,) if form in PACKAGES else FORMATS)
    check_size(*image.size)
    if image.format == "TIFF":  # Pillow turns it as it decodes
        return image, None
    try:
        return image, TURNS.get(int(image.getexif().get(ORIENTATION, 1)))
    except MemoryError:
        raise
    except Exception:  # damaged EXIF is no reason to reject the image
        return image, None


def upright(data: bytes) -> Image.Image:
    """The image in `data`, decoded, upright, RGB. Raises Broken."""
    with broken():
        image, turn = open_image(data)
        image, _ = to_rgb(image, data)
        return image.transpose(turn) if turn is not None else image


def convert(data: bytes, resize: int | None = None, quality: int = QUALITY) -> Picture:
    """The image in `data`, byte for byte if it is an upright RGB JPEG, else encoded anew.

    `resize` encodes anew whatever has a longer short side, so that it has this one. Everything is decoded, to be sure that
    it can be. Raises Broken.
    """
    with broken():
        image, turn = open_image(data)
        width, height = image.size
        kind = kind_of(image, data, turned=turn is not None)
        short = min(width, height)
        smaller = resize is not None and short > resize
        if kind == "JPEG" and not smaller:
            image.draft(None, (1, 1))  # decoded at 1/8: all of the data is read, a part of the arithmetic is saved
            image.load()
            return Picture(data, height, width, kind)
        if resize is not None and smaller:
            target = (round(width * resize / short), round(height * resize / short))
            image.draft(None, (2 * target[0], 2 * target[1]))  # a JPEG comes out of its decoder no larger than needed
            image, twelve = to_rgb(image, data)
            image = image.resize(target, Image.Resampling.BICUBIC)
        else:
            image, twelve = to_rgb(image, data)
        kind = kind.replace("16-bit", "12-bit") if twelve else kind
        image = image.transpose(turn) if turn is not None else image
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=quality, comment=b"")
        return Picture(encoded.getvalue(), image.height, image.width, kind, smaller)


def readable(data: bytes | memoryview, whole: bool) -> bytes | None:
    """The JPEG that preparation makes of the image of a record; None where the record's own is one that TensorFlow decodes.

    `whole` decodes that one too, to be sure. Raises Broken.
    """
    if not header(data).plain:
        return convert(bytes(data)).encoded
    if whole:
        convert(bytes(data))
    return None


def kind_of(image: Image.Image, data: bytes, *, turned: bool) -> str:
    """What an image is, in words: "JPEG", "JPEG CMYK", "PNG 16-bit alpha", "JPEG rotated"."""
    form = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: a JPEG with a second one behind it
    words = [form]
    if form == "JPEG" and image.mode == "CMYK":
        words.append("YCCK" if image.info.get("adobe_transform") == 2 else "CMYK")
    elif form == "JPEG" and image.mode == "RGB" and frame_marker(data) not in COMMON_FRAMES:
        words.append("of a rare coding")
    if image.mode in ("L", "LA", "1") or image.mode.startswith(("I", "F")):
        words.append("grey")
    if image.mode == "P" and form == "PNG":
        words.append("palette")
    if image.mode.startswith("I") or (form == "PNG" and data[24:25] == b"\x10"):  # the bit depth in IHDR
        words.append("16-bit")
    return " ".join([*words, *["alpha"] * image.has_transparency_data, *["rotated"] * turned])


def segments(jpeg: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """(marker, where its content begins and ends) of what is before the pixels of a JPEG (ISO 10918-1 B.1)."""
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != SCAN:
        if jpeg[at + 1] == 0xFF:  # filling
            at += 1
            continue
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        yield jpeg[at + 1], at + 4, end
        at = end


def frame_marker(jpeg: bytes | memoryview) -> int:
    """The marker of a JPEG's frame header (ISO 10918-1 B.2.2), 0 if there is none."""
    markers = (marker for marker, _, _ in segments(jpeg))
    return next((one for one in markers if 0xC0 <= one <= 0xCF and one not in (0xC4, 0xC8, 0xCC)), 0)


def to_rgb(image: Image.Image, data: bytes) -> tuple[Image.Image, bool]:
    """(the image, which is in `data`, as eight-bit RGB, on white where transparent; whether its 16-bit values hold 12 bits)."""
    if image.mode == "F":
        raise Broken("floating-point values, of which nobody knows the range; convert it to 8 or 16 bits")
    values, twelve = sixteen_bits(image, data), False
    if values is not None:
        count = values.shape[2] - 1 + values.shape[2] % 2  # of channels besides alpha
        twelve = 0 < int(values[..., :count].max()) <= TWELVE
        planes = [eight_bits(part) for part in (values[..., :count], values[..., count:]) if part.size]
        image = Image.fromarray(np.concatenate(planes, 2) if count + len(planes) > 2 else planes[0][..., 0])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), twelve
    return image.convert("RGB"), twelve


def sixteen_bits(image: Image.Image, data: bytes) -> NDArray[np.uint16] | None:
    """The values [height, width, channels] of a 16-bit grey image, or of a 16-bit PNG of any kind; None for all others."""
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > SIXTEEN:
            raise Broken("32-bit values, of which nobody knows the range; convert it to 8 or 16 bits")
        return grey.astype(np.uint16)[..., None]
    if image.format != "PNG" or data[24:25] != b"\x10" or image.mode not in ("RGB", "RGBA"):
        return None
    if data[25:26] == b"\x04":  # grey and alpha: four bytes a pixel, read as so many channels
        pairs = decode_as(data, "RGBA").reshape(image.height, image.width, 2, 2)
        return (pairs.astype(np.uint16) * (256, 1)).sum(3, np.uint16)
    # Pillow keeps the upper byte of each value, and the lower one if it takes the order of bytes for the other one.
    return np.asarray(image).astype(np.uint16) * np.uint16(256) + decode_as(data, f"{image.mode};16L")


def decode_as(png: bytes, layout: str) -> NDArray[np.uint8]:
    """The pixels of a PNG decoded as those of another layout of as many bytes a pixel."""
    image: Any = Image.open(io.BytesIO(png), formats=("PNG",))
    image._mode, image.info = layout.partition(";")[0], {}
    image.tile = [tile._replace(args=layout) for tile in image.tile]
    return np.asarray(image)


def eight_bits(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Values of 12 bits, if none is above 4,095, or else of 16, scaled to 0..255 and rounded."""
    top = TWELVE if values.max() <= TWELVE else SIXTEEN
    levels = np.arange(SIXTEEN + 1).clip(max=top) * 255
    return ((levels + top // 2) // top).astype(np.uint8)[values]
