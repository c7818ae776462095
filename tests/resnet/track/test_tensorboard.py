"""TensorBoard's files, read with TensorFlow's own reader."""

import math

import tensorflow as tf

from resnet.track import tensorboard


def read(folder):
    """(step, name, value) of everything in the files of a folder."""
    found = []
    for path in sorted(folder.glob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            found += [(event.step, value.tag, float(tf.make_ndarray(value.tensor))) for value in event.summary.value]
    return found


def test_every_finite_number_is_there_with_its_step_and_nothing_else(tmp_path):
    out = tmp_path / "a folder; of a run"
    log = tensorboard.Events(out)
    log.log(1, {"train/loss": 2.5, "train/images_per_s": None, "eval/loss": math.nan})
    log.log(2**33, {"train/loss": 0.1 + 0.2, "eval/top1": 1})
    log.close()
    found = read(out / tensorboard.FOLDER)
    assert [entry[:2] for entry in found] == [(1, "train/loss"), (2**33, "train/loss"), (2**33, "eval/top1")]
    assert [entry[2] for entry in found] == [2.5, float(tf.constant(0.1 + 0.2)), 1.0]


def test_a_run_that_goes_on_adds_to_its_folder(tmp_path):
    for step in (1, 2):
        log = tensorboard.Events(tmp_path)
        log.log(step, {"train/loss": float(step)})
        log.close()
    assert read(tmp_path / tensorboard.FOLDER) == [(1, "train/loss", 1.0), (2, "train/loss", 2.0)]
