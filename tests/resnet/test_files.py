"""Where the folders of YAML files are, and files and folders that are there whole or not at all."""

import shutil

import pytest

from resnet import files


def test_parts_are_found_inside_an_installed_package_and_beside_it_in_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "resnet"
    shutil.copytree(files.tree("conf"), package / "conf")
    monkeypatch.setattr(files, "HERE", package)
    assert files.tree("conf") == package / "conf"
    monkeypatch.setattr(files, "HERE", tmp_path / "checkout" / "resnet")
    assert files.tree("conf") == tmp_path / "checkout" / "conf"


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path):
    place = tmp_path / "deep" / "folder"
    with files.atomic_dir(place) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "file").write_text("whole")
        assert not place.exists()
    assert (place / "sub" / "file").read_text() == "whole"
    assert [path.name for path in place.parent.iterdir()] == ["folder"]


def test_a_folder_that_fails_leaves_nothing_and_takes_no_other_s_place(tmp_path):
    def interrupted():
        with files.atomic_dir(tmp_path / "folder") as aside:
            (aside / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "theirs").touch()
    with pytest.raises(OSError, match="not empty"), files.atomic_dir(tmp_path / "folder"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "theirs"]


def test_what_a_killed_process_was_writing_is_written_anew(tmp_path):
    aside = files.part_of(tmp_path / "folder")
    aside.mkdir()
    (aside / "half").touch()
    with files.atomic_dir(tmp_path / "folder") as fresh:
        (fresh / "whole").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["whole"]


def test_a_folder_is_replaced_as_a_whole_or_stays(tmp_path, monkeypatch):
    place = tmp_path / "page"
    for name in ("first", "second"):
        with files.atomic_dir(place, replace=True) as aside:
            (aside / name).touch()
    assert [path.name for path in place.iterdir()] == ["second"]
    rename = files.Path.rename

    def failing(path, target):
        if target == place and path.name.startswith(".page.") and ".old." not in path.name:
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(files.Path, "rename", failing)
    with pytest.raises(OSError, match="No space"), files.atomic_dir(place, replace=True) as aside:
        (aside / "third").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["page", "second"]
