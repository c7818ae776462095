"""`source=imagenet`: from nested tars or folders to shards that TensorFlow reads, every image once and rightly labelled."""

import io
import json
import random
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from resnet import UserError, files
from resnet.data import indexes, manifest, shards
from resnet.data.formats import tfexample
from resnet.prepare import __main__ as prepare

ACCEPTED = "max_rejected=0.02"  # 4 of 244


def run(*words):
    """The command, in this process; raises what it tells the user."""
    prepare.do(prepare.parse(words))


def records(out, layout=0):
    """(training, validation) records, each by file name."""
    found = []
    for split in (0, 1):
        files = shards.listing(str(out), shards.LAYOUTS[layout][split])
        index = indexes.index(files)
        read = [tfexample.decode(shards.read(index, number)) for number in range(len(index))]
        named = {record["image/filename"].decode(): record for record in read}
        assert len(named) == len(read)  # every one once
        found.append(named)
    return found


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def prepared(imagenet, tmp_path_factory):
    """What comes of the tars; tests only read it."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    run(
        "source=imagenet",
        f"dir={imagenet.dir}",
        f"out={out}",
        "train_shards=7",
        "val_shards=3",
        "processes=1",
        ACCEPTED,
    )
    return out


# ------------------------------------------------------------------------------------------------------------ what comes out
def test_every_image_comes_out_once_under_its_label(imagenet, prepared):
    for found, wanted in zip(records(prepared), (imagenet.train, imagenet.val), strict=True):
        assert found.keys() == wanted.keys()
        for name, record in found.items():
            assert record["image/class/synset"].decode() == wanted[name]
            assert record["image/class/label"] == imagenet.synsets.index(wanted[name]) + 1
            assert record["image/class/text"].decode() == f"thing {wanted[name][1:]}"


def test_rgb_jpegs_come_out_byte_for_byte_and_all_else_as_rgb_jpeg(imagenet, prepared):
    train, val = records(prepared)
    for name, record in {**train, **val}.items():
        data = record["image/encoded"]
        assert name not in imagenet.as_is or imagenet.as_is[name] == data
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert image.size == (record["image/width"], record["image/height"])


def test_the_names_are_the_established_ones(prepared):
    train, val = shards.find(str(prepared), "")
    assert [path.removeprefix(f"{prepared}/") for path in train] == [
        f"img_train/img_train-{number:05d}-of-00007" for number in range(7)
    ]
    assert [path.removeprefix(f"{prepared}/") for path in val] == [
        f"img_val/img_val-{number:05d}-of-00003" for number in range(3)
    ]
    assert sorted(path.name for path in prepared.iterdir()) == [
        "classes.txt",
        "img_train",
        "img_val",
        "index.bin",
        "manifest.json",
        "rejected.tsv",
    ]


def test_the_images_are_shuffled_and_the_shards_even(imagenet, prepared):
    train, _ = shards.find(str(prepared), "")
    index = indexes.index(train)
    labels = [tfexample.decode(shards.read(index, number))["image/class/label"] for number in range(len(index))]
    assert np.mean(np.diff(labels) == 0) < 0.2  # sorted, it would be 0.8
    assert {len(shards.scan(path)[0]) for path in train} <= {25, 26}
    assert len(labels) == len(imagenet.train)


def test_what_was_rejected_is_named_with_the_reason(imagenet, prepared):
    lines = [line.split("\t") for line in (prepared / "rejected.tsv").read_text().splitlines()]
    assert {name for name, _ in lines} == imagenet.rejected
    reasons = {name.rpartition("/")[2]: reason for name, reason in lines}
    assert reasons["climbed.JPEG"] == "a name that climbs out of the archive"
    assert reasons["n01446626_link.JPEG"] == "a link"
    assert "truncated" in reasons["n01444672_3.JPEG"]
    assert reasons["ILSVRC2012_val_00000009.JPEG"] == "not a JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or HEIC image"


def test_the_manifest_says_what_is_there(imagenet, prepared):
    made = json.loads((prepared / "manifest.json").read_text())
    assert made["schema"] == 1
    assert made["options"]["source"] == "imagenet"
    assert made["options"]["dir"] == str(imagenet.dir)
    assert made["kinds"] == {"JPEG": len(imagenet.as_is), **imagenet.kinds}
    assert made["rejected"] == len(imagenet.rejected)
    assert set(made["versions"]) == {"resnet", "python", "pillow", "libjpeg"}
    assert files.read_classes((prepared / "classes.txt").read_text()) == imagenet.synsets
    for split, wanted in (("train", imagenet.train), ("val", imagenet.val)):
        found = made["splits"][split]
        assert found["images"] == len(wanted) == sum(shard["images"] for shard in found["shards"])
        assert found["classes"] == {name: list(wanted.values()).count(name) for name in imagenet.synsets}
        for shard in found["shards"]:
            data = (prepared / shard["file"]).read_bytes()
            assert (len(data), f"{shards.google_crc32c.value(data):08x}") == (shard["bytes"], shard["crc32c"])


def test_tensorflow_reads_it_and_the_training_trains_on_it(imagenet, prepared):
    from resnet.config import compose
    from resnet.data import pipeline, source

    settings = compose.one_group("data", "data=folder", dir=str(prepared), image_size=32, eval_resize=32)
    assert settings.classes == 30
    opened = source.open_source(settings)
    assert (opened.train_images, opened.eval_images) == (len(imagenet.train), len(imagenet.val))
    seen = [labels.numpy() for _, labels, mask in pipeline.evaluation(opened, 16) for labels in [labels[mask > 0]]]
    counts = np.bincount(np.concatenate(seen), minlength=30)
    assert counts.tolist() == [list(imagenet.val.values()).count(name) for name in imagenet.synsets]
    batches = iter(pipeline.train(opened, 64, 1, 0))
    for _ in range(3):
        images, labels = next(batches)[:2]
        assert images.shape == (64, 32, 32, 3)
        assert 0 <= labels.numpy().min() <= labels.numpy().max() < 30


# ------------------------------------------------------------------------------------------------------------------ same bytes
@pytest.mark.parametrize("words", [(), ("resize=24", "quality=70")], ids=["as_is", "resized"])
def test_neither_processes_nor_the_order_of_the_members_change_a_byte(imagenet, make_tars, tmp_path, words):
    make_tars(tmp_path / "tars", shuffle=5)
    runs = {"one": (imagenet.dir, 1), "two": (imagenet.dir, 2), "shuffled": (tmp_path / "tars", 1)}
    for name, (folder, processes) in runs.items():
        run(
            "source=imagenet",
            f"dir={folder}",
            f"out={tmp_path / name}",
            "train_shards=5",
            f"processes={processes}",
            *words,
            ACCEPTED,
        )
    one, two, shuffled = (contents(tmp_path / name) for name in runs)
    assert one == two
    made = [json.loads(files.pop("manifest.json")) for files in (one, shuffled)]
    assert one == shuffled
    assert made[0]["splits"] == made[1]["splits"]


def test_another_seed_is_another_order_of_the_same_images(imagenet, prepared, tmp_path):
    run(
        "source=imagenet",
        f"dir={imagenet.dir}",
        f"out={tmp_path / 'x'}",
        "train_shards=7",
        "val_shards=3",
        "seed=2",
        "processes=1",
        ACCEPTED,
    )
    assert records(tmp_path / "x") == records(prepared)
    assert contents(tmp_path / "x").keys() == contents(prepared).keys()
    assert (
        contents(tmp_path / "x")["img_train/img_train-00000-of-00007"]
        != contents(prepared)["img_train/img_train-00000-of-00007"]
    )


@pytest.mark.parametrize(("layout", "number"), [("train", 1), ("flat", 2)])
def test_other_layouts_have_the_same_records(imagenet, prepared, tmp_path, layout, number):
    run(
        "source=imagenet",
        f"dir={imagenet.dir}",
        f"out={tmp_path}/x",
        f"layout={layout}",
        "train_shards=7",
        "val_shards=3",
        "processes=1",
        ACCEPTED,
    )
    assert records(tmp_path / "x", number) == records(prepared)
    assert [len(files) for files in shards.find(str(tmp_path / "x"), "")] == [7, 3]


def test_resized_images_are_no_larger_than_asked(imagenet, tmp_path):
    run(
        "source=imagenet",
        f"dir={imagenet.dir}",
        f"out={tmp_path}/x",
        "resize=24",
        "quality=50",
        "processes=1",
        ACCEPTED,
    )
    for record in records(tmp_path / "x")[0].values():
        assert min(record["image/width"], record["image/height"]) == 24
    made = manifest.read(tmp_path / "x")
    assert made["resized"] == len(imagenet.train) + len(imagenet.val)
    assert (made["options"]["resize"], made["options"]["quality"]) == (24, 50)


# --------------------------------------------------------------------------------------------------------------- from folders
def unpacked(imagenet, folder, train, val, by_class=False):
    """The tars' good images in folders; what is refused is not there."""
    with tarfile.open(imagenet.dir / "ILSVRC2012_img_train.tar") as outer:
        for member in outer:
            place = folder / train / member.name.removesuffix(".tar")
            place.mkdir(parents=True)
            with tarfile.open(fileobj=io.BytesIO(outer.extractfile(member).read())) as inner:
                for image in inner:
                    if image.isreg() and ".." not in image.name:
                        (place / image.name).write_bytes(inner.extractfile(image).read())
    with tarfile.open(imagenet.dir / "ILSVRC2012_img_val.tar") as tar:
        for image in tar:
            if by_class and image.name not in imagenet.val:
                continue
            place = folder / val / (imagenet.val[image.name] if by_class else "")
            place.mkdir(parents=True, exist_ok=True)
            (place / image.name).write_bytes(tar.extractfile(image).read())
    if not by_class:
        shutil.copy(imagenet.dir / "synset_labels.txt", folder)
    shutil.copy(imagenet.dir / "imagenet_metadata.txt", folder)


