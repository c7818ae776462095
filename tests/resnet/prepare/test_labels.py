"""Labels from files (Kaggle's tables, Caffe's list), links that are followed, and classes without validation images."""

import random
import shutil

import pytest

from resnet import UserError, files
from resnet.data import images, indexes, manifest, shards
from resnet.data.formats import tfexample
from resnet.prepare import __main__ as prepare
from resnet.prepare import labels

CLASSES = ("black rot", "healthy", "rust")


def run(*words):
    """The command, in this process; raises what it tells the user."""
    prepare.do(prepare.parse([*words, "processes=1"]))


def records(out):
    """{file: (class, label)} of all records of both splits."""
    indexed = (indexes.index(shards.listing(str(out), pattern)) for pattern in shards.LAYOUTS[0])
    read = [tfexample.decode(shards.read(index, number)) for index in indexed for number in range(len(index))]
    return {
        one["image/filename"].decode(): (one["image/class/synset"].decode(), one["image/class/label"]) for one in read
    }


@pytest.fixture(scope="module")
def flat(tmp_path_factory, photo, encoded):
    """A folder of twelve images, and what each one shows."""
    folder = tmp_path_factory.mktemp("flat") / "train"
    folder.mkdir()
    classes = {f"{number:04x}.jpg": CLASSES[number % 3] for number in range(12)}
    for number, name in enumerate(classes):
        (folder / name).write_bytes(encoded(photo(number)))
    return folder, classes


# -------------------------------------------------------------------------------------------------------------------- tables
def table(rows, mark=",", head=None):
    return "".join(mark.join(row) + "\r\n" for row in [*([head] if head else []), *rows])


@pytest.mark.parametrize(
    ("columns", "mark", "head", "words"),
    [
        (lambda name, kind: (name, kind), ",", ("id", "breed"), ()),
        (lambda name, kind: (name[:-4], kind), ";", None, ()),
        (lambda name, kind: (kind, f"train/{name}"), "\t", None, ()),
        (lambda name, kind: (name, "7", kind), ",", ("f", "x", "Label"), ()),
        (lambda name, kind: (name, "7", kind), ",", None, ("label_column=3",)),
        (lambda name, kind: (name, kind, "z"), ",", ("f", "kind", "label"), ("label_column=kind",)),
    ],
    ids=["header", "no ending", "folders", "named", "number", "chosen"],
)
def test_a_table_gives_the_classes_of_a_flat_folder(flat, tmp_path, columns, mark, head, words):
    folder, classes = flat
    order = random.Random(3).sample(sorted(classes), len(classes))
    text = "\ufeff" + table([columns(name, classes[name]) for name in order], mark, head)
    (tmp_path / "train.csv").write_bytes(text.encode())
    run("source=folder", f"dir={folder}", f"labels={tmp_path}/train.csv", f"out={tmp_path}/x", *words)
    assert records(tmp_path / "x") == {name: (kind, CLASSES.index(kind) + 1) for name, kind in classes.items()}
    assert files.read_classes((tmp_path / "x" / "classes.txt").read_text()) == list(CLASSES)
    made = manifest.read(tmp_path / "x")
    assert made["splits"]["val"]["classes"] == dict.fromkeys(CLASSES, 1)
    assert made["options"]["labels"] == f"{tmp_path}/train.csv"


def test_rows_and_images_without_their_other_half_are_named(flat, tmp_path):
    folder, classes = flat
    rows = [*classes.items(), ("lost.jpg", "rust"), ("0000.jpg", "rust")]
    rows[2] = (rows[2][0], "")
    del rows[4]
    (tmp_path / "t.csv").write_text(table(rows))
    words = ("source=folder", f"dir={folder}", f"labels={tmp_path}/t.csv", f"out={tmp_path}/x")
    line = (
        rf"^labels={tmp_path}/t.csv: 4 of 13 images and rows do not fit together, more than max_rejected=0.001 allows, such as "
        "'0002.jpg' has no label in t.csv, 'lost.jpg' names no image, in t.csv, '0000.jpg' has the labels 'black rot' and 'rust'"
    )
    with pytest.raises(UserError, match=line):
        run(*words)
    assert not (tmp_path / "x").exists()
    run(*words, "max_rejected=0.31")
    rejected = dict(line.split("\t") for line in (tmp_path / "x" / "rejected.tsv").read_text().splitlines())
    assert rejected.keys() == {"0002.jpg", "lost.jpg", "0000.jpg", "0004.jpg"}
    assert rejected["0004.jpg"] == "is not in t.csv"
    assert records(tmp_path / "x").keys() == classes.keys() - rejected.keys()


