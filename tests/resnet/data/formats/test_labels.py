"""Which label is the first class's, over every pair of ranges; it is never guessed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from resnet import UserError
from resnet.config.data import Records
from resnet.data.formats import labels


def first(low, high, classes, folder="x", offset=None):
    settings = Records(classes=classes, dir=str(folder), label_offset=offset)
    middle = np.array([labels.UNREADABLE, (low + high) // 2])
    return labels.first(settings, [SimpleNamespace(label=part) for part in (np.array([low, high]), middle, None)])


@pytest.mark.parametrize(
    ("low", "high", "classes", "wanted"),
    [(0, 999, 1000, 0), (1, 1000, 1000, 1), (0, 500, 1000, 0), (0, 0, 2, 0), (500, 1000, 1000, 1), (0, 1000, 1001, 0)],
)
def test_labels_that_allow_one_beginning_decide(low, high, classes, wanted):
    assert first(low, high, classes) == wanted


@pytest.mark.parametrize("span", [(1, 998, 1000), (1, 999, 1000), (1, 1000, 1001), (5, 5, 1000)])
def test_labels_that_allow_two_are_asked_for(span, tmp_path):
    with pytest.raises(
        UserError, match=r"^data\.label_offset=null: the labels in x are .*; give data\.label_offset=0 "
    ):
        first(*span)
    assert [first(*span, offset=offset) for offset in (0, 1)] == [0, 1]
    description = {"featuresDict": {"features": {"label": {"classLabel": {"numClasses": "1000"}}, "image": {}}}}
    (tmp_path / "features.json").write_text(json.dumps(description))  # as TensorFlow Datasets writes it
    assert first(*span, folder=tmp_path) == 0


@pytest.mark.parametrize("content", ["{", "[]", '{"featuresDict": {"features": {"label": {"tensor": {}}}}}'])
def test_another_description_decides_nothing(content, tmp_path):
    (tmp_path / "features.json").write_text(content)
    with pytest.raises(UserError, match=r"^data\.label_offset=null: "):
        first(1, 998, 1000, tmp_path)


@pytest.mark.parametrize("span", [(0, 1000, 1000), (1, 1001, 1000), (-1, 500, 1000), (0, 21_840, 1000)])
def test_labels_that_allow_none_are_refused(span):
    with pytest.raises(
        UserError, match=r"^data\.classes=1000: the labels in x are .*, where 0 to 999 or 1 to 1000 must"
    ):
        first(*span)


def test_any_offset_that_fits_may_be_chosen():
    assert first(100, 199, 100, offset=100) == 100
    with pytest.raises(
        UserError, match=r"^data\.label_offset=2: .* 1 to 10, and 2 to 11 are those of data\.classes=10;"
    ):
        first(1, 10, 10, offset=2)
