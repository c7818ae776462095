"""An image as everything of the suite sees it: upright, eight-bit RGB. The content decides what a file is, never its name.

These rules hold in preparation, in the reading of shards and in the served model, which has a copy of this file: so it imports
nothing of resnet.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

# A bomb is refused before it is decoded: Pillow's own bound; three bytes a pixel make it 256 MiB.
MAX_PIXELS = 89_478_485
# Of the longer side to the shorter. Evaluation scales the short side to 256 and so the long one to 256 times this at most.
MAX_ASPECT = 100
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # decoders for other people's bytes; the first frame of an animation
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
        raise Broken("not a JPEG, PNG, WebP, BMP or GIF image" if unknown else message[:200]) from error


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
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    check_size(*image.size)
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
        image = to_rgb(image)
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
            image = to_rgb(image).resize(target, Image.Resampling.BICUBIC)
        else:
            image = to_rgb(image)
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
    if form == "PNG" and data[24:25] == b"\x10":  # the bit depth in IHDR
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


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight-bit RGB: what is transparent lies on white, 16 bits lose the lower 8."""
    if image.mode.startswith("I"):  # 16-bit grey, whatever its byte order
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
