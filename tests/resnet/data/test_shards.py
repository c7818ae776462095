"""Shards against TensorFlow's own reader and writer; every kind of damage; the order of an epoch."""

import os
import struct
from pathlib import Path

import pytest
import tensorflow as tf

from resnet import UserError
from resnet.data import indexes, shards
from resnet.data.formats import numbering

DATA = [b"first", b"", b"ends in zeros\0\0\0", bytes(range(256)) * 40, b"last"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where indexes are kept: each test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(path, data=DATA):
    """A shard, written by TensorFlow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in data:
            writer.write(record)
    return str(path)


def empty_set(folder, prefix, total, numbers=None):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(total) if numbers is None else numbers:
        (folder / f"{prefix}-{number:05d}-of-{total:05d}").touch()


def start_of(number, data=DATA):
    """Byte at which a record's frame begins: 16 bytes go around every record before it."""
    return sum(len(record) + 16 for record in data[:number])


# --------------------------------------------------------------------------------------------------------------- records
def test_a_shard_written_by_tensorflow_is_read_record_by_record(tmp_path):
    path = written(tmp_path / "shard")
    offsets, lengths = shards.scan(path)
    assert lengths == [len(record) for record in DATA]
    assert offsets == [start_of(number) + 12 for number in range(len(DATA))]
    index = indexes.index([path])
    assert [shards.read(index, number) for number in (4, 0, 3, 1, 2)] == [DATA[n] for n in (4, 0, 3, 1, 2)]


def test_framed_records_are_what_tensorflow_writes_and_reads(tmp_path):
    theirs = written(tmp_path / "theirs")
    ours = tmp_path / "ours"
    ours.write_bytes(b"".join(shards.encode_record(record) for record in DATA))
    assert ours.read_bytes() == Path(theirs).read_bytes()
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(ours))] == DATA


