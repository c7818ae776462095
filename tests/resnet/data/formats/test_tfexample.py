"""Our few lines of protobuf against TensorFlow's own."""

import contextlib
import random

import pytest
import tensorflow as tf

from resnet.data.formats import tfexample


def of_tensorflow(features):
    """The bytes TensorFlow makes of the same features, and the only ones it makes deterministically."""
    feature = {
        name: tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        if isinstance(value, int)
        else tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 16383, 16384, 2**31, 2**63 - 1, -1, -(2**63)])
@pytest.mark.parametrize("size", [0, 1, 127, 128, 70_000])
def test_the_bytes_are_those_of_tensorflow(number, size):
    features = {"image/encoded": bytes(size), "b": number, "a": b"\xff\x00", "image/class/label": 7}
    assert tfexample.encode(features) == of_tensorflow(features)
    assert tfexample.decode(tfexample.encode(features)) == features


def test_an_image_record_has_the_established_features():
    record = tfexample.image(b"jpeg", 375, 500, 1000, b"n15075141", "Klopapier, Größe".encode(), b"n15075141_1.JPEG")
    feature = tf.train.Example.FromString(record).features.feature
    found = {name: (value.int64_list.value or value.bytes_list.value)[0] for name, value in feature.items()}
    assert found == {
        "image/encoded": b"jpeg",
        "image/height": 375,
        "image/width": 500,
        "image/colorspace": b"RGB",
        "image/channels": 3,
        "image/format": b"JPEG",
        "image/filename": b"n15075141_1.JPEG",
        "image/class/label": 1000,
        "image/class/synset": b"n15075141",
        "image/class/text": "Klopapier, Größe".encode(),
    }


def test_what_others_write_is_read():
    example = tf.train.Example()
    example.features.feature["floats"].float_list.value.extend([1.0, 2.0])
    example.features.feature["none"].int64_list.value.extend([])
    example.features.feature["many"].int64_list.value.extend([5, 6])
    example.features.feature["text"].bytes_list.value.extend([b"one", b"two"])
    assert tfexample.decode(example.SerializeToString()) == {"many": 5, "text": b"one"}
    # An int64 that stands by itself, as protobuf 2 wrote it.
    alone = tfexample.field(1, tfexample.field(1, b"n") + tfexample.field(2, tfexample.field(3, b"\x08\x2a")))
    assert tfexample.decode(tfexample.field(1, alone)) == {"n": 42}


def test_damage_raises_value_error_and_nothing_else():
    record = tfexample.image(bytes(300), 1, 2, 3, b"a", b"b", b"c")
    draw = random.Random(0)
    for _ in range(3000):
        damaged = bytearray(record[: draw.randrange(1, len(record))] if draw.random() < 0.3 else record)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        with contextlib.suppress(ValueError):
            tfexample.decode(bytes(damaged))
