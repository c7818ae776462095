"""Other people's shards train to the batches of our own: written by TensorFlow and tarfile, local and at an address."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import far
import foreign as writers
import numpy as np
import pytest
import tensorflow as tf

from resnet import UserError, retries
from resnet.config.data import Cache, OnCorrupt, Order, Records
from resnet.data import classes, pipeline, source
from resnet.data.formats import ahead, foreign, packed
from resnet.prepare import __main__ as prepare
from resnet.prepare import show


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "resnet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`folder("slim")`: shards in one of the formats, written once; tests change copies."""
    root = tmp_path_factory.mktemp("formats")

    def of(kind):
        if not (root / kind).exists():
            writers.FORMATS[kind](root / kind)
        return root / kind

    return of


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return writers.of_this_suite(tmp_path_factory.mktemp("ours"))


def opened(folder, **knobs):
    knobs = {"classes": writers.CLASSES, "image_size": 16, "eval_resize": 18, **knobs}
    return source.open_source(Records(dir=str(folder), **knobs))


def examples(reader):
    """(image, label) of every record, as TensorFlow parses what the reader returns."""
    parsed = tf.io.parse_example([reader(number) for number in range(len(reader.records))], pipeline.FEATURES)
    return list(zip(parsed["image/encoded"].numpy(), parsed["image/class/label"].numpy(), strict=True))


def batches(data):
    train = pipeline.train(data, 6, 3, 2).take(7).as_numpy_iterator()
    return [part for batch in [*train, *pipeline.evaluation(data, 8).as_numpy_iterator()] for part in batch]


@pytest.fixture(scope="module")
def wanted(ours):
    return batches(opened(ours))


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def change(path, at, data):
    with Path(path).open("r+b") as file:
        file.seek(at)
        file.write(data)


# --------------------------------------------------------------------------------------------------------------- formats
@pytest.mark.parametrize("kind", writers.FORMATS)
def test_every_format_has_the_images_and_the_labels_of_ours(folder, kind):
    data = opened(folder(kind))
    for reader, count in ((data.train_reader, writers.TRAIN), (data.val_reader, writers.VAL)):
        assert examples(reader) == [(image, label + 1) for image, label in writers.pairs(count)]
    first = int(kind in ("slim", "slim with empty files", "gzip", "tars with json"))
    line = f"{folder(kind)}: shards of another program; label {first} is the first class"
    assert classes.notes(data)[0] == line


def test_ours_are_read_without_looking_at_labels(ours, monkeypatch):
    monkeypatch.setattr(foreign, "index", None)
    data = opened(ours, classes=1000)
    assert examples(data.val_reader) == [(image, label + 1) for image, label in writers.pairs(writers.VAL)]
    assert data.train.label is None and not data.notes


@pytest.mark.parametrize("kind", ["gzip", "datasets", "tars"])
def test_batches_at_an_address_are_those_of_our_shards_on_the_disk(folder, wanted, kind, monkeypatch):
    monkeypatch.setattr(ahead, "PIECE", 3000)
    with far.Server(folder(kind)) as server:
        data = opened(server.address)
        for one, other in zip(batches(data), wanted, strict=True):
            np.testing.assert_array_equal(one, other)
        data.train_reader.close()
        data.val_reader.close()


def test_block_order_reads_whole_blocks_of_them(folder):
    data = opened(folder("tars"), order=Order.blocks, streams=3, block_mb=0.002)
    labels = [int(label) for _, found, _ in pipeline.train(data, 6, 3, 0).take(5) for label in found]
    assert sorted(labels) == sorted(label for _, label in writers.pairs(writers.TRAIN))
    data.train_reader.close()


def test_a_second_start_reads_the_index_of_the_cache(folder, monkeypatch):
    first = opened(folder("tars"))
    monkeypatch.setattr(foreign, "read_all", None)
    again = opened(folder("tars"))
    assert again.train.files == first.train.files
    for part in ("file", "offset", "length", "label", "crc"):
        np.testing.assert_array_equal(getattr(again.train, part), getattr(first.train, part))


