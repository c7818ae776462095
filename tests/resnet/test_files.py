"""Where the folders of YAML files are."""

import shutil

from resnet import files


def test_parts_are_found_inside_an_installed_package_and_beside_it_in_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "resnet"
    shutil.copytree(files.tree("conf"), package / "conf")
    monkeypatch.setattr(files, "HERE", package)
    assert files.tree("conf") == package / "conf"
    monkeypatch.setattr(files, "HERE", tmp_path / "checkout" / "resnet")
    assert files.tree("conf") == tmp_path / "checkout" / "conf"