@pytest.mark.parametrize(
    ("train", "val", "by_class"), [("img_train", "img_val", False), ("train", "val", False), ("img_train", "val", True)]
)
def test_unpacked_folders_give_the_same_records(imagenet, prepared, tmp_path, train, val, by_class):
    unpacked(imagenet, tmp_path / "data", train, val, by_class)
    run("source=imagenet", f"dir={tmp_path / 'data'}", f"out={tmp_path / 'x'}", "processes=1", ACCEPTED)
    assert records(tmp_path / "x") == records(prepared)


def test_the_tars_may_lie_anywhere_and_the_val_tar_may_have_folders(imagenet, prepared, tmp_path, tarred):
    with tarfile.open(imagenet.dir / "ILSVRC2012_img_val.tar") as tar:
        read = {image.name: tar.extractfile(image).read() for image in tar}
    members = [(f"{synset}/{name}", read[name], {}) for name, synset in imagenet.val.items()]
    random.Random(3).shuffle(members)
    (tmp_path / "v.tar").write_bytes(tarred(members))
    train, texts = imagenet.dir / "ILSVRC2012_img_train.tar", imagenet.dir / "imagenet_metadata.txt"
    run(
        "source=imagenet",
        f"train={train}",
        f"val={tmp_path}/v.tar",
        f"texts={texts}",
        f"out={tmp_path}/x",
        "processes=1",
        ACCEPTED,
    )
    assert records(tmp_path / "x") == records(prepared)


