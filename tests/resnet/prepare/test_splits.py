"""Layouts that strangers' data sets have: which folders are splits, which are classes, and which are neither."""

import re
import shlex
import unicodedata

import pytest

from resnet import UserError, files, photos
from resnet.data import manifest
from resnet.prepare import __main__ as prepare
from resnet.prepare import splits


def run(*words):
    prepare.do(prepare.parse([*words, "processes=1"]))


@pytest.fixture
def layout(tmp_path):
    """`layout("train/cat/", "train/1.jpg")`: a folder with these folders and empty files."""

    def make(*names):
        for name in names:
            path = tmp_path / "d" / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.touch()
        return str(tmp_path / "d")

    return make


def of(*names, inside=("cat", "dog")):
    """The names of folders of two classes."""
    return [f"{name}/{one}/" for name in names for one in inside]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        *((name, "train") for name in ("train", "Training", "TRAIN_IMAGES", "Train-2", "trainset", "TrainSet", "train2017")),
        *((name, "val") for name in ("val", "valid", "Validation", "val_images", "eval", "dev", "holdout", "Hold-out", "DevSet")),
        *((name, "test") for name in ("test", "TESTING", "test_set", "images_test", "test-01")),
        *((name, None) for name in ("cat", "trained", "invalid", "testament", "strain", "train_test", "n01440764", "")),
    ],
)  # fmt: skip
def test_established_names_in_any_case_and_with_suffixes_are_splits(name, wanted):
    assert splits.split_of(name) == (wanted and (wanted, True))


@pytest.mark.parametrize("name", ["seg_train", "bullet train", "test_tube", "asl_alphabet_test", "dev日本"])
def test_a_name_that_says_more_is_not_sure_to_be_a_split(name):
    assert splits.split_of(name)[1] is False


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (of("train", "val"), ("train", "val")),
        (of("Training", "Validation", "Testing"), ("Training", "Validation")),
        (of("train_images", "holdout"), ("train_images", "holdout")),
        (of("my_train", "my_val"), ("my_train", "my_val")),
        (of("train", "train_raw", "val", "old_val"), ("train", "val")),
        (of("train/train", "valid/valid"), ("train/train", "valid/valid")),
        (of("train"), ("train", None)),
        (of("bullet_train", inside="ab") + of("test_tube", inside="cd") + of("cat", inside="ef"), (None, None)),
        (["train/1.jpg", "bus/1.jpg"], (None, None)),
        ([*of("bullet_train", inside="ab"), "test_tube/1.jpg"], (None, None)),
        (of("cat", "dog", inside=("train", "test")), (None, None)),
        (of("train", "val", "@eaDir", "__MACOSX", "lost+found"), ("train", "val")),
    ],
)
def test_a_pair_of_splits_is_recognized(layout, names, wanted):
    root = layout(*names)
    assert splits.find(root, "dir")[:2] == tuple(name and f"{root}/{name}" for name in wanted)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (of("Training", "Testing"), r"Training and Testing are splits, not classes \(both have 'cat', 'dog'\); give train="),
        ([*of("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/1.jpg"], "seg_train and seg_test are splits"),
        (of("train", "Training-2", "trainset 3", "val")[2:], "which of Training-2, trainset 3 is meant"),
        (["train/1.jpg", "TEST/1.jpg"], "'TEST', 'train' are splits by their names, not classes, and no folders of classes"),
        (["cat/1.jpg", "dog/1.jpg", *of("test")], "test is a split, not a class: it has the same folders as lie beside it"),
    ],
)  # fmt: skip
def test_splits_that_are_no_pair_are_refused_with_the_way_out(layout, names, line):
    root = layout(*names)
    with pytest.raises(UserError, match=f"^dir={root}: {line}") as error:
        splits.find(root, "dir")
    assert "\n" not in str(error.value)
    if match := re.search("give (train=.*) to validate", str(error.value)):
        train, val = (word.partition("=")[2] for word in shlex.split(match[1]))
        assert sorted(splits.folders(train)) == sorted(splits.folders(val)) == ["cat", "dog"]