def test_the_checksum_is_the_published_one():
    """CRC-32C of "123456789" is e3069283; TFRecord rotates it by 15 bits and adds a constant."""
    crc = 0xE3069283
    assert shards.masked_crc(b"123456789") == (((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def test_an_index_numbers_the_records_of_all_files_in_order(tmp_path):
    files = [written(tmp_path / f"shard-{n}", [b"%d-%d" % (n, i) for i in range(n + 1)]) for n in range(3)]
    index = indexes.index(files)
    assert len(index) == 6
    assert index.files == tuple(files)
    assert list(index.file) == [0, 1, 1, 2, 2, 2]
    assert [shards.read(index, n) for n in range(6)] == [b"0-0", b"1-0", b"1-1", b"2-0", b"2-1", b"2-2"]


# ---------------------------------------------------------------------------------------------------------------- damage
def test_empty_files_are_shards_without_a_record_as_in_tensorflow(tmp_path):
    """The original suite leaves the last of its 1024 files empty if there are few images."""
    files = [str(tmp_path / f"train-{number:05d}-of-00005.tfrecord") for number in range(5)]
    for number, file in enumerate(files):
        written(Path(file), DATA[:number] if number < 3 else [])
    numbering.check_complete(files)
    index = indexes.index(files)
    theirs = [record.numpy() for record in tf.data.TFRecordDataset(files)]
    assert [shards.read(index, number) for number in range(len(index))] == theirs == DATA[:1] + DATA[:2]
    assert index.empty() == [files[0], *files[3:]]
    with pytest.raises(UserError, match=r"00003-of-00005.tfrecord: no record in this shard, nor in the 1 beside it"):
        indexes.index(files[3:])


@pytest.mark.parametrize(("kind", "way_out"), [("GZIP", "gzip -dc"), ("ZLIB", "Python's zlib.decompress")])
def test_compressed_shards_are_told_as_such(tmp_path, kind, way_out):
    with tf.io.TFRecordWriter(str(tmp_path / "shard"), kind) as writer:
        writer.write(DATA[0])
    line = f"{tmp_path}/shard: compressed by {kind} at byte 0; write every shard anew, decompressed by {way_out}"
    with pytest.raises(UserError, match=f"^{line}$"):
        indexes.index([str(tmp_path / "shard")])


@pytest.mark.parametrize("lost", [1, 3, 4, 7, 15, 16, 18])
def test_a_truncated_shard_is_refused_by_name_and_byte(tmp_path, lost):
    path = Path(written(tmp_path / "shard"))
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(UserError, match=rf"{path}: .*at byte {start_of(4)}\b"):
        shards.scan(str(path))


@pytest.mark.parametrize("byte", range(12))
def test_a_flipped_byte_in_a_header_is_found_by_walking(tmp_path, byte):
    path = Path(written(tmp_path / "shard"))
    content = bytearray(path.read_bytes())
    content[start_of(3) + byte] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}: corrupt record header at byte {start_of(3)};"):
        indexes.index([str(path)])


@pytest.mark.parametrize("byte", [12, 12 + 9999, 12 + 10240, 12 + 10243])
def test_a_flipped_byte_in_a_record_is_found_by_reading_it(tmp_path, byte):
    path = Path(written(tmp_path / "shard"))
    content = bytearray(path.read_bytes())
    content[start_of(3) + byte] ^= 0x01  # in the data, or in its checksum
    path.write_bytes(content)
    index = indexes.index([str(path)])
    assert shards.read(index, 2) == DATA[2]
    assert shards.read(index, 4) == DATA[4]
    with pytest.raises(UserError, match=rf"{path}: corrupt record at byte {start_of(3)};"):
        shards.read(index, 3)


def test_text_in_place_of_records_is_refused(tmp_path):
    (tmp_path / "shard").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(UserError, match=r"shard: corrupt record header at byte 0;"):
        shards.scan(str(tmp_path / "shard"))


def test_a_shard_cut_or_gone_after_it_was_indexed_is_named(tmp_path):
    path = Path(written(tmp_path / "shard"))
    index = indexes.index([str(path)])
    path.write_bytes(path.read_bytes()[: start_of(4) + 2])
    with pytest.raises(UserError, match=rf"{path}: .* at byte {start_of(4)};"):
        shards.read(index, 4)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path}: cannot be read at byte \d+ \(No such file"):
        shards.read(index, 0)


# --------------------------------------------------------------------------------------------------------------- layouts
@pytest.mark.parametrize(
    ("train", "val"),
    [("img_train/img_train", "img_val/img_val"), ("train/train", "validation/validation"), ("train", "validation")],
)
def test_each_established_layout_is_found(tmp_path, train, val):
    for prefix, total in ((train, 3), (val, 2)):
        empty_set((tmp_path / prefix).parent, Path(prefix).name, total)
    (tmp_path / "README.md").touch()
    wanted = [str(tmp_path / f"{train}-{n:05d}-of-00003") for n in range(3)]
    wanted_val = [str(tmp_path / f"{val}-{n:05d}-of-00002") for n in range(2)]
    assert shards.find(str(tmp_path), "make") == (wanted, wanted_val)
    assert shards.find(f"{tmp_path}/", "make") == (wanted, wanted_val)


def test_the_established_sizes_are_sorted_by_number(tmp_path):
    empty_set(tmp_path / "train", "train", 1024)
    empty_set(tmp_path / "validation", "validation", 128)
    train, val = shards.find(str(tmp_path), "make")
    assert (len(train), len(val)) == (1024, 128)
    assert train[1000].endswith("train/train-01000-of-01024")


@pytest.mark.parametrize("exists", [True, False])
def test_no_shards_names_the_folder_the_patterns_and_the_command(tmp_path, exists):
    folder = tmp_path / "data"
    if exists:
        folder.mkdir()
        (folder / "n01440764.tar").touch()
    with pytest.raises(UserError) as caught:
        shards.find(str(folder), "python -m resnet.prepare source=imagenet")
    message = str(caught.value)
    for part in (
        f"data.dir={folder}",
        "img_train/img_train-*-of-*",
        "img_val/img_val-*-of-*",
        "train/train-*-of-*",
        "validation/validation-*-of-*",
        " train-*-of-*",
        " validation-*-of-*",
        "python -m resnet.prepare source=imagenet",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ("img_train/img_train", "img_val/img_val"),
        ("img_val/img_val", "img_train/img_train"),
        ("train/train", "validation/validation"),
        ("validation", "train"),
    ],
)
def test_half_a_layout_names_what_is_missing_and_the_command(tmp_path, there, missing):
    empty_set((tmp_path / there).parent, Path(there).name, 2)
    with pytest.raises(UserError) as caught:
        shards.find(str(tmp_path), "make it")
    assert f"has {there}-*-of-*" in str(caught.value)
    assert f"no {missing}-*-of-*" in str(caught.value)
    assert "make it" in str(caught.value)


def test_shards_of_another_name_are_named_beside_what_is_missing(tmp_path):
    for name in ("train-00000-of-00001", "val-00000-of-00001"):
        (tmp_path / name).touch()
    told = r"has train-\*-of-\* but no validation-\*-of-\* \(val-00000-of-00001 has another name\)"
    with pytest.raises(UserError, match=told):
        shards.find(str(tmp_path), "prepare")


def test_a_whole_layout_is_found_beside_half_of_another(tmp_path):
    empty_set(tmp_path / "img_train", "img_train", 2)
    empty_set(tmp_path / "train", "train", 2)
    empty_set(tmp_path / "validation", "validation", 2)
    train, val = shards.find(str(tmp_path), "make")
    assert {Path(path).parent.name for path in train + val} == {"train", "validation"}


@pytest.mark.parametrize(("lost", "first"), [([0], 0), ([7, 5], 5), ([15], 15)])
@pytest.mark.parametrize("half", ["train", "validation"])
def test_missing_shards_are_counted_and_the_first_is_named(tmp_path, half, lost, first):
    for name in ("train", "validation"):
        numbers = set(range(16)) - set(lost if name == half else [])
        empty_set(tmp_path / name, name, 16, numbers)
    with pytest.raises(UserError, match=rf"/{half}: {len(lost)} of 16 shards are missing, first {first:05d}-of-00016"):
        shards.find(str(tmp_path), "make")


@pytest.mark.parametrize("other", ["train-00000-of-00004", "train-00001-of-00002.partial", "train-00000-of-0002"])
def test_shards_of_two_sets_in_one_folder_are_refused(tmp_path, other):
    empty_set(tmp_path / "train", "train", 2)
    empty_set(tmp_path / "validation", "validation", 2)
    (tmp_path / "train" / other).touch()
    with pytest.raises(UserError, match=rf"/train: shards of 2 sets lie here .*-of-{other.rpartition('-')[2]}\b"):
        shards.find(str(tmp_path), "make")


def test_names_that_number_nothing_are_refused_and_no_crash(tmp_path):
    empty_set(tmp_path / "validation", "validation", 2)
    (tmp_path / "train").mkdir()
    for name in ("train-0-of-x", "train-copy-of-00001", "train-00002-of-00002", "train-00000-of-00000"):
        (tmp_path / "train" / name).touch()
        with pytest.raises(UserError, match=f"{tmp_path}/train"):
            shards.find(str(tmp_path), "make")
        (tmp_path / "train" / name).unlink()


def test_array_records_are_named(tmp_path):
    (tmp_path / "imagenet2012-train.array_record-00000-of-01024").touch()
    with pytest.raises(
        UserError, match=r"train\.array_record-00000-of-01024: ArrayRecord files are not read; have .* tfds"
    ):
        shards.find(str(tmp_path), "make")


def test_a_copy_beside_the_shards_is_named(tmp_path):
    empty_set(tmp_path / "validation", "validation", 2)
    empty_set(tmp_path / "train", "train", 2)
    (tmp_path / "train" / "train-copy-of-00002").touch()
    with pytest.raises(UserError, match=r"train/train-copy-of-00002: is none of the shards 0 to 1"):
        shards.find(str(tmp_path), "make")


def test_a_folder_that_must_not_be_read_is_told_apart_from_an_empty_one(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", refuse)  # root may read anything
    with pytest.raises(UserError, match=rf"data.dir={tmp_path}: cannot be listed \(.*Permission denied"):
        shards.find(str(tmp_path), "make")


def test_a_shard_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "shard").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=rf"{tmp_path}/shard: cannot be read at byte 0 \(No such file"):
        indexes.index([str(tmp_path / "shard")])
    with pytest.raises(UserError, match=rf"{tmp_path}: cannot be read at byte 0 \(Is a directory"):
        indexes.index([str(tmp_path)])