@pytest.mark.parametrize(
    ("text", "words", "error"),
    [
        ("x,y\n1,2\n", (), r"labels=.*: no column names images of dir= \(a row is '1', '2'\)"),
        ("a\nb\n", (), "not a CSV of file names and labels"),
        ("", (), "not a CSV of file names and labels"),
        ("0000,a\n0001\n", (), "row 2 has 1 columns, and the first one 2"),
        ("id,x,y\n0000,1,2\n", (), r"which of its columns 'id', 'x', 'y' has the labels\? Say it with label_column="),
        ("id,x,y\n0000,1,2\n", ("label_column=z",), "label_column=z: no column of labels in .*, which has 'id', 'x', 'y'"),
        ("id,x\n0000,1\n", ("label_column=id",), "label_column=id: no column of labels"),
        ("0000,a\n0001,a\n", ("max_rejected=1",), r"one class only \('a'\)"),
    ],
)  # fmt: skip
def test_a_table_that_tells_nothing_is_refused(flat, tmp_path, text, words, error):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=error):
        run("source=folder", f"dir={flat[0]}", f"labels={tmp_path}/t.csv", f"out={tmp_path}/x", *words)
    assert not (tmp_path / "x").exists()


def test_knobs_that_do_not_go_together_are_refused(flat, tmp_path):
    folder = flat[0]
    with pytest.raises(UserError, match="label_column=x: is for labels="):
        run("source=folder", f"dir={folder}", "label_column=x", f"out={tmp_path}/x")
    with pytest.raises(UserError, match=r"labels=.*: is for the images in dir="):
        run("source=folder", f"dir={folder}", f"val={folder}", "labels=x", f"out={tmp_path}/x")
    with pytest.raises(UserError, match=r"labels=.*/none: no such file"):
        run("source=folder", f"dir={folder}", f"labels={tmp_path}/none", f"out={tmp_path}/x")


# --------------------------------------------------------------------------------------------------------- links and classes
def test_links_to_classes_and_files_are_followed_if_so_asked(tree, tmp_path):
    store = tree({"cat": 3, "dog": 3, "emu": 2}, tmp_path / "store")
    chosen = tmp_path / "chosen"
    (chosen / "emu").mkdir(parents=True)
    for name in ("cat", "dog"):
        (chosen / name).symlink_to(store / name)
    for path in (store / "emu").iterdir():
        (chosen / "emu" / path.name).symlink_to(path)
    (chosen / "emu" / "annexed.jpg").symlink_to(tmp_path / "nowhere")
    (store / "dog" / "all").symlink_to(chosen)
    (chosen / "self").symlink_to(chosen)
    words = ("source=folder", f"dir={chosen}", f"out={tmp_path}/x", "max_rejected=0.3")
    with pytest.raises(UserError, match="chosen/cat: a link to a folder; links=follow reads it, or put the folder"):
        run(*words)
    run(*words, "links=follow")
    assert manifest.read(tmp_path / "x")["splits"]["train"]["classes"] == {"cat": 2, "dog": 2, "emu": 1}
    rejected = dict(line.split("\t") for line in (tmp_path / "x" / "rejected.tsv").read_text().splitlines())
    loop = "a link to a folder that it lies in"
    assert rejected == {"emu/annexed.jpg": "a broken link", "dog/all": loop, "self": loop}
    with pytest.raises(UserError, match=f"out={store}/cat/x: lies inside of {chosen}/cat"):
        run("source=folder", f"dir={chosen}", f"out={store}/cat/x", "links=follow")


def test_a_class_that_validation_lacks_is_allowed_by_a_knob(tree, tmp_path):
    tree({"ant": 2, "cat": 2, "emu": 2}, tmp_path / "t" / "train")
    tree({"cat": 1, "emu": 1}, tmp_path / "t" / "val")
    words = ("source=folder", f"dir={tmp_path}/t", f"out={tmp_path}/x")
    with pytest.raises(
        UserError, match=r"validation: 'ant'; missing_classes=allow does without validation images of them"
    ):
        run(*words)
    run(*words, "missing_classes=allow")
    made = manifest.read(tmp_path / "x")["splits"]
    assert made["val"]["classes"] == {"ant": 0, "cat": 1, "emu": 1}
    val = indexes.index(shards.listing(str(tmp_path / "x"), shards.LAYOUTS[0][1]))
    read = [tfexample.decode(shards.read(val, number)) for number in range(2)]
    assert {one["image/class/synset"]: one["image/class/label"] for one in read} == {b"cat": 2, b"emu": 3}
    shutil.rmtree(tmp_path / "t" / "train" / "cat")
    with pytest.raises(UserError, match=r"in validation but not in training: 'cat'$"):
        run(*words[:2], f"out={tmp_path}/y", "missing_classes=allow")
    with pytest.raises(UserError, match="missing_classes=allow: there is no validation tree"):
        run("source=folder", f"dir={tmp_path}/t/val", f"out={tmp_path}/y", "missing_classes=allow")


