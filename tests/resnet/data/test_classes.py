"""Classes compared by name, and the names in a run's folder."""

import dataclasses
import unicodedata

import numpy as np
import pytest

from resnet import UserError, files
from resnet.config.data import Folder
from resnet.data import classes, shards
from resnet.data.source import Source

DECOMPOSED = unicodedata.normalize("NFD", "über")


@pytest.mark.parametrize(
    ("own", "other", "wanted"),
    [
        (["a", "b", "c"], ["a", "b", "c"], [0, 1, 2]),
        (["a", "b", "c"], ["c", "a", "b"], [2, 0, 1]),
        (["a", "über"], [DECOMPOSED, "a"], [1, 0]),
        (["a", "b"], ["a", "B"], None),
        (["a", "b"], ["a", "b", "c"], None),
        (["a", "a"], ["a", "a"], [0, 1]),
        (["a", "a", "b"], ["b", "a", "a"], None),  # which a is which?
        (["über", DECOMPOSED], [DECOMPOSED, "über"], [0, 1]),
    ],
)
def test_each_class_of_the_data_has_its_place_among_the_networks(own, other, wanted):
    assert classes.order(own, other) == wanted


def test_the_first_difference_is_named():
    assert classes.difference(["a", "über"], ["a", DECOMPOSED + "x"]).startswith("class 2 of the network is 'über'")
    assert classes.difference(["a", "b"], ["a"]) == "the network has 2 classes, the data 1"


@pytest.fixture
def settings(tmp_path):
    """Data of two classes, cat and dog."""
    files.write_classes(tmp_path, ["cat", "dog"])
    return Folder(dir=str(tmp_path), classes=2)


@pytest.mark.parametrize("names", [["cat", "emu"], ["dog", "cat"], ["cat"]])
def test_a_run_keeps_its_names_and_refuses_data_of_other_classes(settings, tmp_path, names):
    out = tmp_path / "run"
    out.mkdir()
    classes.write(out, settings)
    before = (out / files.CLASSES).read_bytes()
    assert before == b"cat\ndog\n"
    files.write_classes(tmp_path, names)
    settings = dataclasses.replace(settings, classes=max(2, len(names)))
    if len(names) == 2:
        with pytest.raises(
            UserError, match=f"^data.dir={tmp_path}: not the classes of the run in {out} .class"
        ) as error:
            classes.write(out, settings)
        assert "\n" not in str(error.value)
    else:
        classes.write(out, settings)  # names of another number are not those of the outputs
    assert (out / files.CLASSES).read_bytes() == before


def test_empty_shards_and_names_that_are_not_those_of_the_outputs_are_told(settings, tmp_path):
    half = shards.Index(("a", "b", "c"), np.array([0, 0]), np.array([12, 40]), np.array([1, 1]))
    (line,) = classes.notes(Source(settings, 2, 2, half))
    assert line == "2 of 3 shards have no record, first b"
    thousand = Source(dataclasses.replace(settings, classes=1000), 2, 2)
    (line,) = classes.notes(thousand)
    assert "has 2 classes, and the network 1,000 outputs: data.classes=2" in line
    (tmp_path / files.CLASSES).unlink()
    (line,) = classes.notes(thousand)
    assert line.startswith(f"no {tmp_path}/classes.txt: 1,000 outputs without names, as data.classes says")
