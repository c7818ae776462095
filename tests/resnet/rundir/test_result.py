"""<out>/result.json."""

import json

import pytest

from resnet.rundir import result


def test_a_result_is_read_as_it_was_written(tmp_path):
    content = {"steps": 10, "eval/top1": 0.1 + 0.2, "final/images_per_s": None, "status": "finished"}
    path = result.write(tmp_path, content)
    assert path == tmp_path / "result.json"
    assert result.read(tmp_path) == content == json.loads(path.read_text())
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]  # nothing is left of writing it


def test_a_folder_without_a_whole_result_has_none(tmp_path):
    assert result.read(tmp_path) is None
    assert result.read(tmp_path / "nowhere") is None
    (tmp_path / "result.json").write_text('{"status": "fin')
    assert result.read(tmp_path) is None


def test_a_write_that_fails_leaves_the_result_before_it(tmp_path):
    result.write(tmp_path, {"steps": 1})
    with pytest.raises(TypeError):
        result.write(tmp_path, {"steps": object()})
    assert result.read(tmp_path) == {"steps": 1}
