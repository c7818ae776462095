"""`check=DIR`: every kind of damage is one line with the file and the byte, and a sound folder is none."""

import json
import shutil
import struct

import foreign as writers
import numpy as np
import pytest

from resnet import UserError
from resnet.data import indexes, manifest, shards
from resnet.data.formats import tfexample
from resnet.prepare import __main__ as prepare


def run(*words):
    """The command, in this process; raises what it tells the user."""
    prepare.do(prepare.parse([*words, "processes=1"]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, photo, encoded):
    """A sound folder of 5 + 2 shards; tests spoil copies."""
    folder = tmp_path_factory.mktemp("whole")
    for number, name in enumerate(("cat", "dog", "emu")):
        (folder / "tree" / name).mkdir(parents=True)
        for image in range(6):
            (folder / "tree" / name / f"{image}.jpg").write_bytes(encoded(photo(number * 10 + image)))
    run("source=folder", f"dir={folder / 'tree'}", f"out={folder / 'x'}", "train_shards=5", "val_shards=2")
    return folder / "x"


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "x")
    return tmp_path / "x"


def shard(folder, number=1):
    return folder / "img_train" / f"img_train-{number:05d}-of-00005"


def change(path, at, data):
    """Overwrite some bytes."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def reframed(path, edit):
    """Rewrite the records of a shard; their CRCs are right."""
    index = indexes.index([str(path)])
    records = edit([shards.read(index, number) for number in range(len(index))])
    path.write_bytes(b"".join(map(shards.encode_record, records)))


def features(record, **changed):
    """A record with some of its features changed."""
    return tfexample.encode(
        {**tfexample.decode(record), **{f"image/{name.replace('_', '/')}": value for name, value in changed.items()}}
    )


def faults(folder, capsys, *words):
    """The lines that a check prints, and the error's."""
    capsys.readouterr()
    with pytest.raises(UserError) as caught:
        run(f"check={folder}", *words)
    lines = capsys.readouterr().out.splitlines()
    assert str(caught.value).startswith(f"{folder}: {len(lines)} fault")
    return lines


@pytest.mark.parametrize("deep", ["false", "true"])
def test_a_sound_folder_has_no_fault(whole, capsys, deep):
    run(f"check={whole}", f"deep={deep}")
    told = f"{whole}: 18 records in 7 shards, without a fault" + ", every image decoded" * (deep == "true")
    assert capsys.readouterr().out == told + "\n"


def test_so_with_several_processes_and_after_a_move(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "moved")
    prepare.do(prepare.parse([f"check={tmp_path / 'moved'}", "processes=2"]))
    assert "18 records in 7 shards, without a fault" in capsys.readouterr().out


def test_a_changed_byte_is_named_by_its_record(copy, capsys):
    offsets, _ = shards.scan(str(shard(copy)))
    change(shard(copy), offsets[1] + 100, b"\x99\x99\x99")
    (line,) = faults(copy, capsys)
    assert line == f"{shard(copy)}: byte {offsets[1] - 12:,}: corrupt record"


def test_several_faults_are_several_lines(copy, capsys):
    for number in (0, 2, 4):
        change(shard(copy, number), 600, b"\x99\x99\x99")
    assert [line.split(":")[0] for line in faults(copy, capsys)] == [str(shard(copy, number)) for number in (0, 2, 4)]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "byte 0: cannot be read (No such file or directory)"),
        (lambda path: path.write_bytes(b""), "byte 0: images 0 where manifest.json says 3"),
        (lambda path: change(path, 0, b"\x99"), "byte 0: corrupt record header; what follows cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "truncated record (5 bytes are missing); what follows"),
        (
            lambda path: path.write_bytes(path.read_bytes() + b"123"),
            "corrupt record header; what follows cannot be read",
        ),
        (lambda path: reframed(path, lambda records: records[:-1]), "byte 0: images 2 where manifest.json says 3"),
        (lambda path: reframed(path, lambda records: records[::-1]), "byte 0: crc32c "),
        (
            lambda path: reframed(path, lambda records: [features(records[0], class_label=4), *records[1:]]),
            "byte 0: label 4 is not in 1..3",
        ),
        (
            lambda path: reframed(path, lambda records: [features(records[0], class_label=0), *records[1:]]),
            "byte 0: label 0 is not in 1..3",
        ),
        (
            lambda path: reframed(path, lambda records: [b"\x99" * 50, *records[1:]]),
            "byte 0: not a record of an image (",
        ),
        (lambda path: reframed(path, lambda records: [b"", *records[1:]]), "byte 0: not a record of an image ('image"),
        (
            lambda path: reframed(path, lambda records: [features(records[0], class_label=b"1"), *records[1:]]),
            "byte 0: not a record of an image (a feature of another type)",
        ),
    ],
)
def test_every_kind_of_damage_is_told(copy, capsys, spoil, said):
    spoil(shard(copy))
    (line,) = faults(copy, capsys)
    assert line.startswith(f"{shard(copy)}: byte ")
    assert said in line


