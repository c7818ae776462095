"""`source=folder`: anybody's classes, with whatever names, split as given or by a draw; then `data=folder` trains on them."""

import os
import shutil

import pytest

from resnet import UserError, files, rundir
from resnet.config import compose
from resnet.data import indexes, manifest, shards, source
from resnet.data.formats import tfexample
from resnet.prepare import __main__ as prepare
from resnet.prepare import folders
from resnet.prepare.archive import Entry

ODD = [
    "a b",
    "ümlaut",
    "quote'\"",
    "new\nline",
    "tab\t",
    "back\\slash",
    "comma,equals=",
    "$HOME",
    "日本",
    "line\u2028sep",
]


def run(*words):
    """The command, in this process; raises what it tells the user."""
    prepare.do(prepare.parse([*words, "processes=1"]))


def records(out):
    """(training, validation) records."""
    found = []
    for split in (0, 1):
        index = indexes.index(shards.listing(str(out), shards.LAYOUTS[0][split]))
        found.append([tfexample.decode(shards.read(index, number)) for number in range(len(index))])
    return found


def named(found):
    """(class, file) of records."""
    return sorted((record["image/class/synset"].decode(), record["image/filename"].decode()) for record in found)


# ------------------------------------------------------------------------------------------------------------------- classes
def test_classes_are_folders_in_the_order_of_their_names_and_any_ending_will_do(tree, tmp_path, photo, encoded):
    root = tree({"dog": 4, "Cat": 4, "ant": 4})
    for ending, form in {"JPG": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "jpeg": "PNG"}.items():
        (root / "ant" / f"x.{ending}").write_bytes(encoded(photo(1), form))
    run("source=folder", f"dir={root}", f"out={tmp_path}/x")
    train, val = records(tmp_path / "x")
    assert files.read_classes((tmp_path / "x" / "classes.txt").read_text()) == ["Cat", "ant", "dog"]
    wanted = sorted((path.parent.name, path.name) for path in root.rglob("*.*"))
    assert named(train + val) == wanted
    for record in train + val:
        name = record["image/class/synset"].decode()
        assert record["image/class/label"] == ["Cat", "ant", "dog"].index(name) + 1
        assert record["image/class/text"].decode() == name
    assert manifest.read(tmp_path / "x")["kinds"] == {"BMP": 1, "JPEG": 13, "PNG": 2, "WEBP": 1}


def test_any_name_of_a_class_is_safe(tree, tmp_path):
    root = tree(dict.fromkeys(ODD, 2))
    (root / "comma,equals=").rename(root / os.fsdecode(b"no utf-8 \xff"))
    run("source=folder", f"dir={root}", f"out={tmp_path}/x")
    lines = (tmp_path / "x" / "classes.txt").read_text("utf-8").split("\n")
    assert len(lines) == len(ODD) + 1
    assert lines[-1] == ""
    names = files.read_classes((tmp_path / "x" / "classes.txt").read_text("utf-8"))
    assert sorted(names) == sorted(path.name for path in root.iterdir())
    train, val = records(tmp_path / "x")
    for record in train + val:
        assert names[record["image/class/label"] - 1].encode("utf-8", "surrogateescape") == record["image/class/synset"]
    assert compose.one_group("data", "data=folder", dir=str(tmp_path / "x")).classes == len(ODD)
    run_check = prepare.parse([f"check={tmp_path / 'x'}", "deep=true", "processes=1"])
    prepare.do(run_check)


def test_folders_within_a_class_belong_to_it(tree, tmp_path):
    root = tree({"cat": 2, "dog": 2})
    shutil.copytree(root / "cat", root / "cat" / "young" / "very")
    run("source=folder", f"dir={root}", f"out={tmp_path}/x")
    train, val = records(tmp_path / "x")
    assert [name for name, _ in named(train + val)].count("cat") == 4


# -------------------------------------------------------------------------------------------------------------------- splits
@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Train", "valid"), ("TRAIN", "Validation")])
def test_train_and_val_folders_are_the_split(tree, tmp_path, train, val):
    tree({"cat": 5, "dog": 3}, tmp_path / "t" / train)
    tree({"cat": 2, "dog": 1}, tmp_path / "t" / val)
    tree({"whatever": 1}, tmp_path / "t" / "test")
    run("source=folder", f"dir={tmp_path / 't'}", f"out={tmp_path}/x")
    assert [len(found) for found in records(tmp_path / "x")] == [8, 3]


def test_the_two_trees_may_lie_anywhere(tree, tmp_path):
    train, val = tree({"cat": 5, "dog": 3}, tmp_path / "a"), tree({"cat": 2, "dog": 1}, tmp_path / "b")
    run("source=folder", f"train={train}", f"val={val}", f"out={tmp_path}/x")
    assert [len(found) for found in records(tmp_path / "x")] == [8, 3]