def test_png_and_other_images_are_decoded_by_their_content(tmp_path, photo, encoded):
    images = [encoded(photo(number), form) for number, form in enumerate(("PNG", "GIF", "BMP", "WEBP", "PNG"))]

    def write(path, own):
        writers.webdataset(path, [(images[label], label) for _, label in own])

    data = opened(writers.halves(tmp_path / "x", ("train-{}.tar", "val-{}.tar"), write))
    for image, label in examples(data.val_reader):
        ours = tf.io.decode_jpeg(image, channels=3).numpy().astype(int)
        theirs = np.asarray(photo(int(label) - 1).convert("RGB")).astype(int)
        assert image[:2] == b"\xff\xd8" and np.abs(ours - theirs).mean() < 12


# ------------------------------------------------------------------------------------------------------------ compressed
def test_compressed_shards_are_expanded_once_and_again_if_the_cache_is_emptied(folder, cache, capsys):
    opened(folder("gzip"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert re.search(r"gzip: 3 shards are compressed by GZIP; they are expanded into \S+/expanded, once$", lines[0])
    assert re.search(
        r"gzip: expanded, 0.\d\d GB to 0.\d\d GB; \S+/expanded may be removed when no run reads it$", lines[1]
    )
    opened(folder("gzip"))
    assert not capsys.readouterr().err
    shutil.rmtree(cache / "expanded")
    assert len(examples(opened(folder("gzip")).val_reader)) == writers.VAL
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_compressed_shard_leaves_nothing_half_written(folder, tmp_path, cache, damage):
    place = copied(folder("gzip"), tmp_path)
    path = place / "train-00001-of-00003"
    content = path.read_bytes()
    path.write_bytes(content[:-9] if damage == "cut" else content[:400] + b"????" + content[404:])
    with pytest.raises(UserError, match=rf"^{path}: damaged \(.*\); copy or prepare this shard again$"):
        opened(place)
    assert {one.name[17:] for one in (cache / "expanded").glob("[!.]*")} <= {
        "train-00000-of-00003",
        "train-00002-of-00003",
    }


def test_blocks_of_expanded_shards_are_not_stored_once_more(folder, tmp_path):
    with far.Server(folder("gzip")) as server:
        data = opened(server.address, order=Order.blocks, cache=Cache.disk, cache_dir=str(tmp_path / "blocks"))
        assert len(list(pipeline.train(data, 6, 3, 2).take(5))) == 5
        data.train_reader.close()
    assert not [path for path in (tmp_path / "blocks").rglob("*") if path.is_file()]


def test_too_little_room_for_what_is_compressed_is_an_error_with_the_figures(folder, monkeypatch):
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1000))
    with pytest.raises(
        UserError, match=r"3 shards compressed by GZIP, whose content needs at least 0\.0 GB, and 0\.0 GB"
    ):
        opened(folder("gzip"))


# ---------------------------------------------------------------------------------------------------------------- labels
def test_labels_that_allow_two_beginnings_need_the_knob(folder):
    place = folder("slim")
    line = (
        rf"^data\.label_offset=null: the labels in {place} are 1 to 5, which data\.classes=6 allows if the first class is "
        r"label 0, and if it is label 1; give data\.label_offset=0 \(.*\) or data\.label_offset=1 \("
    )
    with pytest.raises(UserError, match=line):
        opened(place, classes=6)
    for offset in (0, 1):
        first = [label for _, label in examples(opened(place, classes=6, label_offset=offset).val_reader)]
        assert first == [label + 2 - offset for _, label in writers.pairs(writers.VAL)]


def test_the_knob_must_fit_the_labels_and_is_not_for_shards_of_ours(folder, ours):
    with pytest.raises(
        UserError, match=r"^data\.label_offset=0: the labels in \S+ are 1 to 5, and 0 to 4 are those of "
    ):
        opened(folder("slim"), label_offset=0)
    with pytest.raises(UserError, match=r"^data\.label_offset=0: the shards in \S+ are of this suite, "):
        opened(ours, label_offset=0)
    with pytest.raises(
        UserError, match=r"^data\.classes=4: the labels in \S+ are 0 to 4, where 0 to 3 or 1 to 4 must be"
    ):
        opened(folder("datasets"), classes=4)


