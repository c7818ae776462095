"""The same images as other programs write them: TF-Slim and Model Garden, TensorFlow Datasets, WebDataset; and as this suite."""

import io
import json
import tarfile

import google_crc32c
import numpy as np
import tensorflow as tf
from PIL import Image

from resnet.data import indexes, shards
from resnet.data.formats import tfexample

CLASSES, TRAIN, VAL = 5, 30, 12


def jpeg(number, form="JPEG"):
    """A small picture whose grey tells its number."""
    encoded = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 40, [20, 26, 3])
    Image.fromarray((noise + 5 * number).clip(0, 255).astype(np.uint8)).save(encoded, form)
    return encoded.getvalue()


def pairs(count):
    """(image, class from 0) of so many images; every class is among them."""
    return [(jpeg(number), number * 2 % CLASSES) for number in range(count)]


def example(**features):
    """A serialized tf.train.Example; __ in a name is a slash."""
    feature = {}
    for name, value in features.items():
        whole = isinstance(value, int)
        kind = {"int64_list": tf.train.Int64List(value=[value])} if whole else {}
        feature[name.replace("__", "/")] = tf.train.Feature(**kind or {"bytes_list": tf.train.BytesList(value=[value])})
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def slim(image, label):
    return example(image__encoded=image, image__class__label=label, image__height=20, image__width=26)


def datasets(image, label):
    return example(image=image, label=label, file_name=b"n01440764_1.JPEG")


def records(path, data, compression=""):
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression)) as writer:
        for record in data:
            writer.write(record)


def add(tar, name, data, **header):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in header.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def webdataset(path, samples, first=0, label="cls", form=tarfile.USTAR_FORMAT):
    """A tar of `key.jpg` and `key.cls`, or `key.json` with label, beside files that are not read."""
    with tarfile.open(path, "w", format=form) as tar:
        add(tar, "__index__.json", b"{}")
        for number, (image, value) in enumerate(samples):
            key = f"./photos/{'long ' * 40 * (form == tarfile.PAX_FORMAT)}{number:06d}"
            text = str(value + first) if label == "cls" else json.dumps({"label": value + first, "caption": "ü"})
            parts = [("jpg", image), (label, text.encode()), ("txt", b"a caption")]
            for ending, data in sorted(parts, key=lambda part: part[0] == "jpg" and number % 2):
                add(tar, f"{key}.{ending}", data)


def halves(folder, names, write, parts=2, empty=0):
    """Write the images, one behind the other, over the files of both halves; the last files are left without one."""
    for name, count in zip(names, (TRAIN, VAL), strict=True):
        images = pairs(count)
        for part in range(parts + empty):
            path = folder / name.format(part, parts + empty)
            path.parent.mkdir(parents=True, exist_ok=True)
            own = images[part * count // parts : (part + 1) * count // parts] if part < parts else []
            write(path, own)
    return folder


SLIM = ("train-{:05d}-of-{:05d}", "validation-{:05d}-of-{:05d}")
DATASETS = ("imagenet2012-train.tfrecord-{:05d}-of-{:05d}", "imagenet2012-validation.tfrecord-{:05d}-of-{:05d}")


def of_slim(first, compression=""):
    return lambda path, own: records(path, [slim(image, label + first) for image, label in own], compression)


def adopt(folder):
    """Write index.bin for the shards below a folder: with it they are this suite's, so labels count from 1."""
    written, lengths = [], []
    for path in sorted(folder.rglob("*-of-*")):
        _, sizes = shards.scan(str(path))
        content = path.read_bytes()
        crc = f"{google_crc32c.value(content):08x}"
        written.append(shards.Shard(str(path.relative_to(folder)), len(sizes), len(content), crc))
        lengths.append(np.array(sizes, "<u4").tobytes())
    indexes.write(folder, written, lengths)
    return folder


def of_this_suite(folder):
    def write(path, own):
        records(path, [tfexample.image(image, 20, 26, label + 1, b"n", b"n", b"n") for image, label in own])

    names = ("img_train/img_train-{:05d}-of-{:05d}", "img_val/img_val-{:05d}-of-{:05d}")
    return adopt(halves(folder, names, write))


FORMATS = {
    "slim": lambda folder: halves(folder, SLIM, of_slim(1)),
    "slim from 0": lambda folder: halves(folder, SLIM, of_slim(0)),
    "slim with empty files": lambda folder: halves(folder, SLIM, of_slim(1), empty=3),
    "gzip": lambda folder: halves(folder, SLIM, of_slim(1, "GZIP"), empty=1),
    "zlib": lambda folder: halves(folder, SLIM, of_slim(0, "ZLIB")),
    "datasets": lambda folder: halves(
        folder, DATASETS, lambda path, own: records(path, [datasets(*pair) for pair in own])
    ),
    "datasets, gzip": lambda folder: halves(
        folder,
        (DATASETS[0], DATASETS[1].replace("validation", "test")),
        lambda path, own: records(path, [datasets(*pair) for pair in own], "GZIP"),
    ),
    "tars": lambda folder: halves(folder, ("imagenet-train-{:06d}.tar", "imagenet-val-{:06d}.tar"), webdataset),
    "tars with json": lambda folder: halves(
        folder,
        ("train/{}.tar", "validation/{}.tar"),
        lambda path, own: webdataset(path, own, 1, "json", tarfile.PAX_FORMAT),
        empty=1,
    ),
}
