"""Two real ranks, started once for all cases: the policies of on_nan, and the range test."""

import csv
from pathlib import Path

import fake_step
import numpy as np
import pytest
from rank_runs import run_program
from run_files import assert_same, logged, progress, steps, tensors

from resnet import rundir
from resnet.model import resnet
from resnet.training import checkpoint
from resnet.training.loop import train

pytestmark = pytest.mark.timeout(900)  # two ranks wait for each other, on a machine that may be busy

COMMON = ("model=tiny", "data=digits", "batch=32", "track=off", "mixup=0.2")
NAN = ("eval=false", "log_every_steps=1", "optim.lr=0.01", "schedule=constant", "steps=12", "save_every_steps=1")
STOP = ("eval=false", "steps=12", "save_every_steps=6", "keep_checkpoints=20", "ema.decay=0.5")
RANGE = ("data.flip=false", "lr_find=true", "lr_find_end=0.1", "lr_find_steps=20")

# The NaN is in the images of rank 1 alone, and the signal reaches rank 0 alone.
PROGRAM = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(fake_step.__file__).parent)!r})
import small_network
from fake_step import nan_draws
from resnet import UserError, cli, rundir
from resnet.config import topology
from resnet.data.augment import draws
from resnet.model import resnet
from resnet.training.loop import train
resnet.build = small_network.build
plain, rank = draws.of_steps, topology.process_rank()

def signalled(run, steps, *more):
    if 3 in steps and rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return plain(run, steps, *more)

for out in map(Path, sys.argv[1:]):
    if out.name in ("whole", "resumed"):
        draws.of_steps = signalled if out.name == "resumed" else plain
        try:
            train(rundir.load(out), out)
        except cli.Stopped as stopped:
            (out / f"stopped-{{rank}}").write_text(str(stopped))
            draws.of_steps = plain
            train(rundir.load(out), out)
        continue
    draws.of_steps = nan_draws([6], 1) if rank == 1 and out.name != "range" else plain
    try:
        train(rundir.load(out), out)
    except UserError as error:
        (out / f"error-{{rank}}").write_text(str(error))
    draws.of_steps = plain
"""


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory, run_at):
    """The folder of a run on two ranks by its policy, and that of a range test."""
    top, outs = tmp_path_factory.mktemp("ranks"), {}
    more = {
        "stop": NAN,
        "skip": (*NAN, "on_nan.policy=skip", "keep_checkpoints=20"),
        "rollback": (*NAN, "on_nan.policy=rollback"),
        **dict.fromkeys(("whole", "resumed"), STOP),
        "range": (*RANGE, "cluster.sync_batch_norm=true"),
    }
    for name, words in more.items():
        out = outs[name] = top / name
        rundir.save(run_at(top, *COMMON, *words, "cluster.ranks=2", f"out={out}"), out)
    run_program(2, PROGRAM, *outs.values())
    return outs


def test_two_ranks_stop_alike(on_two_ranks):
    errors = {(on_two_ranks["stop"] / f"error-{rank}").read_text() for rank in (0, 1)}
    assert len(errors) == 1
    assert errors.pop().startswith("step 7: the loss is nan at lr 0.01; the last good checkpoint is ")
    assert steps(on_two_ranks["stop"])[-1] == 6


def test_two_ranks_skip_alike_though_only_one_has_the_nan(on_two_ranks):
    out = on_two_ranks["skip"]
    assert not list(out.glob("error-*")) and progress(out).skipped == 1
    assert_same(tensors(out, 6), tensors(out, 7))
    assert all(np.isfinite(value).all() for value in tensors(out, 12).values() if value.dtype.kind == "f")


def test_two_ranks_go_back_together(on_two_ranks):
    out = on_two_ranks["rollback"]
    assert not list(out.glob("error-*"))
    assert logged(out, "train/rollbacks") == [(6, 1)] and progress(out).lr_scale == 0.5
    assert steps(out)[-1] == 12


def test_two_ranks_that_are_stopped_end_with_the_weights_of_undisturbed_ones(on_two_ranks):
    """Batch norm's statistics too: no average is due at the step of the stop, whose checkpoint has each rank's own."""
    out = on_two_ranks["resumed"]
    step = int((out / "stopped-0").read_text().partition("step-")[2][:8])
    assert step % 6 and (out / "stopped-1").exists()
    own = np.load(checkpoint.path_of(out, step) / checkpoint.STATISTICS)
    assert len(own) == 2 and not np.array_equal(*own)
    assert_same(tensors(out, 12), tensors(on_two_ranks["whole"], 12))


def test_two_ranks_see_the_curve_of_one(on_two_ranks, run_of, monkeypatch, small_build):
    monkeypatch.setattr(resnet, "build", small_build)
    one = run_of(*COMMON, *RANGE)
    train(one, Path(one.out))

    def losses(out):
        with (Path(out) / "lr_find.csv").open() as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]

    assert len(losses(one.out)) == 20
    np.testing.assert_allclose(losses(on_two_ranks["range"]), losses(one.out), rtol=0.02)
