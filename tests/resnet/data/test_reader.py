"""Corrupt records passed over, and images kept in memory."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import foreign
import fsspec
import numpy as np
import psutil
import pytest
import tensorflow as tf
from PIL import Image

from resnet import UserError
from resnet.config.data import Cache, OnCorrupt, Records
from resnet.data import digits, images, pipeline, reading, shards, source
from resnet.data.formats import tfexample
from resnet.training import checkpoint
from resnet.training.loop import train

SIZE, BATCH = 16, 8


def picture(number):
    """A JPEG of 40 x 30 whose grey tells its number."""
    encoded = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 40, [30, 40, 3])
    Image.fromarray((noise + 5 * number).clip(0, 255).astype(np.uint8)).save(encoded, "JPEG")
    return encoded.getvalue()


def serialized(encoded, label):
    """A record with the two features that are read."""
    feature = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


@pytest.fixture
def folder(tmp_path):
    """40 training images of labels 1..40 in 3 shards, 20 evaluation images in 2."""
    for half in ("train", "validation"):
        (tmp_path / half).mkdir()
    return replaced(tmp_path, {})


def opened(folder, **settings):
    """The source of these records."""
    return source.open_source(Records(dir=str(folder), classes=40, image_size=SIZE, eval_resize=SIZE, **settings))


def flip_byte(records, number):
    """Damage a record's data on disk."""
    path = Path(records.files[records.file[number]])
    content = bytearray(path.read_bytes())
    content[records.offset[number] + 50] ^= 1
    path.write_bytes(content)


def labels(batches, count):
    """The labels of so many batches, in order."""
    return [int(label) for batch in batches.take(count) for label in batch[1]]