def test_texts_are_empty_where_nobody_tells_them(imagenet, tmp_path):
    labels, train, val = (
        imagenet.dir / name for name in ("synset_labels.txt", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
    )
    run(
        "source=imagenet",
        f"train={train}",
        f"val={val}",
        f"labels={labels}",
        f"out={tmp_path}/x",
        "processes=1",
        ACCEPTED,
    )
    assert {record["image/class/text"] for record in records(tmp_path / "x")[0].values()} == {b""}


def test_a_thousand_and_more_images_to_each_established_shard_are_dealt_over_1024(monkeypatch, imagenet, tmp_path):
    monkeypatch.setattr(prepare, "IMAGENET_SHARDS", (16, 4))  # of 180 and 60 images, as 1024 and 128 of a million
    run("source=imagenet", f"dir={imagenet.dir}", f"out={tmp_path}/x", "processes=1", ACCEPTED)
    assert [len(files) for files in shards.find(str(tmp_path / "x"), "")] == [16, 4]


# ------------------------------------------------------------------------------------------------------------------- refusals
@pytest.fixture
def source_of(imagenet, tmp_path):
    """A copy of the tars to spoil, and the words that prepare them."""
    for path in imagenet.dir.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path, ("source=imagenet", f"dir={tmp_path}", f"out={tmp_path / 'x'}", "processes=1", ACCEPTED)


def spoil_labels(change):
    def spoil(folder):
        lines = (folder / "synset_labels.txt").read_text().splitlines()
        (folder / "synset_labels.txt").write_text("\n".join(change(lines)) + "\n")

    return spoil


def swap(folder):
    train, val = folder / "ILSVRC2012_img_train.tar", folder / "ILSVRC2012_img_val.tar"
    data = train.read_bytes()
    train.write_bytes(val.read_bytes())
    val.write_bytes(data)


def cut(name, share):
    def spoil(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "synset_labels.txt").unlink(), r"nothing tells their classes; give labels=FILE"),
        (spoil_labels(lambda lines: lines[:-1]), r"labels=.*synset_labels.txt: 59 lines for 60 validation images"),
        (
            spoil_labels(lambda lines: [str(number) for number in range(len(lines))]),
            r"numbers, which are not those of the",
        ),
        (
            spoil_labels(lambda lines: ["n99999999", *lines[1:]]),
            r"1 class in validation but not in training: 'n99999999'",
        ),
        (
            spoil_labels(lambda lines: ["n01440764"] * len(lines)),
            r"29 classes in training but not in .*: 'n01441741',.*24 more",
        ),
        (swap, r"train=.*img_train.tar: no tars of classes inside; it looks like the validation tar, which is val="),
        (
            lambda folder: shutil.copy(folder / "ILSVRC2012_img_train.tar", folder / "ILSVRC2012_img_val.tar"),
            r"val=.*: no image inside but 30 tars; it looks like the training tar",
        ),
        (cut("ILSVRC2012_img_train.tar", 0.5), r"img_train.tar: cut short at byte"),
        (cut("ILSVRC2012_img_val.tar", 0.5), r"img_val.tar: cut short at byte"),
        (cut("ILSVRC2012_img_val.tar", 0), r"img_val.tar: empty file"),
        (
            lambda folder: (folder / "ILSVRC2012_img_train.tar").unlink(),
            r"has none of ILSVRC2012_img_train.tar, img_train",
        ),
        (
            lambda folder: (folder / "ILSVRC2012_img_train.tar").write_bytes(b"<html>" * 1000),
            r"img_train.tar: not a tar",
        ),
    ],
)
def test_a_wrong_source_is_told_and_nothing_is_left_behind(source_of, spoil, said):
    folder, words = source_of
    spoil(folder)
    with pytest.raises(UserError, match=said):
        run(*words)
    assert not (folder / "x").exists()


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("../n1.tar", {})], r"its member '../n1.tar' is a name that climbs out of the archive"),
        ([("n1.tar", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})], r"its member 'n1.tar' is a link"),
        ([("a/n1.tar", {}), ("b/n1.tar", {})], r"holds 'n1' more than once"),
        ([("n1.tar", {})], r"one class only \('n1'\)"),
        ([("n1.tar", {}), ("n2.tar", {})], r"no image in 'n1', 'n2'"),
        ([], r"no tars of classes inside"),
    ],
)
def test_an_odd_training_tar_is_refused(imagenet, tmp_path, tarred, members, said):
    inner = tarred([("README", b"", {})])
    (tmp_path / "t.tar").write_bytes(tarred([(name, b"" if header else inner, header) for name, header in members]))
    with pytest.raises(UserError, match=said):
        run("source=imagenet", f"dir={imagenet.dir}", f"train={tmp_path}/t.tar", f"out={tmp_path}/x", "processes=1")
    assert not (tmp_path / "x").exists()


def test_too_many_rejected_fails_at_the_end_and_a_second_call_makes_nothing_twice(
    imagenet, tmp_path, capsys, monkeypatch
):
    words = ("source=imagenet", f"dir={imagenet.dir}", f"out={tmp_path}/x", "train_shards=4", "processes=1")
    with pytest.raises(
        UserError, match=r"4 of 242 images were rejected, .*max_rejected=0.001.*x/rejected.tsv.*max_rejected=0.0166;"
    ):
        run(*words)
    assert len((tmp_path / "x" / "rejected.tsv").read_text().splitlines()) == 4
    assert not (tmp_path / "x" / "manifest.json").exists()
    from resnet.prepare import writer

    monkeypatch.setattr(writer, "make", lambda job: pytest.fail(f"{job.file} is made twice"))
    run(*words, "max_rejected=0.0166")
    assert (tmp_path / "x" / "manifest.json").exists()
    assert not (tmp_path / "x" / ".prepare").exists()
    assert "resuming: 240 of 240 images are done" in capsys.readouterr().out