# ------------------------------------------------------------------------------------------------------- the whole command
def test_splits_within_a_tree_of_classes_are_refused(tree, tmp_path):
    for name in ("a", "b"):
        tree({"cat": 2, "dog": 2}, tmp_path / "t" / "all" / f"train_{name}")
    tree({"cat": 2, "dog": 2}, tmp_path / "t" / "val")
    with pytest.raises(UserError, match=r"^train=.*: which of train_a, train_b is meant"):
        run("source=folder", f"train={tmp_path}/t/all", f"val={tmp_path}/t/val", f"out={tmp_path}/x")
    assert not (tmp_path / "x").exists()


def test_what_systems_leave_behind_is_neither_class_nor_image(tree, tmp_path):
    root = tree({"cat": 4, "dog": 4})
    for junk in ("@eaDir", "__MACOSX", "lost+found", ".ipynb_checkpoints", "#recycle", "$RECYCLE.BIN"):
        for place in (root, root / "cat"):
            (place / junk).mkdir()
            (place / junk / "cat.jpg").write_bytes((root / "cat" / "000.jpg").read_bytes())
    for name in ("._000.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / "dog" / name).write_text("junk")
    run("source=folder", f"dir={root}", f"out={tmp_path}/x")
    content = manifest.read(tmp_path / "x")
    assert content["classes"] == 2 and content["kinds"] == {"JPEG": 8} and content["ignored"] == {"hidden": 4}
    assert photos.is_junk("@eaDir") and not photos.is_junk("cat")


@pytest.mark.parametrize(("others", "allowed"), [({".psd": 8}, None), ({".psd": 6, "": 2}, "0.4"), ({".txt": 8}, True)])
def test_files_left_out_for_their_endings_count_as_rejected(tree, tmp_path, others, allowed):
    root = tree({"cat": 4, "dog": 4})
    for ending, count in others.items():
        for number in range(count):
            (root / "cat" / f"x{number}{ending}").write_text("")
    words = ["source=folder", f"dir={root}", f"out={tmp_path}/x"]
    if allowed is True:  # texts beside images are none
        run(*words)
        return
    told = {".psd": r"\.psd 8", "": r"\.psd 6, no ending 2"}[list(others)[-1]]
    line = rf"^8 of 16 files are no images by their ending \({told}\), more than max_rejected={allowed or 0.001} allows; convert"
    with pytest.raises(UserError, match=line):
        run(*words, *([f"max_rejected={allowed}"] if allowed else []))
    assert not (tmp_path / "x").exists()
    run(*words, "max_rejected=0.5")  # as the line says


def test_names_of_one_class_in_two_unicode_forms(tree, tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "über") for form in ("NFC", "NFD"))
    tree({composed: 2, "uz": 2}, tmp_path / "t" / "train")
    tree(
        {decomposed: 2, "uz": 2}, tmp_path / "t" / "val"
    )  # whose bytes come before those of uz, and the others' behind
    run("source=folder", f"dir={tmp_path}/t", f"out={tmp_path}/x")
    assert files.read_classes((tmp_path / "x" / "classes.txt").read_text()) == ["uz", composed]
    assert all(split["classes"] == {"uz": 2, composed: 2} for split in manifest.read(tmp_path / "x")["splits"].values())
    tree({decomposed: 1}, tmp_path / "t" / "train" / "..", width=32)
    (tmp_path / "t" / decomposed).rename(tmp_path / "t" / "train" / decomposed)
    with pytest.raises(UserError, match="train: two folders are called 'über', in different Unicode forms"):
        run("source=folder", f"dir={tmp_path}/t", f"out={tmp_path}/y")


def test_classes_that_differ_by_case_or_have_the_same_folders_are_told(tree, tmp_path, capsys):
    root = tree({"a": 2, "A": 2, "b": 2})
    for name in "aAb":
        (root / name / "day").mkdir()
        (root / name / "000.jpg").rename(root / name / "day" / "000.jpg")
    run("source=folder", f"dir={root}", f"out={tmp_path}/x")
    lines = capsys.readouterr().out.splitlines()
    assert "classes that differ by upper and lower case only: 'A', 'a'" in lines
    assert any(line.startswith(f"every class in {root} has the folders 'day', which count as parts") for line in lines)