# ---------------------------------------------------------------------------------------------------------------- damage
@pytest.mark.parametrize("kind", ["datasets", "tars", "slim"])
def test_a_damaged_record_is_refused_at_the_start_or_skipped(folder, tmp_path, kind):
    place = copied(folder(kind), tmp_path)
    index = opened(place).train
    change(index.files[0], int(index.offset[3]) + 30, bytes(700))  # the header of the image
    path = re.escape(str(index.files[0]))
    with pytest.raises(UserError, match=rf"^{path}.* byte {index.start(3)}\b"):
        opened(place)
    data = opened(place, on_corrupt=OnCorrupt.skip)
    found = examples(data.train_reader)
    wanted = [(image, label + 1) for image, label in writers.pairs(writers.TRAIN)]
    assert found == [*wanted[:3], wanted[4], *wanted[4:]]
    assert len(data.corrupt()) == 1


def test_a_byte_of_a_tar_that_changes_after_it_was_indexed_is_noticed(folder, tmp_path):
    data = opened(copied(folder("tars"), tmp_path))
    change(data.train.files[1], int(data.train.offset[20]) + 600, b"?!")
    with pytest.raises(UserError, match=rf"-000001\.tar: corrupt record at byte {data.train.offset[20]};"):
        data.train_reader(20)


def test_records_of_something_else_are_named_with_their_features(tmp_path):
    def write(path, own):
        writers.records(path, [writers.example(text=image, length=label) for image, label in own])

    place = writers.halves(tmp_path / "x", writers.SLIM, write)
    with pytest.raises(UserError, match=rf"^data\.dir={place}: no record here is of an image with a label"):
        opened(place)


def test_a_record_of_something_else_is_skipped_as_a_damaged_one(tmp_path):
    def write(path, own):
        odd = writers.example(text=b"no image", length=3)
        writers.records(path, [odd, *[writers.datasets(*pair) for pair in own]])

    place = writers.halves(tmp_path / "x", writers.DATASETS, write, parts=1)
    with pytest.raises(
        UserError, match=r"byte 0: no record of an image \(its features are length, text, where an image has "
    ):
        opened(place)
    data = opened(place, on_corrupt=OnCorrupt.skip)
    assert examples(data.val_reader)[1:] == [(image, label + 1) for image, label in writers.pairs(writers.VAL)]
    assert len(data.corrupt()) == 1


def test_a_folder_of_empty_shards_is_refused(tmp_path):
    place = writers.halves(tmp_path / "x", writers.SLIM, lambda path, _: path.touch())
    with pytest.raises(UserError, match="no record in this shard, nor in the 1 beside it"):
        opened(place)


# -------------------------------------------------------------------------------------------------------------- progress
def test_pieces_of_a_file_at_an_address_are_its_bytes(tmp_path, monkeypatch):
    content = np.random.default_rng(0).bytes(50_000)
    (tmp_path / "x").write_bytes(content)
    monkeypatch.setattr(ahead, "PIECE", 4096)
    with far.Server(tmp_path) as server, packed.ThreadPoolExecutor(8) as pool:
        server.delay_s = 0.02
        with ahead.open_file(f"{server.address}/x", len(content), pool, 4, foreign.threading.Event()) as file:
            for start, count in (
                (0, 12),
                (12, 9000),
                (9012, 0),
                (30_000, 5000),
                (28_000, 10),
                (49_990, 100),
                (50_001, 5),
            ):
                file.seek(start)
                assert file.read(count) == content[start : start + count]
        assert server.most > 2


def test_a_long_walk_says_how_far_it_is(folder, capsys, monkeypatch):
    monkeypatch.setattr(foreign.indexes, "LINE_S", 0.01)
    with far.Server(folder("tars")) as server:
        server.delay_s = 0.03
        opened(server.address)
    line = "0.0 of 0.0 GB read to index 2 shards of other programs; the result is stored in the cache"
    assert line in capsys.readouterr().err.splitlines()


def test_a_start_that_was_stopped_goes_on_with_the_shards_that_it_has_read(folder, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(foreign, "FILES", 1)  # one behind the other
    place = copied(folder("slim"), tmp_path)
    path = place / "train-00001-of-00002"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"^{path}: truncated record"):
        opened(place)
    assert len(list((cache / "index/parts").glob("*/*"))) == 1
    path.write_bytes(content)
    read, walked = foreign.read_shard, []
    monkeypatch.setattr(foreign, "read_shard", lambda file, name, *rest: walked.append(name) or read(file, name, *rest))
    assert len(examples(opened(place).train_reader)) == writers.TRAIN
    assert str(path) in walked and len(walked) == 3 and not list((cache / "index/parts").iterdir())


