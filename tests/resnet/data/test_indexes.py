"""The index of records: index.bin beside the shards against a walk through them; the cache of what was walked through."""

import os
import time

import numpy as np
import pytest
import tensorflow as tf

from resnet.data import digits, indexes, manifest, shards, source

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


def prepared(folder, count=8, records=50):
    """Shards of random records below a folder, with their index.bin; their paths."""
    random = np.random.default_rng(0)
    data = [random.bytes(int(size)) for size in random.integers(0, 200, records)]
    parts = shards.write_split(folder, "img_train", data, count)
    indexes.write(folder, parts, [np.array([*map(len, data[n::count])], "<u4").tobytes() for n in range(count)])
    return [f"{folder}/{part.file}" for part in parts]


# ------------------------------------------------------------------------------------------------------------ index cache
@pytest.fixture
def walks(monkeypatch):
    """Paths that were walked, in any order."""
    walked, walk = [], shards.scan

    def counting(path):
        walked.append(path)
        return walk(path)

    monkeypatch.setattr(shards, "scan", counting)
    return walked


def same(one, other):
    return one.files == other.files and all(
        np.array_equal(getattr(one, part), getattr(other, part)) for part in ("file", "offset", "length")
    )


def test_an_index_is_made_once_and_then_read_from_the_cache(tmp_path, walks):
    files = [written(tmp_path / f"shard-{n}", DATA[: n + 1]) for n in range(3)]
    first = indexes.index(files)
    assert sorted(walks) == files
    assert same(indexes.index(files), first)
    assert len(walks) == 3
    assert shards.read(indexes.index(files), 5) == DATA[2]


@pytest.mark.parametrize("change", ["longer", "other records in as many bytes", "touched"])
def test_a_changed_shard_is_walked_again(tmp_path, walks, change):
    path = tmp_path / "shard"
    indexes.index([written(path)])
    before = path.stat()
    if change == "longer":
        written(path, [*DATA, b"one more"])
    elif change == "other records in as many bytes":
        written(path, [DATA[0] + DATA[1] + bytes(16), *DATA[2:]])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (change != "longer")))
    index = indexes.index([str(path)])
    assert len(walks) == 2
    read = [shards.read(index, number) for number in range(len(index))]
    assert read == [record.numpy() for record in tf.data.TFRecordDataset(str(path))]


def test_other_files_have_other_indexes(tmp_path, walks):
    one, other = written(tmp_path / "a" / "shard"), written(tmp_path / "b" / "shard", DATA[:2])
    assert (len(indexes.index([one])), len(indexes.index([other])), len(indexes.index([other, one]))) == (5, 2, 7)
    assert len(walks) == 4


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "emptied", "flipped"])
def test_a_damaged_cache_is_as_good_as_none(tmp_path, cache, walks, damage):
    path = written(tmp_path / "shard")
    first = indexes.index([path])
    (kept,) = cache.rglob("*.npz")
    content = kept.read_bytes()
    if damage == "emptied":
        np.savez(kept, shard=np.zeros(0))
    else:
        middle = len(content) // 2
        kept.write_bytes(
            {
                "empty": b"",
                "text": b"no archive",
                "cut": content[:middle],
                "flipped": content[:80] + bytes([content[80] ^ 1]) + content[81:],
            }[damage]
        )
    assert same(indexes.index([path]), first)
    assert len(walks) == 2
    assert same(indexes.index([path]), first)  # it was mended
    assert len(walks) == 2


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path, cache, walks):
    cache.mkdir()
    (cache / "resnet").write_text("a file where the folder would be")
    path = written(tmp_path / "shard")
    assert len(indexes.index([path])) == len(indexes.index([path])) == 5
    assert len(walks) == 2


# ------------------------------------------------------------------------------------------------------ beside the shards
def test_the_index_beside_the_shards_is_that_of_a_walk_through_them(tmp_path, walks):
    paths = prepared(tmp_path / "data")
    known = indexes.load(f"{tmp_path}/data/", None)
    index = indexes.index(paths, known)
    assert not walks and not list((tmp_path / "cache").rglob("*.npz"))
    assert same(index, indexes.index(paths))
    assert sorted(walks) == paths
    theirs = [record.numpy() for record in tf.data.TFRecordDataset(paths)]
    assert [shards.read(index, number) for number in range(len(index))] == theirs
    some = indexes.index(paths[5:2:-1], known)  # any part of it, in any order
    assert same(some, indexes.index(paths[5:2:-1]))


