"""Real starts with one seed: the bytes of their weights, the same in every process; also with deterministic operations."""

import os
import subprocess
import sys

import pytest

from resnet.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORDS = [
    "model=tiny",
    "data=digits",
    "batch=32",
    "steps=6",
    "eval_steps=2",
    "mixup=0.2",
    "track=off",
    "cluster.threads=1",
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """`written("name", "seed=1", TF_DETERMINISTIC_OPS="1")`: the bytes of the weights that such a start leaves."""
    folder = tmp_path_factory.mktemp("runs")

    def start(name, *words, **environment):
        out = folder / name
        command = [sys.executable, "-m", "resnet.train", *WORDS, *words, f"out={out}"]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (saved,) = checkpoint.list_checkpoints(out)
        return {path.name: path.read_bytes() for path in saved.path.glob("weights*")}

    return start


def test_one_seed_and_number_of_threads_leave_the_same_bytes_in_every_process(written):
    first = written("first", "seed=1")
    assert len(first) == 2 and written("again", "seed=1") == first
    assert written("other", "seed=2") != first


def test_nothing_here_refuses_tensorflows_deterministic_operations(written):
    """They sum in another order, so that the bytes are not those of a start without them."""
    words = ("seed=1", "ema.decay=0.9", "data.cache=decoded", "steps_per_loop=2")
    first, again = (written(name, *words, TF_DETERMINISTIC_OPS="1") for name in ("strict", "strict again"))
    assert first == again
