"""The loop: what it learns, where it stops, and how it goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from resnet import UserError
from resnet.data import augment, pipeline, source
from resnet.model import resnet
from resnet.rundir import result
from resnet.train import STOPPED
from resnet.training import checkpoint, state, step
from resnet.training.loop import train

TINY = ("model=tiny", "batch=32", "track=off", "log_every_steps=5")
SAVING = (*TINY, "eval=false", "save_every_steps=2")


def started(run):
    """Train `run` as `python -m resnet.train` would."""
    return train(run, Path(run.out))


def weights(out):
    """Every number of a folder's newest checkpoint: variables, velocities and moving statistics, by name."""
    import tensorflow as tf

    newest = checkpoint.list_checkpoints(Path(out))[-1]
    with checkpoint.glob_safe(newest.path) as path:
        reader = tf.train.load_checkpoint(str(path / "weights"))
        return {
            name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name
        }


def assert_same(left, right):
    """Bit for bit."""
    assert left.keys() == right.keys()
    assert len(left) > 5
    for name, value in left.items():
        assert np.array_equal(value, right[name], equal_nan=True), name


def lines(out):
    """metrics.jsonl."""
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(run_at, tmp_path_factory):
    """An unbroken run of six steps, saved at every other: its folder; only read or copy it."""
    run = run_at(tmp_path_factory.mktemp("whole"), *SAVING, "steps=6")
    started(run)
    return Path(run.out)


