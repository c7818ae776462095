"""One image file to RGB JPEG: told by content, converted once, or not at all; damage is told as such."""

import contextlib
import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from resnet.data import images


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def close(one, other, tolerance=6.0):
    """Whether two pictures are the same but for what a JPEG costs."""
    return one.shape == other.shape and np.abs(one - other).mean() < tolerance


@pytest.fixture(scope="module")
def picture(photo):
    return photo(1)


# ---------------------------------------------------------------------------------------------------------------- as it is
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"quality": 30},
        {"optimize": True},
        {"restart_marker_blocks": 2},
        {"comment": b"hello"},
        {"icc_profile": b"profile"},
    ],
    ids=str,
)
def test_an_upright_rgb_jpeg_is_kept_byte_for_byte(picture, encoded, options):
    data = encoded(picture, **options)
    assert images.convert(data) == images.Picture(data, 48, 64, "JPEG")


def test_so_is_one_whose_exif_says_upright_or_nonsense(picture, encoded, rotated):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    for odd in (rotated(1), rotated(9), exif, b"Exif\x00\x00MM\x00*\xff\xff\xff\xff", b"Exif\x00\x00garbage"):
        data = encoded(picture, exif=odd)
        assert images.convert(data).encoded == data


def test_a_jpeg_with_a_second_picture_behind_it_is_a_jpeg(picture, encoded):
    data = encoded(picture, "MPO", save_all=True, append_images=[picture])
    assert images.convert(data) == images.Picture(data, 48, 64, "JPEG")


# --------------------------------------------------------------------------------------------------------------- converted
def sixteen_bits(_picture):
    return Image.fromarray((np.arange(48 * 64).reshape(48, 64) * 21).astype(np.uint16))