def test_training_opens_what_was_prepared_by_its_index(tmp_path, walks, run_of):
    digits.write(str(tmp_path / "digits"))
    settings = run_of("data=digits", f"data.dir={tmp_path}/digits").data
    opened = source.open_source(settings)
    assert not walks
    (tmp_path / "digits" / "index.bin").unlink()
    walked = source.open_source(settings)
    assert len(walks) == 10
    assert same(opened.train, walked.train) and same(opened.val, walked.val)


def test_many_small_shards_are_opened_without_reading_one(tmp_path, walks, monkeypatch):
    paths = prepared(tmp_path / "data", 1024, 3000)
    monkeypatch.setattr(shards, "open_shard", None)
    start = time.monotonic()
    assert len(indexes.index(paths, indexes.load(str(tmp_path / "data"), None))) == 3000
    assert time.monotonic() - start < 3  # 0.05 s alone on a core
    assert not walks


@pytest.mark.parametrize("change", ["a longer shard", "a shard of another set", "another manifest"])
def test_an_index_that_does_not_fit_is_recognised(tmp_path, walks, capsys, change):
    folder = tmp_path / "data"
    paths = prepared(folder)
    content = {"splits": {"train": {"shards": [vars(part) for part in shards_of(folder)]}}}
    assert len(indexes.load(str(folder), content)) == 8
    if change == "a longer shard":
        with (folder / "img_train/img_train-00003-of-00008").open("ab") as shard:
            shard.write(shards.encode_record(b"one more"))
        line = f"{paths[3]}: not of the size that index.bin says, "
    elif change == "a shard of another set":
        paths.append(written(folder / "other"))
        line = f"{folder}/other: not of the size that index.bin says, "
    else:
        content["splits"]["train"]["shards"][2]["crc32c"] = "00000000"
        line = f"{folder}/index.bin: not of the shards in manifest.json, "
    index = indexes.index(paths, indexes.load(str(folder), content))
    assert capsys.readouterr().err.startswith(line)
    assert sorted(walks) == sorted(paths)
    assert same(index, indexes.index(paths))


def shards_of(folder):
    return [one.shard for one in indexes.load(str(folder), None).values()]


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "sums", "types"])
def test_a_damaged_index_counts_as_none_and_a_line_says_so(tmp_path, walks, capsys, damage):
    paths, path = prepared(tmp_path / "data"), tmp_path / "data" / "index.bin"
    content = path.read_bytes()
    if damage in ("sums", "types"):
        sums = shards.Shard("img_train/x", 1, 1000 if damage == "sums" else None, "00000000")
        indexes.write(tmp_path / "data", [sums], [bytes(4)])
    else:
        flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        path.write_bytes({"empty": b"", "text": b"no index", "cut": content[:-4], "flipped": flipped}[damage])
    assert len(indexes.index(paths, indexes.load(str(tmp_path / "data"), None))) == 50
    assert capsys.readouterr().err.startswith(f"{path}: damaged (")
    assert len(walks) == 8


def test_an_index_is_written_whole_or_not_at_all(tmp_path):
    prepared(tmp_path / "data")
    before = (tmp_path / "data" / "index.bin").read_bytes()

    def parts():
        yield bytes(4)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        indexes.write(tmp_path / "data", [], parts())
    assert (tmp_path / "data" / "index.bin").read_bytes() == before
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"img_train", "index.bin"}


def test_a_walk_that_takes_long_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    paths = prepared(tmp_path / "data")
    monkeypatch.setattr(indexes, "LINE_S", 0.0)
    indexes.index(paths)
    lines = capsys.readouterr().err.splitlines()
    assert lines[3] == "3 of 8 shards indexed, which have no index.bin; the result is stored in the cache"


def test_a_manifest_and_an_index_are_of_the_same_shards(tmp_path):
    digits.write(str(tmp_path / "digits"))
    content = manifest.read(tmp_path / "digits")
    known = indexes.load(str(tmp_path / "digits"), content)
    assert [f"{tmp_path}/digits/{shard['file']}" for shard in manifest.shards_of(content)] == list(known)
