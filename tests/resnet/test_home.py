"""Where caches go for users without a home, or with one that cannot be written to; what `~` then is."""

import os
import pwd
import tempfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from resnet import UserError, files, home
from resnet.config import compose


@pytest.fixture
def number(tmp_path, monkeypatch):
    """A user who is a number: no passwd entry, no HOME; the working folder and the temporary one are empty."""

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary" / f"resnet-{os.getuid()}"


@pytest.mark.parametrize("variable", [None, ""])
def test_without_a_home_caches_go_to_the_temporary_folder_and_a_line_says_so(number, monkeypatch, capsys, variable):
    if variable is not None:
        monkeypatch.setenv("HOME", variable)
    assert home.cache() == number / "resnet"
    assert capsys.readouterr().err == f"this user has no home folder (HOME is not set): caches are in {number}\n"
    assert home.cache() == number / "resnet" and capsys.readouterr().err == ""  # once
    assert number.stat().st_mode & 0o777 == 0o700
    assert Path.home() == number and os.environ["MPLCONFIGDIR"] == f"{number}/matplotlib"  # MLflow's and Matplotlib's
    compose.register()
    assert OmegaConf.create({"dir": "${cache:digits}"}).dir == f"{number}/resnet/digits"
    assert list(Path().iterdir()) == []  # no folder ~


def test_of_a_user_without_a_home_no_path_begins_with_it(number):
    for _ in range(2):  # before and after one stands in
        for path in ("~", "~/runs"):
            with pytest.raises(
                UserError, match=f"^{path}: this user has no home folder; set HOME, or give the whole path$"
            ):
                files.absolute(path, Path())
        assert home.expand("~nobody-here/x") == Path("~nobody-here/x") and home.expand("a~/x") == Path("a~/x")
        home.provide()
    assert str(number) == os.environ["HOME"]


def test_a_home_that_cannot_be_written_to_stays_the_home(number, tmp_path, monkeypatch, capsys):
    place = tmp_path / "file" / "home"  # below a file: root may write to any folder
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(place))
    assert home.cache() == number / "resnet"
    assert capsys.readouterr().err == f"{place} cannot be written to: caches are in {number}\n"
    assert os.environ["HOME"] == str(place) and home.expand("~/x") == place / "x"


@pytest.mark.usefixtures("number")
def test_the_usual_places_are_used_without_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "not yet"))
    assert home.cache() == tmp_path / "not yet" / ".cache" / "resnet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert home.cache() == tmp_path / "xdg" / "resnet"
    assert capsys.readouterr().err == "" and "MPLCONFIGDIR" not in os.environ


@pytest.mark.parametrize(
    "make", [lambda place: place.symlink_to(Path.cwd()), lambda place: (place.mkdir(), place.chmod(0o777))]
)
def test_a_folder_that_others_can_write_to_holds_no_cache(number, make):
    make(number)
    place = home.cache().parent
    assert place != number and place.name.startswith(f"{number.name}-") and place.stat().st_mode & 0o777 == 0o700
    assert list(Path().iterdir()) == []


def test_without_any_temporary_folder_a_line_names_the_variable(monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(
        UserError, match=r"^TMPDIR: no folder for temporary files, nor the working folder, can be written"
    ):
        home.provide()