def test_a_class_may_be_called_train(tree, tmp_path):
    root = tree({"train": 4, "bus": 4})
    run("source=folder", f"dir={root}", f"out={tmp_path}/x")
    assert files.read_classes((tmp_path / "x" / "classes.txt").read_text()) == ["bus", "train"]


@pytest.mark.parametrize(("share", "wanted"), [(None, [1, 1, 1, 4]), ("0.5", [1, 2, 5, 20]), ("0.99", [1, 2, 9, 39])])
def test_a_share_of_every_class_is_held_out_and_something_of_each_is_in_both(tree, tmp_path, share, wanted):
    root = tree({"d2": 2, "d3": 3, "e10": 10, "f40": 40}, width=24, height=16)
    words = [] if share is None else [f"val_fraction={share}"]
    run("source=folder", f"dir={root}", f"out={tmp_path}/x", *words)
    made = manifest.read(tmp_path / "x")["splits"]
    assert list(made["val"]["classes"].values()) == wanted
    assert [made["train"]["classes"][name] + made["val"]["classes"][name] for name in made["val"]["classes"]] == [
        2,
        3,
        10,
        40,
    ]
    train, val = records(tmp_path / "x")
    assert not set(named(train)) & set(named(val))


def test_a_single_image_of_a_class_trains(tree, tmp_path, capsys):
    run("source=folder", f"dir={tree({'many': 5, 'one': 1})}", f"out={tmp_path}/x")
    assert manifest.read(tmp_path / "x")["splits"]["train"]["classes"] == {"many": 4, "one": 1}
    assert "one image only, so none for validation: 'one'" in capsys.readouterr().out


def test_single_images_everywhere_leave_nothing_to_validate_with(tree, tmp_path):
    with pytest.raises(UserError, match="one image in each class, so none is left for validation"):
        run("source=folder", f"dir={tree({'a': 1, 'b': 1})}", f"out={tmp_path}/x")


def test_the_draw_depends_on_the_seed_and_hardly_on_the_other_images():
    entries = [Entry(f"cat/{number}.jpg", "", 0, 0) for number in range(200)]
    first, again, other = (folders.draw(entries, 0.2, seed) for seed in (1, 1, 2))
    assert first == again
    assert len(first) == len(other) == 40
    assert 2 <= len(first & other) <= 20  # 8 by chance
    more = folders.draw([*entries, *(Entry(f"cat/new{number}.jpg", "", 0, 0) for number in range(50))], 0.2, 1)
    assert len(first & more) >= 30


# ----------------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: shutil.rmtree(root), "dir=.*/tree: no such file or folder"),
        (lambda root: [shutil.rmtree(path) for path in root.iterdir()], "no folders of classes"),
        (lambda root: shutil.rmtree(root / "cat"), r"one class only \('dog'\)"),
        (lambda root: (root / "empty").mkdir(), "no image in 'empty'"),
        (lambda root: ((root / "texts").mkdir(), (root / "texts" / "a.txt").write_text("")), "no image in 'texts'"),
        (
            lambda root: ((root / "bad").mkdir(), (root / "bad" / "a.jpg").symlink_to("/etc/passwd")),
            r"no image in 'bad' \('a.jpg' was refused: a link that leads out of the tree \(links=follow reads it\)\)",
        ),
        (
            lambda root: (root / "more").symlink_to(root / "cat"),
            "/more: a link to a folder; links=follow reads it, or put",
        ),
        (
            lambda root: (
                [shutil.move(path, root) or shutil.rmtree(path.parent) for path in [*root.glob("*/000.jpg")][:1]]
                and [shutil.rmtree(path) for path in root.iterdir() if path.is_dir()]
            ),
            "1 images but no folders of classes",
        ),
        (
            lambda root: [
                shutil.move(root, root.parent / "t"),
                root.mkdir(),
                shutil.move(root.parent / "t", root / "train"),
            ],
            "tree/train: no validation images beside it",
        ),
        (
            lambda root: [
                shutil.move(root, root.parent / "t"),
                root.mkdir(),
                shutil.move(root.parent / "t", root / "val"),
            ],
            "tree/val: no training images beside it",
        ),
    ],
)
def test_a_tree_that_will_not_do_is_told_and_nothing_is_left_behind(tree, tmp_path, change, said):
    root = tree({"cat": 3, "dog": 3})
    change(root)
    with pytest.raises(UserError, match=said):
        run("source=folder", f"dir={root}", f"out={tmp_path / 'x'}")
    assert not (tmp_path / "x").exists()


