"""Which label is the first class's, over every pair of ranges; it is never guessed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from resnet import UserError, files
from resnet.config import resolvers
from resnet.config.data import Folder, Records
from resnet.data import source
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


# ----------------------------------------------------------------------------------------------------------------- names
def test_the_names_of_tensorflow_datasets_are_of_labels_from_0(tmp_path):
    (tmp_path / "x-train.tfrecord-00000-of-00001").touch()
    (tmp_path / "label.labels.txt").write_bytes("cat\r\nsea\\u000acow \n\nÜ\n".encode())
    assert source.class_names(Records(classes=3, dir=str(tmp_path))) == ["cat", "sea\\u000acow", "Ü"]
    assert resolvers.counted_classes(_parent_=OmegaConf.structured(Folder(dir=str(tmp_path), classes=3))) == 3
    assert first(1, 2, 3, tmp_path) == 0  # without names, a question
    for low, high in ((0, 3), (-1, 2)):
        line = (
            rf"label\.labels\.txt: names labels 0 to 2, and the labels in the shards are {low} to {high}; copy it again"
        )
        with pytest.raises(UserError, match=line):
            first(low, high, 4, tmp_path)
    with pytest.raises(
        UserError, match=r"^data\.label_offset=1: \S+label\.labels\.txt names the labels from 0 on; set "
    ):
        first(1, 2, 3, tmp_path, 1)
    files.write_classes(tmp_path, ["x", "y", "z"])
    assert source.class_names(Records(classes=3, dir=str(tmp_path))) == ["x", "y", "z"]
    assert first(1, 3, 3, tmp_path) == 1
