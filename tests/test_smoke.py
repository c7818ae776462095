"""The commands of the quickstart, in short, with the Python and TensorFlow of this environment: CI runs them with several."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICK = "recipe=quickstart eval_steps=1 log_every_steps=1 save_every_steps=2"
# Logged with TensorFlow 2.15.1 on Python 3.11 and with 2.20.0 on 3.13, to the same bit.
LOSSES = [2.310847, 2.405574, 2.373810, 2.290497]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("smoke")


def command(folder, line):
    """Output of `python -m resnet.<line>`, run in `folder`."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", *f"resnet.{line}".split()]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def losses(out):
    points = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [point["train/loss"] for point in points if "train/loss" in point]


@pytest.fixture(scope="module")
def trained(folder):
    """A run that was saved after two steps and resumed for two more."""
    command(folder, f"train {QUICK} steps=2 track=off out=run")
    assert "resuming at step 2," in command(folder, f"train {QUICK} steps=4 track=off out=run")
    return folder / "run"


@pytest.mark.smoke
def test_it_trains_saves_and_resumes_with_the_losses_of_every_other_pair(trained):
    assert losses(trained) == pytest.approx(LOSSES, rel=2e-3)
    assert json.loads((trained / "result.json").read_text())["status"] == "finished"


@pytest.mark.smoke
def test_it_evaluates_and_exports_what_it_trained(folder, trained):
    import tensorflow as tf

    command(folder, f"evaluate {trained.name} out=scores")
    command(folder, f"export {trained.name} out=exported")
    served = tf.saved_model.load(str(folder / "exported" / "saved_model")).signatures["serving_default"]
    assert served(images=tf.zeros([2, 32, 32, 3]))["probabilities"].numpy().sum() == pytest.approx(2.0)


@pytest.mark.smoke
def test_mlflow_gets_metrics_and_model(folder):
    import mlflow

    command(folder, f"train {QUICK} steps=2 out=tracked")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED"
    logged = [point.value for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert logged == losses(folder / "tracked") == pytest.approx(LOSSES[:2], rel=2e-3)


@pytest.mark.smoke
@pytest.mark.skipif(not importlib.util.find_spec("horovod"), reason="Horovod is not built here")
def test_two_ranks_train(folder):
    command(folder, f"train {QUICK} steps=2 track=off cluster=cpu2 out=ranks")
    assert losses(folder / "ranks") == pytest.approx(LOSSES[:2], rel=0.1)  # each rank normalizes its half of the batch


@pytest.mark.slow
@pytest.mark.timeout(3600)  # with the environment, 2 GB on disk, and a Horovod to compile
@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_the_other_supported_pairs_do(python):
    """CI runs 3.11 and 3.13."""
    words = ["bash", ROOT / "launch" / "test.sh", f"python={python}", "-n0", "-m", "smoke", "tests/test_smoke.py"]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