KILLED = """
import os, signal, sys
from resnet.config.data import Records
from resnet.data import source
from resnet.data.formats import foreign, packed
packed.EXPANDING = foreign.FILES = 1  # one behind the other
done = []

def die(parts):
    for part in parts:
        yield part[:100] if done else part
        if done:
            os.kill(os.getpid(), signal.SIGKILL)
    done.append(1)

inflated, store = packed.inflated, foreign.store
if sys.argv[2] == "expansion":
    packed.inflated = lambda parts: die(inflated(parts))
else:
    foreign.store = lambda *words: (store(*words), os.kill(os.getpid(), signal.SIGKILL))
source.open_source(Records(dir=sys.argv[1], classes=5))
"""


def test_after_kills_the_next_start_goes_on_and_nothing_half_written_is_used(folder, cache, monkeypatch):
    place = folder("gzip")
    for moment, names in (("expansion", ["00000"]), ("index", ["00000", "00001", "00002"])):
        process = subprocess.run([sys.executable, "-c", KILLED, place, moment], capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        written = [
            path.name[17:] for path in sorted((cache / "expanded").glob("[!.]*"), key=lambda path: path.name[17:])
        ]
        assert written == [f"train-{name}-of-00003" for name in names]
    assert len(list((cache / "index/parts").glob("*/*.npz"))) == 1
    read, walked = foreign.read_shard, []
    monkeypatch.setattr(foreign, "read_shard", lambda file, name, *rest: walked.append(name) or read(file, name, *rest))
    data = opened(place)
    assert len(walked) == 5
    assert examples(data.train_reader) == [(image, label + 1) for image, label in writers.pairs(writers.TRAIN)]
    assert not list(cache.rglob("*.part")) and not list((cache / "index/parts").iterdir())


def test_an_error_in_one_shard_ends_the_reading_of_the_others(folder, monkeypatch):
    monkeypatch.setattr(retries, "PAUSE_S", 0.01)
    with far.Server(folder("tars")) as server:
        server.status = 403
        with pytest.raises(UserError):
            opened(server.address)


# ----------------------------------------------------------------------------------------------------------------- check
def test_check_reads_tars_at_an_address(folder, capsys):
    with far.Server(folder("tars")) as server:
        prepare.do(prepare.parse([f"check={server.address}", "deep=true", "processes=1"]))
        line = (
            f"{server.address}: {writers.TRAIN + writers.VAL} records in 4 shards, without a fault, every image decoded"
        )
    assert capsys.readouterr().out.splitlines()[-1] == line


@pytest.mark.parametrize("kind", ["datasets, gzip", "tars", "slim from 0"])
@pytest.mark.parametrize("damaged", [False, True])
def test_check_reads_every_format(folder, tmp_path, capsys, kind, damaged):
    place = copied(folder(kind), tmp_path)
    words = [f"check={place}", "deep=true", "processes=1"]
    if not damaged:
        prepare.do(prepare.parse(words))
        lines = capsys.readouterr().out.splitlines()
        assert lines[-2] == f"{place}: labels 0 to 4"
        assert (
            lines[-1]
            == f"{place}: {writers.TRAIN + writers.VAL} records in 4 shards, without a fault, every image decoded"
        )
        return
    index = opened(place).val
    change(index.files[0], int(index.offset[2]) + 30, bytes(700))
    with pytest.raises(UserError, match=f"^{place}: 1 fault in 4 shards"):
        prepare.do(prepare.parse(words))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "byte" in line]
    assert line.startswith(f"{index.files[0]}: byte {index.start(2):,}: ")


def test_show_takes_the_offset_of_labels(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(show, "draw", lambda data, *_: drawn.append(data))
    with pytest.raises(UserError, match=r"^data\.label_offset=null: "):
        prepare.do(prepare.parse([f"show={folder('tars with json')}"]))
    prepare.do(prepare.parse([f"show={folder('tars with json')}", "label_offset=1"]))
    assert drawn[0].train.label.min() == 1
