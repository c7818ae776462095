"""The loop: what it learns, where it stops, and how it resumes."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import small_network
from fake_step import FakeStep, with_losses
from run_files import assert_same, logged, steps, tensors

from resnet import UserError
from resnet.cli import STOPPED
from resnet.model import resnet
from resnet.rundir import result
from resnet.training import checkpoint, state
from resnet.training.loop import train

TINY = ("model=tiny", "batch=32", "track=off", "log_every_steps=5")
SAVING = (*TINY, "eval=false", "save_every_steps=2")


def started(run, make_step=None):
    """Train `run` as `python -m resnet.train` would."""
    return train(run, Path(run.out), **({"make_step": make_step} if make_step else {}))


@pytest.fixture(scope="module")
def whole(run_at, tmp_path_factory, small_build):
    """An unbroken run of six steps, saved at every other: its folder; only read or copy it."""
    run = run_at(tmp_path_factory.mktemp("whole"), *SAVING, "steps=6")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "build", small_build)
        started(run)
    return Path(run.out)


def test_a_run_learns_and_leaves_its_result_log_and_checkpoints(run_of):
    run = run_of(*TINY, "epochs=4", "optim.lr=0.1", "schedule=cosine", "schedule.warmup_epochs=1", "label_smoothing=0")
    made = started(run)
    losses = [loss for _, loss in logged(run.out, "train/loss")]
    assert abs(losses[0] - np.log(10)) < 0.5  # an untrained network of ten classes knows nothing
    assert losses[-1] < 0.75 * losses[0]
    evaluations = logged(run.out, "eval/top1")
    assert [step for step, _ in evaluations] == [44 * epoch for epoch in range(1, 5)]
    assert made["eval/top1"] == evaluations[-1][1] > 0.25  # chance is 0.1
    assert made["best/top1"] == max(top1 for _, top1 in evaluations)
    assert made["steps"] == 4 * (1437 // 32)
    assert made["status"] == "finished"
    assert json.loads((Path(run.out) / "result.json").read_text()) == made
    saved = checkpoint.list_checkpoints(Path(run.out))
    best = checkpoint.best(saved)
    assert {c.step for c in saved} == {88, 132, 176, best.step}
    assert best.top1 == made["best/top1"]


def test_images_per_second_are_of_all_iterations_but_the_first(whole):
    made = result.read(whole)
    progress = state.Progress(**checkpoint.list_checkpoints(whole)[-1].state)
    assert progress.images == 5 * 32
    assert made["final/images_per_s"] == pytest.approx(progress.images / progress.seconds)
    assert min(progress.speeds) <= made["final/images_per_s_median"] <= max(progress.speeds)


# ------------------------------------------------------------------------------------------------------------ real steps
@pytest.mark.parametrize(
    ("optim", "mixup", "network"),
    [
        ("lars", 0.2, "small"),
        pytest.param("sgd", 0.2, "small", marks=pytest.mark.slow),
        pytest.param("sgd", 0.2, "tiny", marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_at_any_step_goes_on_to_the_very_weights_of_one_never_stopped(
    run_of, tmp_path, request, optim, mixup, network
):
    if network == "small":
        request.getfixturevalue("small_network")
    words = ("batch=96", "optim.lr=0.1", "schedule.warmup_epochs=0.2", "eval_steps=2", "epochs=2")
    common = (*TINY, *words, f"optim={optim}", f"mixup={mixup}")
    whole = run_of(*common, f"out={tmp_path / 'whole'}", "steps=18")
    started(whole)
    for total in (5, 14, 18):  # within an epoch, at its end, in the next
        parts = run_of(*common, f"out={tmp_path / 'parts'}", f"steps={total}")
        made = started(parts)
    assert made["steps"] == 18
    assert_same(tensors(whole.out), tensors(parts.out))
    assert result.read(Path(whole.out))["eval/top1"] == made["eval/top1"]


@pytest.mark.usefixtures("small_network")
def test_the_seed_decides_the_weights(run_of, tmp_path):
    common = (*TINY, "steps=3", "eval=false")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        started(run_of(*common, f"out={tmp_path / name}", f"seed={seed}"))
    a, b, c = (tensors(tmp_path / name) for name in "abc")
    assert_same(a, b)
    assert any(not np.array_equal(a[name], c[name]) for name in a)


@pytest.mark.usefixtures("small_network")
def test_several_steps_in_one_graph_call_are_the_same_steps(run_of, tmp_path):
    common = (*TINY, "steps=10", "eval=false", "save_every_steps=7")  # calls of 3, 3, 1, 3
    for loop in (1, 3):
        started(run_of(*common, f"out={tmp_path / str(loop)}", f"steps_per_loop={loop}"))
    one, three = (tensors(tmp_path / name) for name in ("1", "3"))
    for name, value in one.items():
        np.testing.assert_allclose(value, three[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert steps(tmp_path / "3") == [7, 10]


def test_bfloat16_trains_with_float32_variables(run_of):
    made = started(run_of(*TINY, "dtype=bf16", "steps=2", "model.groups=2", "eval_steps=1"))
    assert {value.dtype for value in tensors(made["out"], part="network").values()} == {np.dtype("float32")}


@pytest.mark.usefixtures("small_network")
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(run_of, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "hurt", ignore=shutil.ignore_patterns("step-00000006", "result.json"))
    data = tmp_path / "hurt/checkpoints/step-00000004/weights.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    started(run_of(*SAVING, f"out={tmp_path / 'hurt'}", "steps=6"))
    assert_same(tensors(whole), tensors(tmp_path / "hurt"))
    assert (tmp_path / "hurt/checkpoints/bad-step-00000004").is_dir()


# -------------------------------------------------------------------------------------------------------- the loop alone
@pytest.mark.usefixtures("small_network")
def test_it_stops_at_the_first_evaluation_that_reaches_the_top1_asked_for(run_of):
    run = run_of(*TINY, "epochs=3", "stop_at_top1=0.01", "eval_steps=3")
    made = started(run, FakeStep)
    assert made["steps"] == 44
    assert made["status"] == "stopped at top-1"
    assert started(run, FakeStep)["steps"] == 44  # starting again doesn't train past it


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("word", ["steps_per_loop=1", "steps_per_loop=3"])
def test_an_infinite_loss_ends_the_run_and_names_step_rate_and_last_good_checkpoint(run_of, word):
    words = ("schedule=constant", "optim.lr=0.25", "save_every_steps=2", "log_every_steps=1", "eval=false")
    run = run_of(*TINY, *words, word)
    with pytest.raises(UserError, match=r"^step 9: the loss is inf at lr 0.25; ") as error:
        started(run, with_losses([1.0] * 8 + [np.inf] * 9))
    assert steps(run.out) == [4, 6, 8]
    assert str(checkpoint.path_of(Path(run.out), 8)) in str(error.value)
    assert not (Path(run.out) / "result.json").exists()
    assert [loss for _, loss in logged(run.out, "train/loss")] == [1.0] * (8 if word.endswith("1") else 4)


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("every", [1, 50])
def test_the_exact_step_of_a_nan_is_named_though_losses_are_read_rarely(run_of, every):
    run = run_of(*TINY, "eval=false", f"log_every_steps={every}", "steps_per_loop=4")
    with pytest.raises(UserError, match=r"^step 15: the loss is nan "):
        started(run, with_losses(lambda step: np.nan if step >= 14 else 1.0))


@pytest.mark.usefixtures("small_network")
def test_what_is_due_after_a_step_happens_in_order_and_once(run_of, tmp_path):
    """Calls end where something is due; a second start goes on with the next step, and asks for its images and rate."""
    words = ("model=tiny", "track=off", "epochs=2", "batch=359", "eval_steps=1", "log_every_steps=2")
    words += ("save_every_steps=3", "steps_per_loop=5", "keep_checkpoints=9")
    made_steps = []

    class Step(FakeStep):
        def __init__(self, *parts):
            super().__init__(*parts)
            made_steps.append(self)

    for total in (7, 8):
        started(run_of(*words, f"steps={total}"), Step)
    first, second = made_steps
    assert first.calls == [(0, 3), (3, 4), (4, 6), (6, 7)] and first.prepared == [(0, 32)]
    assert second.calls == [(7, 8)] and second.prepared == [(7, 32)]
    assert steps(tmp_path / "run") == [3, 4, 6, 7, 8]
    assert [step for step, _ in logged(tmp_path / "run", "eval/top1")] == [4, 7, 8]
    assert [step for step, _ in logged(tmp_path / "run", "train/loss")] == [3, 4, 6, 7, 8]


@pytest.mark.usefixtures("small_network")
def test_synthetic_data_trains_and_evaluates_the_images_it_says(run_of):
    data = ("data=synthetic", "data.image_size=32", "data.classes=7", "data.eval_images=50")
    made = started(run_of("model=tiny", *data, "batch=16", "steps=2", "track=off"))
    assert checkpoint.list_checkpoints(Path(made["out"]))[-1].state["scores"]["seen"] == 50


def test_a_batch_larger_than_the_data_set_is_refused(run_of):
    with pytest.raises(UserError, match=r"batch=2048: more than the 1437 training images"):
        started(run_of("model=tiny", "batch=2048", "track=off"))


def test_another_run_in_the_same_folder_is_refused_with_the_difference(run_of, whole):
    with pytest.raises(UserError, match=r"optim.lr was 0.016 and is 0.5"):
        started(run_of(*SAVING, "steps=7", "optim.lr=0.5", f"out={whole}"))


# --------------------------------------------------------------------------------------------------------- real processes
# At most 50 steps a second: on a busy machine the signal may come late, and each step before it is made again below.
SLOWLY = f"""{small_network.BEFORE}
import time
from resnet.training.watchdog import Watchdog
Watchdog.reset = lambda _self: time.sleep(0.02)
"""


@pytest.mark.usefixtures("small_network")
def test_sigterm_saves_and_resume_goes_on_to_the_same_weights(tmp_path, run_of, spawn):
    common = [*TINY, "eval=false", "epochs=1000", "schedule=constant", "optim.lr=0.01"]
    first = spawn("resnet.train", *common, "out='a [b] c'", cwd=tmp_path, before=SLOWLY)
    out = tmp_path / "a [b] c"
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < 3:
        assert first.poll() is None, first.stderr
        time.sleep(0.005)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == STOPPED
    step = steps(out)[-1]
    assert f"step-{step:08d}" in first.stderr
    words = (f"resume='{out}'", f"steps={step + 5}")
    (tmp_path / "elsewhere").mkdir()
    second = spawn("resnet.train", *words, cwd=tmp_path / "elsewhere", before=small_network.BEFORE).finish()
    assert second.returncode == 0 and f"resuming at step {step}" in second.stdout.replace(",", "")
    third = spawn("resnet.train", *words, cwd=tmp_path, before=small_network.BEFORE).finish()
    assert third.returncode == 0 and "has finished already" in third.stdout
    started(run_of(*common, f"out={tmp_path / 'whole'}", f"steps={step + 5}"))
    assert_same(tensors(tmp_path / "whole"), tensors(out))


def test_no_shards_in_the_folder_is_told_in_one_line_at_once(tmp_path, spawn):
    done = spawn("resnet.train", "data=imagenet", f"data.dir={tmp_path}", cwd=tmp_path).finish()
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    folders = ("img_train/img_train-*-of-*", "validation/validation-*-of-*")
    for part in (str(tmp_path), *folders, "python -m resnet.prepare"):
        assert part in done.stderr
    assert os.listdir(tmp_path) == []  # noqa: PTH208
