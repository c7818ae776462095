"""Names that survive a text file, and files that are whole or not there."""

import pytest

from resnet import UserError, files
from resnet.data import manifest

NAMES = [
    "cat",
    "two words",
    "ünï",
    "日本",
    "new\nline",
    "tab\t",
    "\r",
    "back\\slash",
    "\\u000a",
    "\\",
    "\\\\n",
    "nul\x01",
    "\x85",
    "\u2028",
    "\udcff no utf-8",
    "'\"",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_line_of_utf8_and_comes_back(name):
    line = files.escape(name)
    assert line.splitlines() in ([line], [])
    assert "\t" not in line
    line.encode("utf-8")
    assert files.unescape(line) == name


def test_plain_names_stay_as_they_are():
    for name in ("cat", "two words", "ünï", "日本", "n01440764", "it's", "a=b, c"):
        assert files.escape(name) == name


def test_classes_come_back_in_their_order(tmp_path):
    files.write_classes(tmp_path, NAMES)
    text = (tmp_path / "classes.txt").read_text("utf-8")
    assert files.read_classes(text) == NAMES
    assert text.count("\n") == len(NAMES)


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(TypeError), files.atomic_write(path) as file:
        file.writelines([b"half", None])
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with files.atomic_write(path) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_manifest_comes_back_and_only_of_our_schema(tmp_path):
    assert manifest.read(tmp_path) is None
    assert manifest.read(tmp_path / "no" / "such") is None
    empty = {"images": 0, "bytes": 0, "classes": {"cat": 0}, "shards": []}
    content = {"options": {}, "classes": 1, "splits": {"train": empty, "val": empty}}
    manifest.write(tmp_path, content)
    assert manifest.read(tmp_path) == {"schema": 1, **content}
    (tmp_path / "manifest.json").write_text('{"schema": 2}')
    with pytest.raises(UserError, match="not a manifest of schema 1"):
        manifest.read(tmp_path)