def test_a_shard_in_the_place_of_another_is_a_fault(copy, capsys):
    shutil.copy(shard(copy, 0), shard(copy, 1))
    first, *_ = faults(copy, capsys)
    assert f"{shard(copy, 1)}: byte 0: " in first


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"encoded": b"no image"}, "the image cannot be decoded (not a JPEG"),
        ({"height": 47}, "the image is 48 x 64 and the record says 47 x 64"),
    ],
)
def test_images_are_looked_at_when_asked(copy, capsys, edit, said):
    """Whoever spoiled the image made the CRCs right, in the manifest, too."""
    reframed(shard(copy), lambda records: [records[0], features(records[1], **edit), *records[2:]])
    made = json.loads((copy / manifest.NAME).read_text())
    data = shard(copy).read_bytes()
    row = made["splits"]["train"]["shards"][1]
    made["splits"]["train"]["bytes"] += len(data) - row["bytes"]
    row.update(bytes=len(data), crc32c=f"{shards.google_crc32c.value(data):08x}")
    (copy / manifest.NAME).write_text(json.dumps(made))
    assert faults(copy, capsys) == [f"{copy}/index.bin: not of the shards in manifest.json"]
    (copy / "index.bin").unlink()
    run(f"check={copy}")
    (line,) = faults(copy, capsys, "deep=true")
    offsets, _ = shards.scan(str(shard(copy)))
    assert line.startswith(f"{shard(copy)}: byte {offsets[1] - 12:,}: {said}")


def test_an_index_that_is_damaged_or_of_other_records_is_a_fault(copy, capsys):
    known = list(indexes.read(str(copy), manifest.read(copy)).values())
    parts = [
        one.lengths + np.resize([1, -1], len(one.lengths)).astype("<i4") * (len(one.lengths) == 2) for one in known
    ]
    indexes.write(copy, [one.shard for one in known], [part.astype("<u4").tobytes() for part in parts])
    lines = [f"{copy}/index.bin: not the lengths of the records in {copy}/{one.shard.file}" for one in known]
    assert faults(copy, capsys) == [line for line, one in zip(lines, known, strict=True) if len(one.lengths) == 2]
    (copy / "index.bin").write_bytes(b"no index")
    assert faults(copy, capsys) == [f"{copy}/index.bin: damaged (not an index of this version)"]


def test_other_labels_are_a_fault_though_every_crc_is_right(copy, capsys):
    made = json.loads((copy / manifest.NAME).read_text())
    made["splits"]["train"]["classes"] = {"cat": 4, "dog": 6, "emu": 5}
    (copy / manifest.NAME).write_text(json.dumps(made))
    said = "2 classes have another number of images than manifest.json says, first 'cat'"
    assert faults(copy, capsys) == [f"{copy / 'classes.txt'}: {said}"]


def test_other_files_and_other_classes_are_faults(copy, capsys):
    (copy / "img_train" / "img_train-00000-of-00009").write_bytes(b"")
    (copy / "classes.txt").write_text("cat\ndog\n")
    assert faults(copy, capsys) == [
        f"{copy / 'classes.txt'}: not the classes of manifest.json",
        f"{copy / 'img_train' / 'img_train-00000-of-00009'}: not a shard of manifest.json",
    ]
    (copy / "classes.txt").unlink()
    assert "classes.txt: cannot be read (" in faults(copy, capsys)[0]


def test_without_a_manifest_the_records_are_checked_and_it_is_said(copy, capsys):
    (copy / manifest.NAME).unlink()
    run(f"check={copy}", "deep=true")
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"{copy}: no manifest.json here, so the records are checked and nothing is known of their number"
    assert last == f"{copy}: 18 records in 7 shards, without a fault, every image decoded"
    change(shard(copy), 600, b"\x99\x99\x99")
    with pytest.raises(UserError, match="1 fault in 7 shards"):
        run(f"check={copy}")
    assert "corrupt record" in capsys.readouterr().out


def test_a_length_that_lies_within_its_crc_does_not_read_beyond_the_file(copy, capsys):
    length = struct.pack("<Q", 2**62)
    change(shard(copy), 0, length + struct.pack("<I", shards.masked_crc(length)))
    assert "byte 0: a record of 4,611,686,018,427,387,904 bytes" in faults(copy, capsys)[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"manifest.json: cannot be read \("),
        ("[]", "not a manifest of schema 1"),
        ('{"schema": 99}', "not a manifest of schema 1"),
    ],
)
def test_a_manifest_of_nobody_is_told(copy, content, said):
    (copy / manifest.NAME).write_text(content)
    with pytest.raises(UserError, match=said):
        run(f"check={copy}")


def test_a_folder_without_shards_is_told(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"^check={folder}: no shards here"):
            run(f"check={folder}")


def test_check_notices_labels_below_0_and_labels_without_a_name(tmp_path, capsys):
    writers.halves(tmp_path, writers.SLIM, writers.of_slim(-1))
    with pytest.raises(UserError, match="faults in 4 shards"):
        run(f"check={tmp_path}")
    assert capsys.readouterr().out.splitlines()[-1].endswith(": label -1 is below 0")
    writers.halves(tmp_path, writers.SLIM, writers.of_slim(0))
    (tmp_path / "label.labels.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(UserError, match="1 fault in 4 shards"):
        run(f"check={tmp_path}")
    line = f"{tmp_path}/label.labels.txt: names labels 0 to 3, and the labels in the shards are 0 to 4"
    assert capsys.readouterr().out.splitlines()[-1] == line
