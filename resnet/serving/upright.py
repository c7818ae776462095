"""JPEG bytes to upright pixels in TensorFlow alone, for a SavedModel: the rules of resnet/data/images.py."""

from __future__ import annotations

import tensorflow as tf

from resnet.data.images import APP1, ORIENTATION, SCAN
from resnet.data.pipeline import jpeg_shape

EXIF = b"Exif\0\0"
XMP_TURN = r'\C*?tiff:Orientation(?:="|>)([0-9])\C*'  # as Pillow reads it where EXIF has none; \C is any byte
SEGMENT = 65_535  # bytes at most
SHORT, LONG = 3, 4  # types of TIFF


def decode(jpeg: tf.Tensor) -> tf.Tensor:
    """uint8 [H, W, 3], upright, of a scalar string. Fails for what is no JPEG, and for a size beyond the limits."""
    is_jpeg = tf.strings.substr(jpeg + b"\0\0", 0, 2) == b"\xff\xd8"
    with tf.control_dependencies([tf.debugging.Assert(is_jpeg, ["not a JPEG: this signature takes JPEG bytes only"])]):
        checked = tf.identity(jpeg)
    with tf.control_dependencies([jpeg_shape(checked)]):
        image = tf.io.decode_jpeg(checked, channels=3, dct_method="INTEGER_ACCURATE")
    turn = orientation(checked)
    image = tf.cond(turn >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(is_one(turn, 3, 4, 7, 8), lambda: image[::-1], lambda: image)
    return tf.cond(is_one(turn, 2, 3, 6, 7), lambda: image[:, ::-1], lambda: image)


def is_one(turn: tf.Tensor, *turns: int) -> tf.Tensor:
    return tf.reduce_any(turn == tf.constant(turns))


def orientation(jpeg: tf.Tensor) -> tf.Tensor:
    """int32 1..8: how the camera was held, by EXIF or else by XMP; 1 if they are missing, damaged or something else.

    Exif 2.3, 4.5 and 4.6.4; the first APP1 of its kind before the pixels counts.
    """
    length = tf.strings.length(jpeg)
    padded = jpeg + b"\0" * 16  # every read below is within it

    def not_at_pixels(at: tf.Tensor, _exif: tf.Tensor) -> tf.Tensor:
        head = octets(padded, at, 2)
        return (at + 4 <= length) & (head[0] == 0xFF) & (head[1] != SCAN)

    def next_segment(at: tf.Tensor, exif: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        head = octets(padded, at, 4)
        is_exif = (head[1] == APP1) & (tf.strings.substr(padded, at + 4, len(EXIF)) == EXIF) & (exif == 0)
        step = tf.where(head[1] == 0xFF, 1, 2 + 256 * head[2] + head[3])  # 0xFF: filling
        return tf.minimum(at + step, length), tf.where(is_exif, at + 4 + len(EXIF), exif)

    end, exif = tf.while_loop(not_at_pixels, next_segment, (tf.constant(2), tf.constant(0)))
    by_exif = tf.cond(exif > 0, lambda: tiff_orientation(octets(padded, exif, SEGMENT)), lambda: tf.constant(-1))
    headers = tf.strings.substr(padded, 0, end)
    by_xmp = tf.strings.regex_replace(headers, XMP_TURN, r"\1")
    by_xmp = tf.strings.to_number(tf.where(tf.strings.length(by_xmp) == 1, by_xmp, "1"), tf.int32)
    turn = tf.where(by_exif < 0, by_xmp, by_exif)
    return tf.where((turn >= 1) & (turn <= 8), turn, 1)


def octets(data: tf.Tensor, at: tf.Tensor, count: int) -> tf.Tensor:
    """int32 [<= count]: the bytes of a string from `at` on."""
    return tf.cast(tf.io.decode_raw(tf.strings.substr(data, at, count), tf.uint8), tf.int32)


def tiff_orientation(tiff: tf.Tensor) -> tf.Tensor:
    """The orientation in the first directory of a TIFF header, int32 [n] of bytes; -1 if there is none, 0 if it is no header."""
    little = tiff[0] == 0x49
    order = (tiff[0] == tiff[1]) & is_one(tiff[0], 0x49, 0x4D)
    valid = order & (tf.reduce_max(tiff[2:4]) == 42) & (tf.reduce_min(tiff[2:4]) == 0)

    def number(part: tf.Tensor) -> tf.Tensor:
        """The whole number in the last axis of `part`, int32 [..., bytes]."""
        part = tf.where(little, part, tf.reverse(part, [-1]))
        return tf.reduce_sum(part * tf.constant([1, 256, 65_536, 16_777_216])[: tf.shape(part)[-1]], -1)

    size = tf.size(tiff)
    directory = tf.clip_by_value(number(tiff[4:8]), 0, size - 2)
    count = tf.minimum(number(tiff[directory : directory + 2]), (size - 2 - directory) // 12)
    rows = tf.reshape(tiff[directory + 2 : directory + 2 + 12 * count], [-1, 12])  # tag, type, count, value
    kinds = number(rows[:, 2:4])
    values = tf.where(kinds == SHORT, number(rows[:, 8:10]), number(rows[:, 8:12]))
    known = ((kinds == SHORT) | (kinds == LONG)) & (number(rows[:, 4:8]) == 1)
    values = tf.boolean_mask(values, known & (number(rows[:, :2]) == ORIENTATION))
    return tf.where(valid, tf.concat([values, [-1]], 0)[0], 0)