KINDS = {
    "JPEG CMYK": (lambda p: p.convert("CMYK"), "JPEG", {}),
    "JPEG grey": (lambda p: p.convert("L"), "JPEG", {}),
    "PNG": (lambda p: p, "PNG", {}),
    "PNG grey": (lambda p: p.convert("L"), "PNG", {}),
    "PNG grey 16-bit": (sixteen_bits, "PNG", {}),
    "PNG palette": (lambda p: p.quantize(16), "PNG", {}),
    "PNG alpha": (lambda p: p.convert("RGBA"), "PNG", {}),
    "PNG grey alpha": (lambda p: p.convert("LA"), "PNG", {}),
    "PNG palette alpha": (lambda p: p.quantize(16), "PNG", {"transparency": 3}),
    "WEBP": (lambda p: p, "WEBP", {"quality": 95}),
    "BMP": (lambda p: p, "BMP", {}),
    "GIF": (lambda p: p.quantize(64), "GIF", {}),
    "TIFF": (lambda p: p, "TIFF", {}),
    "TIFF grey 16-bit": (sixteen_bits, "TIFF", {}),
    "AVIF": (lambda p: p, "AVIF", {"quality": 95}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_rgb_jpeg_is_converted_and_named(picture, encoded, kind):
    made, form, options = KINDS[kind]
    found = images.convert(encoded(made(picture), form, **options))
    with Image.open(io.BytesIO(found.encoded)) as image:
        assert (found.kind, image.format, image.mode, image.size) == (kind, "JPEG", "RGB", (64, 48))
    assert (found.height, found.width) == (48, 64)
    if "alpha" not in kind:
        wanted = pixels(encoded(made(picture), form, **options)) if "16" not in kind else None
        assert wanted is None or close(pixels(found.encoded), wanted)
    assert images.convert(found.encoded).kind == "JPEG"  # once, and for all


def deep_png(values):
    """A PNG of 16-bit values [height, width, 1 to 4 channels]."""
    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = {b"IHDR": head, b"IDAT": zlib.compress(rows), b"IEND": b""}
    chunks = [struct.pack(">I", len(data)) + kind + data for kind, data in parts.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk + struct.pack(">I", zlib.crc32(chunk[4:])) for chunk in chunks)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [12, 16])
def test_sixteen_bit_values_become_eight_by_the_range_that_they_fill(channels, bits):
    """Against v * 255 / (2^bits - 1), rounded, on white by the share of alpha."""
    top = 2**bits - 1
    ramp = np.linspace(0, top, 48 * 64).round().astype(np.uint16).reshape(48, 64, 1)
    values = np.concatenate([ramp, ramp[::-1], ramp.transpose(1, 0, 2).reshape(48, 64, 1), ramp][:channels], 2)
    data = deep_png(values)
    exact = np.floor(values * 255.0 / top + 0.5)
    colours, alpha = (exact[..., :-1], exact[..., -1:] / 255) if channels in (2, 4) else (exact, 1.0)
    wanted = np.broadcast_to(colours * alpha + 255 * (1 - alpha), (48, 64, 3))
    found = np.asarray(images.upright(data)).astype(float)
    assert np.abs(found - wanted).max() <= (1 if channels in (2, 4) else 0)
    words = "PNG" + " grey" * (channels == 1) + f" {bits}-bit" + " alpha" * (channels in (2, 4))
    assert images.convert(data).kind == words


def test_values_whose_range_nobody_knows_are_refused(encoded):
    with pytest.raises(images.Broken, match="floating-point values"):
        images.convert(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"))
    with pytest.raises(images.Broken, match="32-bit values"):
        images.convert(encoded(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"))


def test_the_head_of_a_file_tells_its_format(picture, encoded):
    for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"):
        assert images.form_of(encoded(picture, form)[: images.HEAD]) == form
    assert images.form_of(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf") == "HEIF"
    assert images.form_of(b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf") == "HEIF"
    for other in (
        b"",
        b"BM",
        b"BMW is a car, not an image of one",
        b"\0\0\0\x20ftypisom\0\0\2\0isommp41",
        b"RIFF....WAVE",
    ):
        assert images.form_of(other) == ""


def test_a_format_without_its_decoder_names_the_package(monkeypatch):
    heic = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(64)
    monkeypatch.setattr(images, "decodes", lambda form: form != "HEIF")
    with pytest.raises(images.NoDecoder, match=r"HEIF, which needs the package pillow-heif: pip install .*\[heic\]"):
        images.convert(heic)


def test_heic_is_converted(picture, encoded):
    pytest.importorskip("pillow_heif")
    assert images.decodes("HEIF")
    found = images.convert(encoded(picture, "HEIF", quality=95))
    assert found.kind == "HEIF" and close(pixels(found.encoded), np.asarray(picture).astype(int))


def test_what_is_transparent_lies_on_white(encoded):
    clear = Image.new("RGBA", (64, 48), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 32, 48))
    for form in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        found = pixels(images.convert(encoded(clear, form, **options)).encoded)
        assert np.abs(found[:, 40:] - 255).max() < 12
        assert np.abs(found[:, :24] - (0, 0, 255)).max() < 12


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("turn", range(2, 9))
def test_exif_rotation_is_undone(picture, encoded, rotated, form, turn):
    from PIL import ImageOps

    data = encoded(picture, form, exif=rotated(turn))
    found = images.convert(data)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    assert found.kind == (form if form == "TIFF" else f"{form} rotated")
    assert (found.height, found.width) == upright.shape[:2] == ((64, 48) if turn >= 5 else (48, 64))
    assert close(pixels(found.encoded), upright)
    assert "exif" not in Image.open(io.BytesIO(found.encoded)).info


def test_the_quality_is_what_was_asked_for(picture, encoded):
    data = encoded(picture, "PNG")
    sizes = [len(images.convert(data, quality=quality).encoded) for quality in (30, 75, 95)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    assert images.convert(data).encoded == images.convert(data, quality=95).encoded


# ----------------------------------------------------------------------------------------------------------------- resized
@pytest.mark.parametrize(
    ("size", "wanted"), [((640, 480), (341, 256)), ((300, 900), (256, 768)), ((257, 257), (256, 256))]
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_the_short_side_becomes_what_was_asked(photo, encoded, size, wanted, form):
    found = images.convert(encoded(photo(3, *size), form), resize=256, quality=90)
    assert Image.open(io.BytesIO(found.encoded)).size == (found.width, found.height) == wanted
    assert (found.kind, found.resized) == (form, True)
    smooth = np.asarray(photo(3, *size).resize(wanted, Image.Resampling.BICUBIC)).astype(int)
    assert close(pixels(found.encoded), smooth)


def test_nothing_is_enlarged_and_what_is_small_keeps_its_bytes(picture, encoded):
    data = encoded(picture)
    assert images.convert(data, resize=48) == images.convert(data, resize=300) == images.convert(data)
    assert images.convert(encoded(picture, "PNG"), resize=300) == images.convert(encoded(picture, "PNG"))


def test_a_camera_held_upright_is_turned_and_resized(photo, encoded, rotated):
    found = images.convert(encoded(photo(1, 800, 400), exif=rotated(6)), resize=100)
    assert (found.width, found.height, found.kind) == (100, 200, "JPEG rotated")


# ------------------------------------------------------------------------------------------------------------------ broken
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("resize", [None, 16])
def test_a_truncated_image_is_broken(picture, encoded, form, share, resize):
    data = encoded(picture, form)
    with pytest.raises(images.Broken):
        images.convert(data[: int(len(data) * share)], resize)


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff", b"%PDF-1.4", b"<html>", bytes(1000)])
def test_what_is_no_image_is_broken(data):
    with pytest.raises(images.Broken, match=r"^[^\n]+$"):
        images.convert(data)


def test_formats_that_nobody_named_are_not_even_tried(picture, encoded):
    for form in ("PPM", "ICO", "TGA"):
        with pytest.raises(images.Broken, match="not a JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or HEIC image"):
            images.convert(encoded(picture, form))


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_000, 9_000)])
def test_a_bomb_is_not_decoded(encoded, width, height):
    data = encoded(Image.new("1", (8, 8)), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    with pytest.raises(images.Broken, match="pixels"):
        images.convert(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


def test_a_ribbon_is_refused(encoded):
    with pytest.raises(images.Broken, match="1000 x 9 pixels; one side is more than 100 times the other"):
        images.convert(encoded(Image.new("RGB", (1000, 9)), "PNG"))
    assert images.convert(encoded(Image.new("RGB", (900, 9)), "PNG")).width == 900


def test_damage_is_told_as_broken_and_tensorflow_can_read_what_is_not(picture, encoded):
    import tensorflow as tf

    draw, kept = random.Random(0), 0
    for base in (encoded(picture), encoded(picture, progressive=True)):
        for _ in range(150):
            data = bytearray(base)
            for _ in range(draw.randrange(1, 4)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            with contextlib.suppress(images.Broken):
                found = images.convert(bytes(data))
                assert tf.io.decode_jpeg(found.encoded, channels=3).shape == (found.height, found.width, 3)
                kept += 1
    assert kept > 50


def test_the_frame_header_is_found(picture, encoded):
    assert images.frame_marker(encoded(picture)) == 0xC0
    assert images.frame_marker(encoded(picture, progressive=True, exif=b"Exif\x00\x00" + bytes(3000))) == 0xC2
    assert images.frame_marker(encoded(picture)[:20]) == 0
    filled = encoded(picture)
    assert images.frame_marker(filled[:2] + b"\xff\xff" + filled[2:]) == 0xC0
