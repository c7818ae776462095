"""The same answer whatever the number of ranks: real processes, started by horovodrun, against one rank."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resnet import rundir
from resnet.training import checkpoint
from resnet.training.loop import train

pytestmark = pytest.mark.timeout(900)  # processes that wait for each other, on a machine that may be busy

# Rank processes train one run after the other: starting them costs more than training.
PROGRAM = """
import sys
from pathlib import Path
from resnet import rundir
from resnet.training import loop
for out in map(Path, sys.argv[1:]):
    loop.train(rundir.load(out), out)
"""
COMMON = (
    "model=tiny",
    "data=digits",
    "batch=24",
    "track=off",
    "log_every_steps=1",
    "cluster.sync_batch_norm=true",
    "save_every_steps=5",
    "model.zero_init_residual=false",
    "model.batch_norm_epsilon=0.1",
    "eval_every_epochs=10",
)
RUNS = {
    "lars": (
        *("optim=lars", "optim.lr=2", "schedule.warmup_epochs=0.02", "steps=5"),
        *("ema.decay=0.5", "ema.every_steps=2"),
    ),
    "resumed": ("optim=sgd", "optim.lr=0.01", "schedule.warmup_epochs=0.02", "steps=10"),
}
# A float32 sum taken in another order differs by about 1e-7 of its terms, and Horovod takes the variance as E[x^2] - E[x]^2,
# which cancels where a channel hardly varies: batch norm would divide by what is left, hence the large epsilon. Five steps feed
# the difference back. Seen: 8e-6 of a variable's largest value.
TOLERANCE = 5e-5


NUMBERS = pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.slow)])


def run_ranks(number, folder, *outs):
    """Run PROGRAM in so many processes."""
    (folder / "program.py").write_text(PROGRAM)
    horovodrun = Path(sys.executable).parent / "horovodrun"
    environment = {**os.environ, "PATH": f"{horovodrun.parent}:{os.environ['PATH']}"}
    command = [sys.executable, horovodrun, "-np", str(number), "--gloo", sys.executable, folder / "program.py", *outs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def weights(out, step=None):
    """Every number of a checkpoint, the newest unless `step` is named."""
    import tensorflow as tf

    path = checkpoint.path_of(out, step) if step else checkpoint.list_checkpoints(out)[-1].path
    reader = tf.train.load_checkpoint(str(path / "weights"))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in n}


def assert_close(left, right):
    assert left.keys() == right.keys() and len(left) > 40
    for name, value in left.items():
        assert np.abs(value - right[name]).max() <= TOLERANCE * max(np.abs(value).max(), 1e-3), name


def evaluation(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: line[name] for name in line if name.startswith(("eval/", "ema/"))}
        for line in lines
        if "eval/top1" in line
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_at):
    """`trained(number of ranks, name)`: the folder of that run; of `resumed` several ranks train the second half."""
    folders = {}

    @functools.cache
    def train_on(number):
        for name, words in RUNS.items():
            folder = tmp_path_factory.mktemp(f"{name}-{number}")
            run = run_at(folder, *COMMON, *words, f"cluster.ranks={number}")
            out = folders[number, name] = Path(run.out)
            if name == "resumed" and number > 1:
                later = ("result.json", "metrics.jsonl", "step-00000010", "step-00000010.*")
                shutil.copytree(of(1, "resumed"), out, ignore=shutil.ignore_patterns(*later))
            rundir.save(run, out)
            if number == 1:
                train(run, out)
        if number > 1:
            run_ranks(number, tmp_path_factory.mktemp("program"), *(folders[number, name] for name in RUNS))

    def of(number, name):
        train_on(number)
        return folders[number, name]

    return of


@NUMBERS
@pytest.mark.parametrize("name", RUNS)
def test_weights_are_those_of_one_rank_at_the_same_global_batch_with_the_same_counts(trained, name, number):
    """`resumed`: with the same images too, from the middle of one rank's epoch."""
    one, many = trained(1, name), trained(number, name)
    assert_close(weights(one), weights(many))
    start = np.concatenate([w.ravel() for n, w in weights(one).items() if "velocity" in n])
    assert np.abs(start).max() > 1e-3  # something was learnt
    steps = 5 if name == "lars" else 10
    assert json.loads((many / "result.json").read_text())["steps"] == steps
    (left,), (right,) = evaluation(one), evaluation(many)
    assert left.keys() == right.keys() and ("ema/top1" in left) == (name == "lars")
    for key, value in left.items():
        assert right[key] == (pytest.approx(value, rel=1e-4) if key.endswith("loss") else value), key


@NUMBERS
def test_rank_0_alone_writes_and_the_loss_that_it_logs_is_of_all_ranks_images(trained, number):
    def losses(out):
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}

    one, many = trained(1, "lars"), trained(number, "lars")
    assert list(losses(many)) == [1, 2, 3, 4, 5]
    assert [path.name for path in sorted((many / "checkpoints").iterdir())] == ["step-00000005"]
    np.testing.assert_allclose(list(losses(many).values()), list(losses(one).values()), rtol=1e-4)