def test_a_corrupt_record_leaves_its_place_to_the_next_and_all_others_where_they_were(folder):
    whole = labels(pipeline.train(opened(folder), BATCH, 1, 0), 5)
    records = opened(folder, on_corrupt=OnCorrupt.skip)
    flip_byte(records.train, 11)
    order = [int(n) for n in shards.permutation(1, 0, 40)]
    found = labels(pipeline.train(records, BATCH, 1, 0), 5)
    changed = [place for place in range(40) if found[place] != whole[place]]
    assert changed == [order.index(11)]
    assert found[changed[0]] == whole[order.index(12)]
    path, byte = records.train.files[records.train.file[11]], records.train.offset[11] - 12
    assert records.corrupt() == [f"{path}: corrupt record at byte {byte}; copy or prepare this shard again"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_corrupt_evaluation_image_is_masked_and_counted_as_lost(folder, ranks):
    seen = []
    for rank in range(ranks):
        records = opened(folder, on_corrupt=OnCorrupt.skip)
        if rank == 0:
            flip_byte(records.val, 6)
        for _, found, mask in pipeline.evaluation(records, BATCH, None, rank, ranks):
            seen += [int(label) for label, kept in zip(found, mask, strict=True) if kept]

    assert sorted(seen) == sorted(set(range(20)) - {12})
    assert records.skipped(records.evaluation_share(20, rank, ranks)) == (6 % ranks == ranks - 1)
    assert records.skipped(np.arange(6)) == 0


def test_more_corrupt_records_than_allowed_end_the_run_with_the_count(folder):
    records = opened(folder, on_corrupt=OnCorrupt.skip, max_corrupt=2)
    for number in (3, 4, 5):
        flip_byte(records.train, number)
    with pytest.raises(tf.errors.OpError):
        labels(pipeline.train(records, BATCH, 1, 0), 5)
    assert str(records.error).startswith("data.max_corrupt=2: 3 records could not be read, the last: ")


@pytest.mark.parametrize("cache", [Cache.encoded, Cache.decoded])
def test_what_is_kept_in_memory_is_not_read_again(folder, cache):
    records = opened(folder, cache=cache)
    stream = iter(pipeline.train(records, BATCH, 1, 0))
    first = sorted(int(label) for _ in range(5) for label in next(stream)[1])
    shutil.rmtree(folder / "train")
    second = sorted(int(label) for _ in range(5) for label in next(stream)[1])
    assert first == second == list(range(40))


@pytest.mark.parametrize("cache", [Cache.encoded, Cache.decoded])
def test_images_from_memory_are_those_from_disk(folder, cache):
    """To the last bit, but for the chroma at a crop's edge, where the decoder of a crop sees no neighbours."""
    plain, kept = (list(pipeline.train(opened(folder, cache=c), BATCH, 1, 0).take(7)) for c in (Cache.off, cache))
    for ours, theirs in zip(plain, kept, strict=True):
        distance = np.abs(ours[0].numpy().astype(int) - theirs[0].numpy().astype(int))
        assert distance.max() <= (0 if cache is Cache.encoded else 30)
        assert distance.mean() <= (0 if cache is Cache.encoded else 0.5)
        for part in (1, 2):
            np.testing.assert_array_equal(ours[part], theirs[part])
    plain, kept = (list(pipeline.evaluation(opened(folder, cache=c), BATCH)) for c in (Cache.off, cache))
    for ours, theirs in zip(plain, kept, strict=True):
        for part in range(3):
            np.testing.assert_array_equal(ours[part], theirs[part])


def test_a_cache_that_would_not_fit_is_refused_with_the_figures(folder, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    opened(folder, cache=Cache.decoded)  # told once the sizes are known
    with pytest.raises(
        UserError, match=r"data.cache=decoded: needs 0\.0 GB and 0\.0 GB are free; use data.cache=encoded"
    ):
        pipeline.train(opened(folder, cache=Cache.decoded), BATCH, 1, 0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20_000))
    with pytest.raises(UserError, match=r"data\.cache=encoded: needs"):
        opened(folder, cache=Cache.encoded)


def test_an_image_that_no_decoder_takes_is_named(folder):
    bad = folder / "train" / "train-00001-of-00003"
    examples = [serialized(picture(number), number + 1) for number in range(1, 40, 3)]
    examples[4] = serialized(picture(1)[:100], 5)
    with tf.io.TFRecordWriter(str(bad)) as writer:
        for example in examples:
            writer.write(example)
    records = opened(folder)
    batches = pipeline.train(records, BATCH, 1, 0)
    with pytest.raises(tf.errors.OpError):
        labels(batches, 5)
    told = str(reading.undecodable(records, 1, 0, BATCH, 64))
    at = sum(len(one) + 16 for one in examples[:4])
    assert told.startswith(f"{bad}, byte {at}: no JPEG that can be decoded")
    number = next(n for n in range(40) if told.startswith(f"{records.train.place(n)}:"))
    seed = next(seed for seed in range(99) if number in shards.permutation(seed, 0, 40)[4:6])
    assert (
        str(reading.undecodable(records, seed, 2, BATCH, 1, 4)) == told
    )  # the third step of images that come four times


def test_shards_behind_an_address_are_read_as_local_ones(folder):
    memory = fsspec.filesystem("memory")
    for path in folder.rglob("*-of-*"):
        memory.pipe(f"/bucket/{path.parent.name}/{path.name}", path.read_bytes())
    local, remote = (list(pipeline.train(opened(where), BATCH, 1, 0).take(3)) for where in (folder, "memory://bucket"))
    for ours, theirs in zip(local, remote, strict=True):
        for part in range(3):
            np.testing.assert_array_equal(ours[part], theirs[part])


@pytest.mark.usefixtures("small_network")
def test_a_run_passes_over_corrupt_records_logs_their_number_and_evaluates_the_rest(run_of, tmp_path):
    digits.write(str(tmp_path / "digits"))
    common = [
        "model=tiny",
        "batch=64",
        "steps=22",
        "track=off",
        f"data.dir={tmp_path / 'digits'}",
        "data.on_corrupt=skip",
    ]
    run = run_of(*common)
    records = source.open_source(run.data)
    for index, number in ((records.train, 5), (records.train, 700), (records.val, 8)):
        flip_byte(index, number)
    train(run, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert max(line.get("data/corrupt_records", 0) for line in lines) in (1, 2)  # 29 images of the epoch are left out
    assert checkpoint.list_checkpoints(tmp_path / "run")[-1].state["scores"]["seen"] == 359


# ------------------------------------------------------------------------------------------- sound records of other images
def replaced(folder, others):
    """The folder with these images, {number: file}, in place of a few of its training and evaluation images."""
    for prefix, count, number_of_shards in (("train", 40, 3), ("validation", 20, 2)):
        for shard in range(number_of_shards):
            name = folder / prefix / f"{prefix}-{shard:05d}-of-{number_of_shards:05d}"
            with tf.io.TFRecordWriter(str(name)) as writer:
                for number in range(shard, count, number_of_shards):
                    writer.write(serialized(others.get(number, picture(number)), number + 1))
    return foreign.adopt(folder)


def number_of(records, label):
    """The number of the record with this label."""
    return next(
        n for n in range(len(records)) if tfexample.decode(shards.read(records, n))["image/class/label"] == label
    )


def test_images_that_are_no_plain_jpeg_are_read_as_preparation_converts_them(folder, photo, encoded, rotated):
    odd = [encoded(photo(1), form) for form in ("PNG", "GIF", "BMP", "WEBP")]
    odd += [encoded(photo(1), exif=rotated(turn)) for turn in range(2, 9)]
    odd += [encoded(photo(1).convert("CMYK")), encoded(photo(1).convert("RGBA"), "PNG")]
    records = opened(replaced(folder, dict(enumerate(odd))))
    read, prepared = Path(folder, "read"), dict(enumerate(images.convert(data).encoded for data in odd))
    shutil.copytree(folder, read)
    for ours, theirs in zip(
        pipeline.evaluation(records, 20), pipeline.evaluation(opened(replaced(read, prepared)), 20), strict=True
    ):
        for part in range(3):
            np.testing.assert_array_equal(ours[part], theirs[part])
    assert len(labels(pipeline.train(records, BATCH, 1, 0), 5)) == 40 and not records.corrupt()


def test_images_that_cannot_be_decoded_are_named_or_skipped_and_counted_on_any_number_of_ranks(folder, photo, encoded):
    cut = encoded(photo(1, 300, 200))
    hostile = {
        3: encoded(Image.new("RGB", (1, 20_000))),
        7: encoded(Image.new("RGB", (5000, 1)), "PNG"),
        12: b"no image",
        18: cut[: len(cut) * 2 // 3],  # its first rows can be decoded, and so can some of its crops
    }
    replaced(folder, hostile)
    records = opened(folder)
    with pytest.raises(
        UserError, match=r"1 x 20000 pixels; one side is more than 100 times the other\); prepare the shards"
    ):
        records.train_reader(number_of(records.train, 4))
    whole = labels(pipeline.train(opened(folder, on_corrupt=OnCorrupt.skip), BATCH, 1, 0), 10)
    order = [*shards.permutation(1, 0, 40), *shards.permutation(1, 1, 40)]
    label_of = [tfexample.decode(shards.read(records.train, n))["image/class/label"] - 1 for n in range(40)]
    good = [next(n % 40 for n in range(k, k + 40) if label_of[n % 40] not in hostile) for k in range(40)]
    assert whole == [label_of[good[number]] for number in order]
    sources = [opened(folder, on_corrupt=OnCorrupt.skip) for _ in range(2)]
    parts = [iter(pipeline.train(one, BATCH, 1, 5, rank, 2)) for rank, one in enumerate(sources)]  # resumed, by two
    assert [int(label) for _ in range(5) for part in parts for label in next(part)[1]] == whole[40:]
    seen = opened(folder, on_corrupt=OnCorrupt.skip)
    (batch,) = pipeline.evaluation(seen, 20)
    assert int(batch[2].numpy().sum()) == 16 and seen.skipped(np.arange(20)) == len(seen.corrupt()) == 4
