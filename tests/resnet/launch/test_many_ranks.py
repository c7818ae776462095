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
from resnet.distributed import ranks
from resnet.training import checkpoint
from resnet.training.loop import train

pytestmark = pytest.mark.timeout(900)  # processes that wait for each other, on a machine that may be busy

# Rank processes train one run after the other: starting them costs more than training.
PROGRAM = """
import sys
from pathlib import Path
from resnet import run_folder, train
for out in map(Path, sys.argv[1:]):
    train.train(run_folder.load(out), out)
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
    "sgd": ("optim=sgd", "optim.lr=0.01", "schedule.warmup_epochs=0.02", "steps=5"),
    "lars": (
        "optim=lars",
        "optim.lr=2",
        "schedule.warmup_epochs=0.02",
        "steps=5",
        "ema.decay=0.5",
        "ema.every_steps=2",
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
    """`trained(number of ranks, name)`: the folder of that run; `resumed` has its first five steps on one rank."""
    folders = {}

    @functools.cache
    def train_on(number):
        for name, words in RUNS.items():
            folder = tmp_path_factory.mktemp(f"{name}-{number}")
            run = run_at(folder, *COMMON, *words, f"cluster.ranks={number}")
            out = folders[number, name] = Path(run.out)
            if name == "resumed" and number > 1:
                shutil.copytree(of(1, "sgd"), out, ignore=shutil.ignore_patterns("result.json"))
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
@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_weights_after_five_steps_are_those_of_one_rank_at_the_same_global_batch(trained, name, number):
    one, many = trained(1, name), trained(number, name)
    assert_close(weights(one), weights(many))
    start = np.concatenate([w.ravel() for n, w in weights(one).items() if "velocity" in n])
    assert np.abs(start).max() > 1e-3  # something was learnt


@NUMBERS
@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_an_evaluation_has_the_same_counts(trained, name, number):
    (one,), (many,) = evaluation(trained(1, name)), evaluation(trained(number, name))
    assert one.keys() == many.keys() and ("ema/top1" in one) == (name == "lars")
    for key, value in one.items():
        assert many[key] == (pytest.approx(value, rel=1e-4) if key.endswith("loss") else value), key


@NUMBERS
def test_going_on_with_other_ranks_goes_on_with_the_same_images_and_batch(trained, number):
    one, many = trained(1, "resumed"), trained(number, "resumed")
    assert json.loads((many / "result.json").read_text())["steps"] == 10
    assert_close(weights(one), weights(many))


@NUMBERS
def test_rank_0_alone_writes(trained, number):
    out = trained(number, "sgd")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5]
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-00000005"]


@NUMBERS
def test_the_loss_that_is_logged_is_of_all_ranks_images(trained, number):
    def losses(out):
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [line["train/loss"] for line in lines if "train/loss" in line]

    np.testing.assert_allclose(losses(trained(number, "sgd")), losses(trained(1, "sgd")), rtol=1e-4)


def test_accumulated_steps_are_one_step_of_the_whole_batch(run_at, tmp_path):
    """On a network without batch norm, whose statistics are of the small batches."""
    import tensorflow as tf

    from resnet.data import pipeline as reading
    from resnet.data import source
    from resnet.optim import optimizers, schedule
    from resnet.training.step import compiled

    moved = []
    for parts in (1, 4):
        run = run_at(
            tmp_path, "model=tiny", "data=digits", "batch=24", "track=off", f"cluster.gradient_accumulation={parts}"
        )
        tf.keras.utils.set_random_seed(3)
        network = tf.keras.Sequential(
            [
                tf.keras.layers.Conv2D(4, 3, input_shape=(32, 32, 3)),
                tf.keras.layers.ReLU(),
                tf.keras.layers.Flatten(),
                tf.keras.layers.Dense(10, name="fc"),
            ]
        )
        images = source.open_source(run.data)
        batches = iter(reading.train(images, run.batch, run.seed, 0, parts=parts))
        optimizer = optimizers.build(run.optim, network.trainable_variables)
        step = compiled(network, optimizer, run, ranks.Ranks(), batches.element_spec)
        losses = [float(step(batches, tf.constant([0.1]), tf.ones([1]), tf.constant(0.0))[0]) for _ in range(3)]
        moved.append((losses, [w.numpy() for w in network.trainable_variables]))
        assert schedule.plan(run, images.train_images).steps_per_epoch == 1437 // 24
    np.testing.assert_allclose(moved[0][0], moved[1][0], rtol=1e-5)
    for whole, parts in zip(moved[0][1], moved[1][1], strict=True):
        np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-6)
