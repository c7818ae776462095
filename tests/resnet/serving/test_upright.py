"""JPEGs turned upright in TensorFlow: against Pillow, for EXIF and XMP of every kind, and damaged."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from resnet.data import images
from resnet.serving import upright


@pytest.fixture(scope="module")
def decoded():
    """`decoded(jpeg)`: its pixels, as a SavedModel has them."""
    function = tf.function(upright.decode, input_signature=[tf.TensorSpec([], tf.string)])
    return lambda data: function(tf.constant(data)).numpy().astype(int)


@pytest.mark.parametrize("turn", range(10))
def test_every_orientation_is_turned_as_by_pillow(decoded, photo, encoded, rotated, turn):
    data = encoded(photo(1), exif=rotated(turn))
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
    assert decoded(data).shape == wanted.shape == ((64, 48, 3) if 5 <= turn <= 8 else (48, 64, 3))
    assert np.abs(decoded(data) - wanted).max() <= 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_four_colours_are_those_of_preparation(decoded, photo, encoded, rotated, mode):
    data = encoded(photo(1).convert(mode), exif=rotated(6))
    assert np.abs(decoded(data) - np.asarray(images.upright(data)).astype(int)).max() <= 2


def segment(marker, content):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def exif(order, *entries, start=8):
    """An APP1 with these (tag, type, count, value) in its first directory."""
    rows = b"".join(
        struct.pack(f"{order}HHI", *entry[:3]) + struct.pack(f"{order}HH", entry[3], 0) for entry in entries
    )
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return segment(
        0xE1, b"Exif\0\0" + header + bytes(start - 8) + struct.pack(f"{order}H", len(entries)) + rows + bytes(4)
    )


def xmp(text):
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<\xff\n" + text + b"\n/>")


TURN, CAMERA = (0x112, 3, 1, 6), (0x10F, 3, 1, 3)
HEADERS = {
    "little": exif("<", CAMERA, TURN),
    "big": exif(">", TURN, CAMERA),
    "long": exif("<", (0x112, 4, 1, 8)),
    "another type": exif("<", (0x112, 2, 1, 8)),
    "two values": exif("<", (0x112, 3, 3, 8)),
    "two of the tag": exif("<", TURN, (0x112, 3, 1, 3)),
    "directory further on": exif(">", TURN, start=300),
    "directory outside": exif(">", TURN).replace(struct.pack(">I", 8), struct.pack(">I", 1 << 31)),
    "no directory": exif("<"),
    "no TIFF": exif("<", TURN).replace(b"II*", b"IJ*"),
    "short": segment(0xE1, b"Exif\0\0II*"),
    "empty": segment(0xE1, b"Exif\0\0"),
    "cut": exif("<", CAMERA, TURN)[:-20],
    "behind others": segment(0xE2, bytes(60_000)) + segment(0xFE, b"Exif\0\0") + exif(">", TURN),
    "filled": b"\xff" + exif(">", TURN),
    "attribute of XMP": xmp(b'tiff:Orientation="3"'),
    "element of XMP": xmp(b"tiff:Orientation>5</"),
    "EXIF before XMP": xmp(b'tiff:Orientation="3"') + exif("<", TURN),
    "EXIF without, and XMP": exif("<", CAMERA) + xmp(b'tiff:Orientation="3"'),
    "XMP of nonsense": xmp(b'tiff:Orientation="9"'),
    "none": b"",
}


def test_headers_of_every_kind_are_understood_as_by_pillow(photo, encoded):
    function = tf.function(upright.orientation, input_signature=[tf.TensorSpec([], tf.string)])
    numbers = {turn: number for number, turn in images.TURNS.items()}
    plain = encoded(photo(1))
    files = {name: plain[:2] + header + plain[2:] for name, header in HEADERS.items() if name != "cut"}
    files["cut"] = plain[:2] + HEADERS["cut"]
    for name, data in files.items():
        try:
            wanted = numbers.get(images.open_image(data)[1], 1)
        except Exception:  # no image at all for Pillow: nothing to compare but that it ends
            wanted = int(function(tf.constant(data)))
        assert int(function(tf.constant(data))) == wanted, name
    assert int(function(tf.constant(b""))) == int(function(tf.constant(b"\xff\xd8"))) == 1


def test_what_is_no_jpeg_or_too_large_is_refused(decoded, photo, encoded):
    for data in (b"", b"\xff", encoded(photo(1), "PNG"), encoded(photo(1), "GIF")):
        with pytest.raises(tf.errors.InvalidArgumentError, match="not a JPEG: this signature takes JPEG bytes only"):
            decoded(data)
    with pytest.raises(tf.errors.InvalidArgumentError, match="one side more than 100 times the other"):
        decoded(encoded(Image.new("RGB", (1, 5000))))
