"""The embedded digits on disk: complete, the same for everybody, and never half there."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from resnet import UserError
from resnet.data import digits, shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The digits, written once; tests only read them."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    digits.write(str(folder))
    return folder


def examples(folder, half):
    files = sorted(str(path) for path in (folder / half).iterdir())
    return [tf.train.Example.FromString(record.numpy()) for record in tf.data.TFRecordDataset(files)]


def value(example, name):
    feature = example.features.feature[name]
    (found,) = getattr(feature, feature.WhichOneof("kind")).value
    return found


def numbers(found):
    """Which of scikit-learn's images these are."""
    return [int(value(example, "image/filename")[len("digit-") : -len(".jpg")]) for example in found]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shards_in(folder):
    """Content of every shard, by name: eight to train on, two held out, if the digits are whole."""
    return {path.name: path.read_bytes() for path in folder.glob("img_*/img_*-of-*")}


# ---------------------------------------------------------------------------------------------------------- what it holds
def test_1437_images_train_and_360_are_held_out(folder):
    train, val = examples(folder, "img_train"), examples(folder, "img_val")
    assert (len(train), len(val)) == (1437, 360)
    assert sorted(numbers(train) + numbers(val)) == list(range(1797))


def test_the_held_out_images_are_the_same_in_every_copy(folder):
    drawn = np.random.RandomState(20150).permutation(1797)[:360]
    held_out = sorted(numbers(examples(folder, "img_val")))
    assert held_out == sorted(drawn)
    # Published figures are over these 360: any other set makes other figures.
    assert hashlib.sha256(",".join(map(str, held_out)).encode()).hexdigest()[:16] == "96c4366976aa435e"


def test_writing_again_elsewhere_gives_the_same_bytes(folder, tmp_path):
    digits.write(str(tmp_path / "deep" / "again"))
    assert shards_in(tmp_path / "deep" / "again") == shards_in(folder)
    assert len(shards_in(folder)) == 10


def test_the_layout_is_the_one_of_imagenet(folder):
    train, val = shards.find(str(folder), "")
    assert [path.rpartition("/")[2] for path in train] == [f"img_train-{n:05d}-of-00008" for n in range(8)]
    assert [path.rpartition("/")[2] for path in val] == [f"img_val-{n:05d}-of-00002" for n in range(2)]
    assert {len(shards.scan(path)[0]) for path in train} == {179, 180}


@pytest.mark.parametrize("half", ["img_train", "img_val"])
def test_labels_on_disk_are_the_digits_from_1(folder, half):
    targets = load_digits().target
    found = examples(folder, half)
    labels = [value(example, "image/class/label") for example in found]
    assert labels == [targets[number] + 1 for number in numbers(found)]
    assert set(labels) == set(range(1, 11))
    assert [int(value(example, "image/class/text")) + 1 for example in found] == labels


def test_a_record_has_the_established_features(folder):
    (example, *_) = examples(folder, "img_val")
    feature = example.features.feature
    fixed = {
        "image/height": 32,
        "image/width": 32,
        "image/channels": 3,
        "image/colorspace": b"RGB",
        "image/format": b"JPEG",
    }
    assert {name: value(example, name) for name in fixed} == fixed
    varying = {"image/encoded", "image/filename", "image/class/label", "image/class/synset", "image/class/text"}
    assert set(feature) == {*fixed, *varying}
    assert value(example, "image/encoded")[:2] == b"\xff\xd8"  # a JPEG begins so


def test_the_images_are_the_digits_enlarged(folder):
    images = load_digits().images
    found = examples(folder, "img_val")[::9]
    for number, example in zip(numbers(found), found, strict=True):
        image = tf.io.decode_jpeg(value(example, "image/encoded")).numpy().astype(float)
        assert image.shape == (32, 32, 3)
        assert np.ptp(image, axis=2).max() <= 2  # grey
        shrunk = image[..., 0].reshape(8, 4, 8, 4).mean((1, 3))
        assert np.corrcoef(shrunk.ravel(), images[number].ravel())[0, 1] > 0.97
        assert np.abs(shrunk - images[number] * 255 / 16).mean() < 20