def test_a_run_learns_and_leaves_its_result_log_and_checkpoints(run_of):
    run = run_of(*TINY, "epochs=4", "optim.lr=0.1", "schedule=cosine", "schedule.warmup_epochs=1", "label_smoothing=0")
    made = started(run)
    logged = lines(run.out)
    losses = [line["train/loss"] for line in logged if "train/loss" in line]
    assert abs(losses[0] - np.log(10)) < 0.5  # an untrained network of ten classes knows nothing
    assert losses[-1] < 0.75 * losses[0]
    evaluations = [line for line in logged if "eval/top1" in line]
    assert [line["step"] for line in evaluations] == [44 * epoch for epoch in range(1, 5)]
    assert made["eval/top1"] == evaluations[-1]["eval/top1"] > 0.25  # chance is 0.1
    assert made["best/top1"] == max(line["eval/top1"] for line in evaluations)
    assert made["steps"] == 4 * (1437 // 32)
    assert made["status"] == "finished"
    assert json.loads((Path(run.out) / "result.json").read_text()) == made
    saved = checkpoint.list_checkpoints(Path(run.out))
    best = checkpoint.best(saved)
    assert {c.step for c in saved} == {88, 132, 176, best.step}
    assert best.top1 == made["best/top1"]


def test_images_per_second_are_of_all_iterations_but_the_first(whole):
    made = result.read(whole)
    standing = state.Progress(**checkpoint.list_checkpoints(whole)[-1].state)
    assert standing.images == 5 * 32
    assert made["final/images_per_s"] == pytest.approx(standing.images / standing.seconds)
    assert min(standing.speeds) <= made["final/images_per_s_median"] <= max(standing.speeds)


@pytest.mark.parametrize(
    ("optim", "mixup", "network"),
    [("sgd", 0.2, "small"), ("lars", 0.0, "small"), pytest.param("sgd", 0.2, "tiny", marks=pytest.mark.slow)],
)
def test_a_run_stopped_at_any_step_goes_on_to_the_very_weights_of_one_never_stopped(
    run_of, tmp_path, request, optim, mixup, network
):
    if network == "small":
        request.getfixturevalue("small_network")
    common = (
        *TINY,
        "batch=96",
        f"optim={optim}",
        f"mixup={mixup}",
        "optim.lr=0.1",
        "schedule.warmup_epochs=0.2",
        "eval_steps=2",
        "epochs=2",
    )
    whole = run_of(*common, f"out={tmp_path / 'whole'}", "steps=18")
    started(whole)
    for steps in (5, 14, 18):  # within an epoch, at its end, in the next
        parts = run_of(*common, f"out={tmp_path / 'parts'}", f"steps={steps}")
        made = started(parts)
    assert made["steps"] == 18
    assert_same(weights(whole.out), weights(parts.out))
    assert result.read(Path(whole.out))["eval/top1"] == made["eval/top1"]


@pytest.mark.usefixtures("small_network")
def test_the_seed_decides_the_weights(run_of, tmp_path):
    common = (*TINY, "steps=3", "eval=false")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        started(run_of(*common, f"out={tmp_path / name}", f"seed={seed}"))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert_same(a, b)
    assert any(not np.array_equal(a[name], c[name]) for name in a)


@pytest.mark.usefixtures("small_network")
def test_several_steps_in_one_graph_call_are_the_same_steps(run_of, tmp_path):
    common = (*TINY, "steps=10", "eval=false", "save_every_steps=7")  # calls of 3, 3, 1, 3
    for loop in (1, 3):
        started(run_of(*common, f"out={tmp_path / str(loop)}", f"steps_per_loop={loop}"))
    one, three = (weights(tmp_path / name) for name in ("1", "3"))
    for name, value in one.items():
        np.testing.assert_allclose(value, three[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert [c.step for c in checkpoint.list_checkpoints(tmp_path / "3")] == [7, 10]


@pytest.mark.usefixtures("small_network")
def test_it_stops_at_the_first_evaluation_that_reaches_the_top1_asked_for(run_of):
    made = started(run_of(*TINY, "epochs=3", "stop_at_top1=0.01", "eval_steps=3"))
    assert made["steps"] == 44
    assert made["status"] == "stopped at top-1"
    again = train(run_of(*TINY, "epochs=3", "stop_at_top1=0.01", "eval_steps=3"), Path(made["out"]))
    assert again["steps"] == 44  # starting again doesn't train past it


@pytest.mark.usefixtures("small_network")
def test_an_infinite_loss_ends_the_run_and_names_step_rate_and_last_good_checkpoint(run_of):
    run = run_of(*TINY, "schedule=constant", "optim.lr=1e30", "save_every_steps=1", "log_every_steps=1")
    with pytest.raises(UserError) as error:
        started(run)
    told = str(error.value)
    bad = int(told.split(":")[0].removeprefix("step "))
    good = checkpoint.list_checkpoints(Path(run.out))
    assert [c.step for c in good] == list(range(max(1, bad - 3), bad))
    assert "lr 1e+30" in told
    assert str(good[-1].path) in told
    assert not (Path(run.out) / "result.json").exists()
    assert all(np.isfinite(line["train/loss"]) for line in lines(run.out) if "train/loss" in line)


@pytest.mark.usefixtures("small_network")
def test_the_exact_step_of_a_nan_is_named_though_losses_are_read_rarely(run_of, tmp_path):
    told = []
    for every in (1, 50):
        run = run_of(
            *TINY,
            "schedule=constant",
            "optim.lr=1e30",
            "eval=false",
            f"log_every_steps={every}",
            f"out={tmp_path / str(every)}",
        )
        with pytest.raises(UserError) as error:
            started(run)
        told.append(str(error.value).split(":")[0])
    assert told[0] == told[1]


def test_bfloat16_trains_with_float32_variables(run_of):
    made = started(run_of(*TINY, "dtype=bf16", "steps=4", "model.groups=2", "eval_steps=1"))
    assert {value.dtype for name, value in weights(made["out"]).items() if "network" in name} <= {np.dtype("float32")}


@pytest.mark.usefixtures("small_network")
def test_synthetic_data_trains_and_evaluates_the_images_it_says(run_of):
    made = started(
        run_of(
            "model=tiny",
            "data=synthetic",
            "data.image_size=32",
            "data.classes=7",
            "data.eval_images=50",
            "batch=16",
            "steps=2",
            "track=off",
        )
    )
    evaluation = json.loads((Path(made["out"]) / "checkpoints/step-00000002/commit.json").read_text())["state"][
        "scores"
    ]
    assert evaluation["seen"] == 50


def test_a_batch_larger_than_the_data_set_is_refused(run_of):
    with pytest.raises(UserError, match=r"batch=2048: more than the 1437 training images"):
        started(run_of("model=tiny", "batch=2048", "track=off"))


def test_another_run_in_the_same_folder_is_refused_with_the_difference(run_of, whole):
    with pytest.raises(UserError, match=r"optim.lr was 0.016 and is 0.5"):
        started(run_of(*SAVING, "steps=7", "optim.lr=0.5", f"out={whole}"))


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(run_of, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "hurt", ignore=shutil.ignore_patterns("step-00000006", "result.json"))
    data = tmp_path / "hurt/checkpoints/step-00000004/weights.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    started(run_of(*SAVING, f"out={tmp_path / 'hurt'}", "steps=6"))
    assert_same(weights(whole), weights(tmp_path / "hurt"))
    assert (tmp_path / "hurt/checkpoints/bad-step-00000004").is_dir()


def command(*words):
    """`python -m resnet.train` in this environment."""
    return [sys.executable, "-m", "resnet.train", *words]


def test_sigterm_saves_and_resume_goes_on_to_the_same_weights(tmp_path, run_of):
    common = [*TINY, "eval=false", "epochs=1000", "schedule=constant", "optim.lr=0.01"]
    first = subprocess.Popen(command(*common, "out='a [b] c'"), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    out = tmp_path / "a [b] c"
    while not (out / "metrics.jsonl").exists() or len(lines(out)) < 3:  # past the first steps
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, told = first.communicate(timeout=60)
    assert first.returncode == STOPPED
    step = checkpoint.list_checkpoints(out)[-1].step
    assert f"step-{step:08d}" in told
    done = subprocess.run(
        command(f"resume='{out}'", f"steps={step + 5}"), cwd=tmp_path.parent, capture_output=True, text=True, check=True
    )
    assert f"going on from step {step}" in done.stdout.replace(",", "")
    again = subprocess.run(
        command(f"resume='{out}'", f"steps={step + 5}"), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "has finished already" in again.stdout
    started(run_of(*common, f"out={tmp_path / 'whole'}", f"steps={step + 5}"))
    assert_same(weights(tmp_path / "whole"), weights(out))


def test_no_shards_in_the_folder_is_told_in_one_line_at_once(tmp_path):
    done = subprocess.run(
        command("data=imagenet", f"data.dir={tmp_path}"), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    for part in (
        str(tmp_path),
        "img_train/img_train-*-of-*",
        "validation/validation-*-of-*",
        "python -m resnet.prepare",
    ):
        assert part in done.stderr
    assert os.listdir(tmp_path) == []  # noqa: PTH208


# --------------------------------------------------------------------------------------------------- the loss, in NumPy
def restated(run, kernel, steps):
    """The loss of each step of a network that is one matrix [pixels, classes], with mixed images and mixed, smooth targets."""
    batches = iter(pipeline.train(source.open_source(run.data), run.batch, run.seed, 0))
    losses, ratios = [], augment.mix_ratios(run.mixup, run.seed, range(steps))
    for ratio in ratios.astype(np.float64):
        pixels, labels, flips = (part.numpy() for part in next(batches))
        pixels = np.where(flips[:, None, None, None], pixels[:, :, ::-1], pixels)
        inputs = ((pixels - np.array(run.data.mean)) / run.data.std).reshape(run.batch, -1)
        smooth, classes = run.label_smoothing, run.data.classes
        targets = np.full([run.batch, classes], smooth / classes)
        targets[np.arange(run.batch), labels] += 1 - smooth
        mixed, soft = (ratio * part + (1 - ratio) * part[::-1] for part in (inputs, targets))
        logits = mixed @ kernel
        logged = logits - logits.max(1, keepdims=True)
        logged -= np.log(np.exp(logged).sum(1, keepdims=True))
        losses.append(-(soft * logged).sum(1).mean())
    return losses, ratios


@pytest.mark.parametrize(
    ("mixup", "smooth", "loop"),
    [
        (0.2, 0.1, 1),
        (0.0, 0.0, 1),
        (1.0, 0.2, 4),
        pytest.param(1.0, 0.0, 1, marks=pytest.mark.slow),
        pytest.param(0.0, 0.3, 1, marks=pytest.mark.slow),
    ],
)
def test_the_loss_is_of_mixed_images_and_targets_that_are_smooth_and_mixed_alike(
    run_of, monkeypatch, mixup, smooth, loop
):
    import tensorflow as tf

    kernel = np.random.default_rng(1).normal(0, 0.05, (32 * 32 * 3, 10)).astype(np.float32)

    def matrix(*_settings, **_more):
        head = tf.keras.layers.Dense(10, use_bias=False, kernel_initializer=tf.constant_initializer(kernel), name="fc")
        return tf.keras.Sequential([tf.keras.layers.Input([32, 32, 3]), tf.keras.layers.Flatten(), head])

    monkeypatch.setattr(resnet, "build", matrix)
    words = (
        "model=tiny",
        "batch=48",
        "track=off",
        "eval=false",
        "log_every_steps=1",
        "optim.lr=0",
        "steps=4",
        "data.flip=true",
    )
    run = run_of(*words, f"mixup={mixup}", f"label_smoothing={smooth}", f"steps_per_loop={loop}")
    started(run)
    wanted, ratios = restated(run, kernel.astype(np.float64), 4)
    assert (np.ptp(ratios) > 0.1 and (ratios < 1).all()) if mixup else (ratios == 1).all()
    logged = [line["train/loss"] for line in lines(run.out) if "train/loss" in line]
    np.testing.assert_allclose(logged, wanted if loop == 1 else [np.mean(wanted)], rtol=1e-5)
    assert np.ptp(wanted) > 1e-3


@pytest.mark.usefixtures("small_network")
def test_calls_of_several_lengths_have_one_graph(run_of, monkeypatch):
    made, prepare_images = [], step.prepare_images
    monkeypatch.setattr(step, "prepare_images", lambda *words: made.append(words[0].shape) or prepare_images(*words))
    started(run_of(*TINY, "steps=5", "eval=false", "steps_per_loop=3"))  # calls of 3 and 2
    assert len(made) == 1
