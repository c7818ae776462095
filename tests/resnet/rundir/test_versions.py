"""Runs of earlier releases, kept in tests/fixtures/runs/<release>, and runs of a release to come.

0.1.0 is of TensorFlow 2.15.1, 0.1.0-tf2.20.0 of 2.20.0; tests on either read both. fixtures/exports has their SavedModels.
"""

import contextlib
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import tensorflow as tf
import yaml

from resnet import UserError, __version__, evaluate, rundir
from resnet.config import fingerprint
from resnet.report import __main__ as report
from resnet.rundir import folder, result
from resnet.training import checkpoint
from resnet.training.loop import train
from resnet.training.trained import read as read_weights

RUNS = Path(__file__).parents[2] / "fixtures" / "runs"
EXPORTS = RUNS.with_name("exports")
RELEASES = sorted(folder.name for folder in RUNS.iterdir())
# SHA-256 of names and tensors in order, and logits; computed with both TensorFlows, which agreed.
WEIGHTS = {
    "0.1.0": "0643fe8600fe5688d9aec834e5fbcb48ca3567b27ab20e670008f605fd3111b2",
    "0.1.0-tf2.20.0": "d2d5837ea95cb373b6049a7200523cf6ba8dccb0423813e6994335e661573887",
}
LOGITS = [-0.527428, 0.668298, -0.40177, 0.147296, 0.273615, -0.288037, -0.143766]


@pytest.fixture(params=[name for name in RELEASES if "-" not in name])
def old(request, tmp_path):
    """A copy of the folder that this release left: 16 of 32 steps."""
    return Path(shutil.copytree(RUNS / request.param, tmp_path / request.param))


def commit_of(out):
    return json.loads((checkpoint.list_checkpoints(out)[-1].path / "commit.json").read_text())


def release_of(old):
    return old.name.partition("-")[0]


def test_a_folder_says_what_wrote_it(old):
    assert (old / "config.yaml").read_text().startswith(f"# resnet {release_of(old)}, schema 1\n")
    assert result.read(old)["resnet"] == commit_of(old)["resnet"] == release_of(old)


def test_its_result_still_counts_as_the_result_of_that_run(old):
    assert fingerprint.fingerprint(rundir.load(old)) == result.read(old)["fingerprint"]


@pytest.mark.parametrize("place", [RUNS / "{}", EXPORTS / "{}"], ids=["run", "export"])
@pytest.mark.parametrize("release", RELEASES)
def test_its_weights_are_read_to_the_bit(release, place):
    tensors = read_weights(str(place).format(release))
    content = b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))
    assert hashlib.sha256(content).hexdigest() == WEIGHTS[release]


@pytest.mark.parametrize("release", RELEASES)
def test_its_export_serves(release):
    served = tf.saved_model.load(str(EXPORTS / release)).signatures["serving_default"]
    pixels = tf.reshape(tf.range(16 * 16 * 3) % 251, [1, 16, 16, 3])
    logits = served(images=tf.cast(pixels, tf.float32))["logits"].numpy()[0]
    assert logits == pytest.approx(LOGITS, rel=1e-3)


@pytest.mark.parametrize("old", RELEASES, indirect=True)
def test_its_weights_are_evaluated_as_they_were(old, tmp_path):
    found = evaluate.evaluate(str(old), [], tmp_path / "evaluation")
    kept = result.read(old)
    assert (found["top1"], found["top5"]) == (kept["eval/top1"], kept["eval/top5"])
    assert found["loss"] == pytest.approx(kept["eval/loss"], rel=1e-3)


@pytest.mark.parametrize("old", RELEASES, indirect=True)
def test_it_goes_on_where_it_stopped(old, capsys):
    run = rundir.load(old)
    rundir.check_folder(run, old)
    run.steps, run.out = 20, str(old)
    made = train(run, old)
    assert made["steps"] == 20 and made["best/top1"] >= result.read(RUNS / old.name)["best/top1"]
    assert "resuming at step 16," in capsys.readouterr().out
    assert made["final/minutes"] > result.read(RUNS / old.name)["final/minutes"]
    assert commit_of(old)["resnet"] == made["resnet"] == __version__
    assert (old / "config.yaml").read_text().startswith(f"# resnet {__version__}, schema {folder.SCHEMA}\n")


def test_it_is_in_the_report(old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        report.write([str(old)])
    text = said.getvalue() + "".join(path.read_text() for path in tmp_path.glob("report/*.csv"))
    assert old.name in text and "tiny" in text


# ------------------------------------------------------------------------------------------------------- releases to come
def test_a_knob_that_came_later_has_its_default_and_makes_no_other_run(old):
    """The folder of a release that knew none of these."""
    path = old / "config.yaml"
    run, mark = rundir.load(old), fingerprint.fingerprint(rundir.load(old))
    saved = yaml.safe_load(path.read_text())
    for knob in ("on_nan", "ema", "finetune", "lr_find", "mixup", "steps_per_loop"):
        del saved[knob]
    del saved["optim"]["nesterov"], saved["cluster"]["threads"], saved["dtype"]["jit"]
    path.write_text(yaml.safe_dump(saved))
    assert rundir.load(old) == run and fingerprint.fingerprint(rundir.load(old)) == mark
    rundir.check_folder(run, old)


def test_a_folder_without_a_stamp_is_read(old):
    path = old / "config.yaml"
    path.write_text(path.read_text().partition("\n")[2])
    assert rundir.load(old).model.name == "tiny"


def test_a_newer_config_is_refused_with_the_version_that_wrote_it(old):
    path = old / "config.yaml"
    path.write_text(re.sub("^#.*", "# resnet 9.1, schema 7", path.read_text()))
    with pytest.raises(UserError) as caught:
        rundir.load(old)
    assert str(caught.value).startswith(f"{path}: written by resnet 9.1 (schema 7), and this is resnet {__version__} ")


@pytest.mark.parametrize("schema", [7, "x", None])
def test_a_newer_checkpoint_is_refused_and_not_taken_for_a_damaged_one(old, schema):
    path = checkpoint.list_checkpoints(old)[-1].path / "commit.json"
    path.write_text(checkpoint.commit_text({**commit_of(old), "schema": schema, "resnet": "9.1"}))
    for read in (lambda: train(rundir.load(old), old), lambda: read_weights(str(old))):
        with pytest.raises(UserError, match=rf"{re.escape(str(path))}: written by resnet 9.1 \(schema {schema}\)"):
            read()
    assert path.exists()
