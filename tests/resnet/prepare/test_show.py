"""The contact sheet: the images that training and evaluation see, under the right names, the same for a seed."""

import shutil

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from resnet import UserError
from resnet.data import digits
from resnet.prepare import __main__ as prepare
from resnet.prepare import show

COLOURS = {"blue": (40, 60, 200), "green": (40, 170, 60), "red": (200, 40, 40)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, encoded):
    """Shards of three classes that are one colour each."""
    folder = tmp_path_factory.mktemp("plain")
    for name, colour in COLOURS.items():
        (folder / "tree" / name).mkdir(parents=True)
        for image in range(12):
            (folder / "tree" / name / f"{image}.jpg").write_bytes(encoded(Image.new("RGB", (90, 70), colour)))
    prepare.do(prepare.parse(["source=folder", f"dir={folder / 'tree'}", f"out={folder / 'x'}", "processes=1"]))
    return folder / "x"


def shown(*words):
    prepare.do(prepare.parse(words))


@pytest.fixture
def texts(monkeypatch):
    """((left, top), text) of all that is written on sheets."""
    texts, write = [], Axes.text

    def watched(axes, left, top, text, **options):
        texts.append(((left, top), text))
        return write(axes, left, top, text, **options)

    monkeypatch.setattr(Axes, "text", watched)
    return texts


def test_the_sheet_shows_what_the_network_sees_under_the_right_names(plain, tmp_path, texts):
    shown(f"show={plain}", f"out={tmp_path / 's.png'}", "images=20")
    with Image.open(tmp_path / "s.png") as image:
        page = np.asarray(image.convert("RGB")).astype(int)
    assert texts[0][1] == "x: 3 classes"
    names = [(at, text) for at, text in texts if text in COLOURS]
    assert len(names) == 20 + 3  # three are held out
    for (left, top), name in names:
        above = page[top - 4 - show.CELL + 5 : top - 9, left + 5 : left + show.CELL - 5]
        assert np.abs(above - COLOURS[name]).max() < 12, name
    assert {name for _, name in names} == set(COLOURS)


def test_a_seed_is_a_sheet(plain, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        shown(f"show={plain}", f"out={tmp_path / name}.png", f"seed={seed}", "images=4")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_digits_are_shown_as_they_are_trained_on(tmp_path, capsys):
    digits.write(str(tmp_path / "d"))
    shown(f"show={tmp_path / 'd'}", f"out={tmp_path / 'deep' / 's.png'}", "images=9")
    assert "9 training and 9 evaluation images" in capsys.readouterr().out
    assert Image.open(tmp_path / "deep" / "s.png").size[0] == 1420


def test_shards_of_others_are_shown_with_their_labels(plain, tmp_path, texts):
    shutil.copytree(plain, tmp_path / "x")
    (tmp_path / "x" / "classes.txt").unlink()
    (tmp_path / "x" / "manifest.json").unlink()
    assert prepare.classes_and_kind(str(tmp_path / "x")) == ([], "imagenet")
    shown(f"show={tmp_path / 'x'}", f"out={tmp_path / 's.png'}", "images=3")
    assert {text for _, text in texts if text.startswith("label ")} <= {"label 1", "label 2", "label 3"}


@pytest.mark.parametrize("name", ["W" * 60, "日本" * 20, "short", "", "new\nline", "$x^2$"], ids=repr)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_long_names_are_cut_to_the_width_of_an_image(name):
    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    figure = show.sheet("", [("", pixels, [0, 1])], [name, ""])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = np.asarray(canvas.buffer_rgba())[..., :3]
    below = page[show.MARGIN + 2 * show.HEADING + show.CELL + 2 :]
    right = show.MARGIN + show.CELL
    assert (below[:, right + 1 :] == 255).all()
    assert (below[:, :right] < 255).any() == bool(name)
    assert (below[show.CAPTION :] == 255).all()


def test_a_place_that_cannot_be_written_is_told(plain, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"^out={tmp_path}/file/s.png: cannot be written"):
        shown(f"show={plain}", f"out={tmp_path}/file/s.png", "images=2")
