"""tf.train.Example, written and read without TensorFlow: the few lines of protobuf that image records need.

    message Example { Features features = 1; }                    message BytesList { repeated bytes value = 1; }
    message Features { map<string, Feature> feature = 1; }        message Int64List { repeated int64 value = 1 [packed]; }
    message Feature { oneof { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }
(tensorflow/core/example/{example,feature}.proto)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

BYTES, INTS, LENGTH_DELIMITED = 1, 3, 2
# The features of an image and of its label: of the established record, and of TensorFlow Datasets'.
NAMES = (("image/encoded", "image/class/label"), ("image", "label"))
ENCODED = b"\x0a\x0dimage/encoded"  # a feature's name as field 1 of a map's entry


def image(encoded: bytes, height: int, width: int, label: int, synset: bytes, text: bytes, filename: bytes) -> bytes:
    """One RGB JPEG as the established record of ImageNet; `label` counts from 1."""
    return encode(
        {
            "image/encoded": encoded,
            "image/height": height,
            "image/width": width,
            "image/colorspace": b"RGB",
            "image/channels": 3,
            "image/format": b"JPEG",
            "image/filename": filename,
            "image/class/label": label,
            "image/class/synset": synset,
            "image/class/text": text,
        }
    )


def encode(features: dict[str, bytes | int]) -> bytes:
    """One value a feature. The bytes of TensorFlow's SerializeToString(deterministic=True)."""
    entries = []
    for name, value in sorted(features.items()):
        kind, content = (INTS, varint(value % (1 << 64))) if isinstance(value, int) else (BYTES, value)
        feature = field(kind, field(1, content))
        entries.append(field(1, field(1, name.encode()) + field(2, feature)))
    return field(1, b"".join(entries))


def decode(data: bytes | memoryview) -> dict[str, bytes | int]:
    """The first value of every bytes and int64 feature. Raises ValueError if this is no Example."""
    result: dict[str, bytes | int] = {}
    for features in values(data, 1):
        for entry in values(features, 1):
            name, feature = dict(walk(entry)).get(1, b""), dict(walk(entry)).get(2, b"")
            for kind, content in walk(feature):
                if kind in (BYTES, INTS) and (value := next(iter(values(content, 1)), None)) is not None:
                    # An int64 may be packed, in a field of bytes, or not.
                    packed = kind == INTS and not isinstance(value, int)
                    value = number(value, 0)[0] if packed else value
                    result[str(name, "utf-8")] = signed(value) if kind == INTS else value
    return result


def sample(data: bytes) -> tuple[memoryview, int, bool]:
    """(image, label as it is stored, whether by the established names) of an Example. Raises ValueError if it has none."""
    features = decode(memoryview(data))
    for names in NAMES:
        encoded, label = (features.get(name) for name in names)
        if isinstance(encoded, memoryview) and isinstance(label, int):
            return encoded, label, names == NAMES[0]
    wanted = ", or ".join(map(" and ".join, NAMES))
    raise ValueError(f"its features are {', '.join(sorted(features)) or 'none'}, where an image has {wanted}")


def encoded_image(data: bytes) -> memoryview | None:
    """The value of image/encoded, without the time to decode the rest; None if it is laid out otherwise than encode() does."""
    at = data.find(ENCODED)
    at = at + len(ENCODED) if at >= 0 else len(data)
    size = 0
    for tag in (b"\x12", b"\x0a", b"\x0a"):  # the feature of this name, its bytes_list, its value
        if data[at : at + 1] != tag:
            return None
        size, at = number(data, at + 1)
    return memoryview(data)[at : at + size] if at + size <= len(data) else None


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, the top bit set on all but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(data: bytes, at: int) -> tuple[int, int]:
    """(the varint at `at`, where it ends)."""
    value = shift = 0
    while shift < 70 and at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number has no end")


def signed(value: int) -> int:
    """The int64 that a varint stands for."""
    return (value & (1 << 64) - 1 ^ 1 << 63) - (1 << 63)


def walk(data: Any) -> Iterator[tuple[int, Any]]:
    """(number, content) of every field: bytes, or an int for a varint."""
    at = 0
    while at < len(data):
        tag, at = number(data, at)
        if tag & 7 == 0:
            value, at = number(data, at)
            yield tag >> 3, value
            continue
        size, at = number(data, at) if tag & 7 == LENGTH_DELIMITED else ({1: 8, 5: 4}.get(tag & 7, -1), at)
        if size < 0 or at + size > len(data):
            raise ValueError(f"field {tag >> 3} does not fit")
        yield tag >> 3, data[at : at + size]
        at += size


def values(data: Any, wanted: int) -> Iterator[Any]:
    """Contents of the fields of one number."""
    return (content for field_number, content in walk(data) if field_number == wanted)
