"""`python -m resnet.prepare` as a user types it: what it prints, its exit status, and that TensorFlow stays away."""

import json
import os
import subprocess
import sys

import pytest

from resnet import UserError
from resnet.prepare import __main__ as prepare


def command(*words, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "resnet.prepare", *words], cwd=cwd, capture_output=True, text=True, timeout=60
    )


def test_a_tree_of_three_classes_from_another_folder(tree, tmp_path):
    tree({"red apple": 20, "grün": 20, "sky 'blue'": 20})
    done = command("source=folder", "dir=tree", "out=x", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    *_, summary, following = done.stdout.splitlines()
    assert summary.startswith(f"{tmp_path}/x: 54 training and 6 validation images of 3 classes in 2 shards, ")
    assert following == f"next: python -m resnet.train data=folder data.dir={tmp_path}/x batch=16"
    assert command("source=folder", "dir=tree", "out=x", cwd=tmp_path).stdout.startswith(
        f"{tmp_path}/x: prepared already"
    )
    checked = command("check=x", "deep=true", cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    shard = tmp_path / "x" / "img_val" / "img_val-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:-1])
    checked = command("check=x", cwd=tmp_path)
    assert checked.returncode == 1
    assert checked.stdout.startswith(f"{shard}: byte ")
    assert checked.stderr == f"error: {tmp_path}/x: 1 fault in 2 shards; copy or prepare them again\n"


@pytest.mark.parametrize(
    "words", [["source=folder", "dir=nope", "out=x"], ["sorce=folder"], [], ["check=nope"], ["show=nope"]]
)
def test_what_the_user_can_mend_is_one_line_and_status_1(tmp_path, words):
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_is_quick(tmp_path):
    before = os.times()
    done = command("--help", cwd=tmp_path)
    after = os.times()
    assert done.returncode == 0
    assert done.stdout.startswith("Convert images to TFRecord shards")
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 2  # of a core: TensorFlow alone takes three, and this a fifth of one


def test_what_is_unexpected_is_a_traceback(tmp_path):
    code = "from resnet.prepare import __main__ as prepare; prepare.parse = lambda _: 1 / 0; prepare.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_neither_this_process_nor_its_workers_import_tensorflow(tree, tmp_path):
    """A module of that name that ends whoever imports it."""
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    code = "import sys; sys.path.insert(0, 'trap'); from resnet import prepare; sys.exit(prepare.main())"
    root = tree({"cat": 5, "dog": 5})
    words = ["source=folder", f"dir={root}", "out=x", "train_shards=4", "processes=2"]
    environment = {"PYTHONPATH": str(tmp_path / "trap"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for args in (words, ["check=x", "deep=true", "processes=2"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *args],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), args


def test_digits_have_a_manifest_too(tmp_path, capsys):
    prepare.do(prepare.parse(["source=digits", f"out={tmp_path / 'd'}"]))
    assert capsys.readouterr().out.startswith(
        f"{tmp_path}/d: 1,437 training and 360 validation images of 10 classes in 10 shards"
    )
    made = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert made["options"] == {"source": "digits"}
    assert (tmp_path / "d" / "classes.txt").read_text().split() == list("0123456789")
    prepare.do(prepare.parse([f"check={tmp_path / 'd'}", "deep=true", "processes=1"]))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine").write_text("")
    with pytest.raises(UserError, match=f"^out={tmp_path}/notes: the digits cannot be written there"):
        prepare.do(prepare.parse(["source=digits", f"out={tmp_path / 'notes'}"]))