def test_training_and_validation_must_know_the_same_classes(tree, tmp_path):
    tree({"cat": 2, "dog": 2, "emu": 1}, tmp_path / "t" / "train")
    tree({"cat": 2, "dog": 2}, tmp_path / "t" / "val")
    with pytest.raises(UserError, match="1 class in training but not in validation: 'emu'"):
        run("source=folder", f"dir={tmp_path / 't'}", f"out={tmp_path}/x")
    tree({"emu": 1, "fox": 1, "gnu": 1}, tmp_path / "u")
    for name in ("emu", "fox", "gnu"):
        shutil.move(tmp_path / "u" / name, tmp_path / "t" / "val")
    with pytest.raises(UserError, match="2 classes in validation but not in training: 'fox', 'gnu'"):
        run("source=folder", f"dir={tmp_path / 't'}", f"out={tmp_path}/x")


def test_two_ways_to_split_at_once_are_one_too_many(tree, tmp_path):
    tree({"cat": 2, "dog": 2}, tmp_path / "t" / "train")
    tree({"cat": 2, "dog": 2}, tmp_path / "t" / "val")
    with pytest.raises(UserError, match=r"val_fraction=0\.2: there are validation images already"):
        run("source=folder", f"dir={tmp_path / 't'}", f"out={tmp_path}/x", "val_fraction=0.2")
    tree({"cat": 2, "dog": 2}, tmp_path / "t" / "valid")
    with pytest.raises(UserError, match="which of val, valid is meant"):
        run("source=folder", f"dir={tmp_path / 't'}", f"out={tmp_path}/x")


def test_the_folder_to_make_must_lie_outside_of_what_is_read(tree):
    root = tree({"cat": 2, "dog": 2})
    before = sorted(root.rglob("*"))
    for out in (root / "x", root / "cat" / "x"):
        with pytest.raises(UserError, match=f"out={out}: lies inside of {root}"):
            run("source=folder", f"dir={root}", f"out={out}")
    assert sorted(root.rglob("*")) == before


def test_images_of_no_class_and_links_out_of_the_tree_are_refused_and_the_rest_goes_on(tree, tmp_path):
    root = tree({"cat": 3, "dog": 3})
    shutil.copy(root / "cat" / "000.jpg", root / "stray.jpg")
    (root / "dog" / "secret.jpg").symlink_to("/etc/passwd")
    (root / "dog" / "inside.jpg").symlink_to(root / "cat" / "000.jpg")
    run("source=folder", f"dir={root}", f"out={tmp_path}/x", "max_rejected=0.3")
    assert (tmp_path / "x" / "rejected.tsv").read_text().splitlines() == [
        "stray.jpg\tlies in no class's folder",
        "dog/secret.jpg\ta link that leads out of the tree (links=follow reads it)",
    ]
    assert sum(map(len, records(tmp_path / "x"))) == 7


def test_a_name_in_rejected_tsv_stays_on_its_line(tree, tmp_path):
    root = tree({"cat": 3, "dog": 3})
    (root / "dog" / "new\nline\t.jpg").write_text("no image")
    run("source=folder", f"dir={root}", f"out={tmp_path}/x", "max_rejected=0.3")
    (line,) = (tmp_path / "x" / "rejected.tsv").read_text().splitlines()
    name, reason = line.split("\t")
    assert files.unescape(name) == "dog/new\nline\t.jpg"
    assert reason == "not a JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or HEIC image"


# ------------------------------------------------------------------------------------------------------------------ training
def test_data_folder_has_the_right_number_of_classes_by_itself(tree, tmp_path, run_of):
    run("source=folder", f"dir={tree({'a': 3, 'b': 3, 'c': 3})}", f"out={tmp_path / 'x'}")
    made = run_of("data=folder", "data.dir=x")  # from the working folder on
    assert (made.data.classes, made.data.dir, made.data.name) == (3, str(tmp_path / "x"), "folder")
    assert (made.data.image_size, made.data.eval_resize) == (224, 256)
    opened = source.open_source(made.data)
    assert (opened.train_images, opened.eval_images) == (6, 3)
    rundir.save(made, tmp_path / "run")
    shutil.rmtree(tmp_path / "x")
    assert rundir.load(tmp_path / "run").data.classes == 3  # what was counted is kept


def test_data_folder_without_shards_names_the_folder_and_the_command(tmp_path, run_of):
    with pytest.raises(UserError) as caught:
        run_of("data=folder", "data.dir=no such")
    assert str(caught.value).startswith(f"data.dir={tmp_path}/no such: no classes.txt here")
    assert f"python -m resnet.prepare source=folder dir=IMAGES 'out={tmp_path}/no such'" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^data.dir: must be given"):
        run_of("data=folder")
    assert run_of("data=folder", "data.dir=no such", "data.classes=7").data.classes == 7