def test_what_a_missing_package_would_read_is_named_once(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(images, "decodes", lambda form: form != "HEIF")
    root, heic = tree({"cat": 4, "dog": 4}), b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf"
    for number in range(3):
        (root / "cat" / f"phone{number}.jpg").write_bytes(heic)
    with pytest.raises(UserError, match=r"3 of 11 images were rejected, more than max_rejected=0.001 allows"):
        run("source=folder", f"dir={root}", f"out={tmp_path}/x")
    lines = [line for line in capsys.readouterr().out.splitlines() if "HEIF" in line]
    assert lines == ["3 images are HEIF, which needs the package pillow-heif: pip install -e '.[heic]'"]
    (root / "dog" / "more.heic").write_bytes(heic)
    with pytest.raises(
        UserError, match=r"1 of 12 files are no images .* \(.heic 1\), .*; HEIF needs the package pillow-heif: pip"
    ):
        run("source=folder", f"dir={root}", f"out={tmp_path}/y")


# ------------------------------------------------------------------------------------------------------------------ ImageNet
@pytest.fixture(scope="module")
def kaggle(tmp_path_factory, photo, encoded):
    """ImageNet as Kaggle's archive unpacks, of four synsets; and the synset of each validation image."""
    folder = tmp_path_factory.mktemp("kaggle") / "unpacked"
    top, synsets = folder / "ILSVRC" / "Data" / "CLS-LOC", [f"n0{number}440764" for number in (4, 1, 3, 2)]
    for synset in synsets:
        (top / "train" / synset).mkdir(parents=True)
        for number in range(3):
            (top / "train" / synset / f"{synset}_{number}.JPEG").write_bytes(encoded(photo(number)))
    (top / "val").mkdir()
    truth = {f"ILSVRC2012_val_{number:08d}": synsets[number % 4] for number in range(1, 9)}
    for name in truth:
        (top / "val" / f"{name}.JPEG").write_bytes(encoded(photo(9)))
    rows = random.Random(1).sample(sorted(truth.items()), len(truth))
    lines = ["ImageId,PredictionString", *(f"{name},{synset} 85 1 499 272 {synset} 1 1 2 2 " for name, synset in rows)]
    (folder / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    (folder / "LOC_synset_mapping.txt").write_text("".join(f"{synset} thing {synset[2]}, more\n" for synset in synsets))
    return folder, truth


def test_imagenet_as_kaggle_gives_it(kaggle, tmp_path):
    folder, truth = kaggle
    run("source=imagenet", f"dir={folder}", f"out={tmp_path}/x")
    made, ordered = records(tmp_path / "x"), sorted(set(truth.values()))
    assert len(made) == 20
    assert {name: made[f"{name}.JPEG"] for name in truth} == {
        name: (synset, ordered.index(synset) + 1) for name, synset in truth.items()
    }
    assert manifest.read(tmp_path / "x")["texts"][ordered[2]] == "thing 3, more"


def test_caffe_s_list_counts_the_sorted_synsets_from_0(kaggle):
    _, truth = kaggle
    ordered, images = sorted(set(truth.values())), [f"{name}.JPEG" for name in sorted(truth)]
    lines = [f"{name}.JPEG {ordered.index(synset)}" for name, synset in reversed(truth.items())]
    assert labels.of_validation("val.txt", lines, images, ordered) == [truth[name] for name in sorted(truth)]
    from_1 = [f"{name}.JPEG {ordered.index(synset) + 1}" for name, synset in truth.items()]
    with pytest.raises(
        UserError, match=r"labels=val.txt: numbers 1 to 4, and 4 sorted synsets are counted from 0 to 3"
    ):
        labels.of_validation("val.txt", from_1, images, ordered)
    with pytest.raises(UserError, match=r"1 validation images have no line there: 'ILSVRC2012_val_00000008.JPEG'"):
        labels.of_validation("val.txt", lines[1:], images, ordered)