# ------------------------------------------------------------------------------------------------------ all or nothing
def test_digits_that_are_there_are_left_alone(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    digits.write(str(folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_empty_folder_is_filled_in_one_step(tmp_path, monkeypatch):
    """If it were removed first, of two processes one would find it gone."""
    (tmp_path / "digits").mkdir()
    there, rename = [], Path.rename

    def watched(path, target):
        there.append((Path(target), Path(target).exists()))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    digits.write(str(tmp_path / "digits"))
    assert (tmp_path / "digits", True) in there
    assert len(shards_in(tmp_path / "digits")) == 10


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [1, 2])
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, error, call):
    calls, write = [], shards.write_split

    def failing(*args):
        calls.append(write(*args))
        if len(calls) == call:
            raise error
        return calls[-1]

    monkeypatch.setattr(shards, "write_split", failing)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        digits.write(str(tmp_path / "digits"))
    if isinstance(error, OSError):
        assert f"data.dir={tmp_path / 'digits'}" in str(caught.value)
        assert "No space left on device" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_while_it_writes_leaves_no_digits(tmp_path):
    script = (
        "import os, sys; from resnet.data import digits, shards\n"
        "write_split, calls = shards.write_split, []\n"
        "def killed(*args):\n"
        "    calls.append(write_split(*args))\n"
        "    if len(calls) == 2: os.kill(os.getpid(), 9)\n"
        "    return calls[-1]\n"
        "shards.write_split = killed\n"
        "digits.write(sys.argv[1])\n"
    )
    target = tmp_path / "digits"
    assert subprocess.run([sys.executable, "-c", script, str(target)], check=False).returncode == -9
    assert not target.exists()
    digits.write(str(target))  # and the next start is not in its way
    assert len(shards_in(target)) == 10


@pytest.mark.parametrize("empty_folder", [False, True])
def test_processes_that_write_at_once_all_find_the_digits(tmp_path, monkeypatch, empty_folder):
    racers, write = 4, shards.write_split
    barrier = Barrier(racers)

    def together(folder, name, *rest):
        written = write(folder, name, *rest)
        if name == "img_val":
            barrier.wait(30)  # all are about to rename
        return written

    monkeypatch.setattr(shards, "write_split", together)
    if empty_folder:
        (tmp_path / "digits").mkdir()
    with ThreadPoolExecutor(racers) as pool:
        list(pool.map(digits.write, [str(tmp_path / "digits")] * racers))  # raises what they raise
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert len(shards_in(tmp_path / "digits")) == 10


@pytest.mark.parametrize("content", ["notes.txt", "img_train/train.txt", "n01440764/n01440764_10026.JPEG"])
def test_a_folder_with_something_else_in_it_is_refused_and_untouched(tmp_path, content):
    (tmp_path / "digits" / content).parent.mkdir(parents=True)
    (tmp_path / "digits" / content).write_text("mine")
    with pytest.raises(UserError, match=rf"data.dir={tmp_path}/digits: .*not empty.*; give an empty or new folder"):
        digits.write(str(tmp_path / "digits"))
    assert contents(tmp_path) == {f"digits/{content}": b"mine"}


def test_a_file_in_the_place_of_the_folder_or_above_it_is_refused(tmp_path):
    (tmp_path / "digits").write_text("mine")
    for target in (tmp_path / "digits", tmp_path / "digits" / "deeper" / "still"):
        with pytest.raises(UserError, match=rf"data.dir={target}: the digits cannot be written there \(.+\); give"):
            digits.write(str(target))
    assert contents(tmp_path) == {"digits": b"mine"}


def test_writing_deals_the_records_out_over_the_shards(tmp_path):
    records = [b"record %d" % number for number in range(11)]
    written = shards.write_split(tmp_path, "train", records, 3)
    assert [shard.images for shard in written] == [4, 4, 3]
    files = sorted(str(path) for path in (tmp_path / "train").iterdir())
    assert [path.rpartition("/")[2] for path in files] == [f"train-{n:05d}-of-00003" for n in range(3)]
    for number, path in enumerate(files):
        assert [record.numpy() for record in tf.data.TFRecordDataset(path)] == records[number::3]