# ---------------------------------------------------------------------------------------------------------------- remote
def test_what_lies_behind_a_url_is_found_indexed_and_read(tmp_path):
    """file:// goes through fsspec, as gs:// and s3:// do."""
    for name in ("train", "validation"):
        for number in range(2):
            written(tmp_path / "data" / f"{name}-{number:05d}-of-00002")
    train, val = shards.find(f"file://{tmp_path}/data", "make")
    assert train == [f"file://{tmp_path}/data/train-0000{n}-of-00002" for n in range(2)]
    index = indexes.index(train)
    assert [shards.read(index, n) for n in range(10)] == DATA * 2
    assert len(indexes.index(val)) == 10


def test_nothing_behind_a_url_is_told_like_nothing_in_a_folder(tmp_path):
    with pytest.raises(UserError, match=rf"data.dir=file://{tmp_path}/none: no shards here; tried .*make"):
        shards.find(f"file://{tmp_path}/none", "make")


def test_a_url_of_no_known_kind_is_told_apart_from_an_empty_folder():
    with pytest.raises(UserError, match=r"^data.dir=nosuch://bucket: no address that can be read \("):
        shards.find("nosuch://bucket", "make")


def test_damage_behind_a_url_is_named(tmp_path):
    path = Path(written(tmp_path / "shard"))
    url = f"file://{path}"
    index = indexes.index([url])
    content = bytearray(path.read_bytes())
    content[start_of(3) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{url}: corrupt record at byte {start_of(3)};"):
        shards.read(index, 3)
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"{url}: cannot be read at byte {start_of(4) + 12} \(.* bytes\);"):
        shards.read(index, 4)
    with pytest.raises(UserError, match=rf"{url}: truncated record \(1 bytes are missing\) at byte {start_of(4)};"):
        shards.scan(url)
    path.unlink()
    with pytest.raises(UserError, match=rf"{url}: cannot be read at byte "):
        shards.read(index, 0)


def test_lengths_are_little_endian():
    assert shards.encode_record(b"abc")[:8] == struct.pack("<Q", 3) == b"\3\0\0\0\0\0\0\0"
