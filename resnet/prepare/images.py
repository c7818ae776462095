"""One image file to the RGB JPEG that training reads. The content decides what a file is, never its name."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from resnet.data.tfexample import MAX_ASPECT, MAX_PIXELS

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


class Broken(Exception):
    """This image cannot be used; the message is the reason, without its name."""


@dataclass(frozen=True)
class Picture:
    """An RGB JPEG. `kind` is what it was before: "JPEG" for what is one already."""

    encoded: bytes
    height: int
    width: int
    kind: str
    resized: bool = False


def convert(data: bytes, resize: int | None = None, quality: int = QUALITY) -> Picture:
    """The image in `data`, byte for byte if it is an upright RGB JPEG, else encoded anew.

    `resize` encodes anew whatever has a longer short side, so that it has this one. Everything is decoded, to be sure that
    it can be. Raises Broken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF, harmless; what matters is an exception
            return decode(data, resize, quality)
    except (Broken, MemoryError):
        raise
    except Exception as error:  # the parsers of decoders raise anything for damaged data
        message = " ".join(str(error).split()) or type(error).__name__
        raise Broken("not a JPEG, PNG, WebP, BMP or GIF image" if "cannot identify" in message else message) from error


def decode(data: bytes, resize: int | None, quality: int) -> Picture:
    """convert(), which raises whatever Pillow does."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Broken(f"{width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Broken(f"{width} x {height} pixels; one side is more than {MAX_ASPECT} times the other")
    try:
        turn = TURNS.get(int(image.getexif().get(ORIENTATION, 1)))
    except MemoryError:
        raise
    except Exception:  # as above, and no reason to reject the image
        turn = None
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


def frame_marker(jpeg: bytes) -> int:
    """The marker of a JPEG's frame header (ISO 10918-1 B.2.2), 0 if there is none."""
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == 0xFF:  # filling
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker
        else:
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return 0


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight-bit RGB: what is transparent lies on white, 16 bits lose the lower 8."""
    if image.mode.startswith("I"):  # 16-bit grey, whatever its byte order
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
