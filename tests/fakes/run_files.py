"""What a run leaves in its folder, as tests compare it."""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from resnet.training import checkpoint
from resnet.training.state import Progress


def lines(out):
    """metrics.jsonl, a dictionary a line."""
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def logged(out, name):
    """(step, value) of every line that has this metric."""
    return [(line["step"], line[name]) for line in lines(out) if name in line]


def steps(out):
    """The steps of the checkpoints."""
    return [saved.step for saved in checkpoint.list_checkpoints(Path(out))]


def progress(out):
    """The progress in the newest checkpoint."""
    return Progress(**checkpoint.list_checkpoints(Path(out))[-1].state)


def tensors(out, step=None, part=""):
    """Every number of a checkpoint by its name: variables, velocities, moving statistics. The newest unless `step` is given.

    With `part`, one of network, average and optimizer: of it alone.
    """
    path = checkpoint.list_checkpoints(Path(out))[-1].path if step is None else checkpoint.path_of(Path(out), step)
    with checkpoint.glob_safe(path) as folder:
        reader = tf.train.load_checkpoint(str(folder / "weights"))
        names = [name for name in reader.get_variable_to_shape_map() if name.startswith(part)]
        return {name.removeprefix(part): reader.get_tensor(name) for name in names if "OBJECT_GRAPH" not in name}


def assert_same(left, right):
    """Bit for bit."""
    assert left.keys() == right.keys() and len(left) > 3
    for name, value in left.items():
        assert np.array_equal(value, right[name], equal_nan=True), name
