"""kill -9 at random moments of training, of writing a checkpoint, of evaluating and of preparing images; then the same command.

A few by default, 200 with -m slow. What is drawn is told in the name of a failing assertion: RESNET_KILLS_SEED repeats it.
The trainings of one rank are forked from a process that has imported TensorFlow, and their network is as small as can be: a start
then takes a third of the time. Nothing else is different from `python -m resnet.train`, which the test of two ranks starts.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import small_network

from resnet.rundir import lock, result
from resnet.track import tracker
from resnet.training import artifacts, checkpoint
from resnet.training.loop import train

pytestmark = pytest.mark.timeout(7200)

SEED = int(os.environ.get("RESNET_KILLS_SEED", random.randrange(10**6)))
SAVE, EPOCH, STEPS = 10, 44, 88
WORDS = [
    "model=tiny",
    "data=digits",
    "batch=32",
    f"steps={STEPS}",
    f"save_every_steps={SAVE}",
    "log_every_steps=1",
    "track=off",
    "mixup=0.2",
    "ema.decay=0.9",
]
MOMENTS = ("training", "checkpoint", "evaluation")
LATER_S = {"any": 8.0, "training": 1.0, "checkpoint": 0.04, "evaluation": 0.3, "end": 0.3}


def started(spawn, words, log):
    """A training: its ranks are processes of their own."""
    if "cluster=cpu2" not in words:
        return spawn("resnet.train", *words, before=small_network.BEFORE, log=log)
    with log.open("w") as file:
        command = [sys.executable, "-m", "resnet.train", *words]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def logged(out):
    """The steps in metrics.jsonl whose training was logged, and those whose evaluation was."""
    try:
        text = (out / "metrics.jsonl").read_text()
    except OSError:
        return [], []
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    return [line["step"] for line in lines if "train/loss" in line], [
        line["step"] for line in lines if "eval/top1" in line
    ]


def newest(out):
    """The step a start will go on from."""
    whole = [saved.step for saved in checkpoint.list_checkpoints(out) if checkpoint.verify(saved) is None]
    return max(whole, default=0)


def weights(out):
    """Every number of the last checkpoint."""
    import tensorflow as tf

    saved = checkpoint.list_checkpoints(out)[-1]
    assert saved.step == STEPS
    reader = tf.train.load_checkpoint(str(saved.path / "weights"))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in n}


class Start:
    """One start of a training in `out`."""

    def __init__(self, spawn, out, *words):
        self.out, self.from_step = out, newest(out)
        self.before = len(logged(out)[0])
        self.log, self.words = out.with_name(f"{out.name}.log"), [*WORDS, *words, f"out={out}"]
        self.process = started(spawn, self.words, self.log)

    def wait_for(self, what):
        """Until that is the case; False if the process ends before."""
        while self.process.poll() is None:
            if what():
                return True
            time.sleep(0.001)
        return False

    def reached(self, moment):
        """Wait for the moment; False if the run has ended before."""
        if moment == "any":
            return True
        if moment == "training":
            return self.wait_for(lambda: len(logged(self.out)[0]) > self.before)
        if moment == "checkpoint":
            return self.wait_for(lambda: list(self.out.glob("checkpoints/.step-*.part")))
        if moment == "end":  # all is saved, and the result not written
            return self.wait_for(lambda: checkpoint.path_of(self.out, STEPS).exists())
        return self.wait_for(
            lambda: (
                (steps := logged(self.out))[0][-1:] == [max(steps[0], default=0) // EPOCH * EPOCH or -1]
                and steps[0][-1] not in steps[1]
            )
        )

    def kill_at(self, draw, moment):
        """SIGKILL there, a little later; whether it still ran."""
        running = self.reached(moment)
        time.sleep(draw.uniform(0, LATER_S[moment]))
        running = running and self.process.poll() is None
        self.process.kill()
        self.process.wait()
        return running

    def check(self, said=""):
        """What the start said, and what is there after it."""
        text, orphans = self.log.read_text(), "cluster=cpu2" in self.words  # which go on for a moment
        if "batch 32 on" in text:
            told = re.search("resuming at step (\\d+),", text)
            step = int(told[1]) if told else 0
            assert step >= self.from_step if orphans else step == self.from_step, (SEED, said, text)
        assert "error" not in text and "Traceback" not in text, (SEED, said, text)
        steps, now = logged(self.out)[0], newest(self.out)
        assert now >= self.from_step, (SEED, said)
        # One checkpoint may still be written while training goes on to the next, which waits for it.
        assert max(steps, default=0) <= now + 2 * SAVE, (
            SEED,
            said,
            "more steps are lost than since the last checkpoint",
        )


def finish(spawn, out, *words):
    """The last start, which nobody disturbs; its result."""
    start = Start(spawn, out, *words)
    assert start.process.wait() == 0, (SEED, start.log.read_text())
    start.check("the last start")
    assert not list(out.glob("checkpoints/.step-*.part")) and not list(out.glob(".*.part"))
    with lock.hold(out):
        pass
    return json.loads((out / "result.json").read_text())


def assert_same(out, whole):
    """The same weights to the bit, and the same scores."""
    left, right = weights(out), weights(whole)
    assert left.keys() == right.keys() and len(left) >= 12
    for name, value in left.items():
        assert np.array_equal(value, right[name]), (SEED, name)
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (out, whole))
    for name in one:
        if name not in ("out",) and not name.startswith(("final/images", "final/minutes", "final/training")):
            assert one[name] == other[name], (SEED, name)


@pytest.fixture(scope="module")
def undisturbed(spawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(spawn, out)
    return out


def killed(spawn, folder, count, whole, moments, *words, part=0):
    """Kill `count` starts, of as many runs as it takes; what was killed when. Shown with -s."""
    draw, seen, run = random.Random(f"{SEED} {part}"), [], 0
    while True:
        out = folder / f"run-{run}"
        while len(seen) < count:
            moment = moments[len(seen) % len(moments)]
            start = Start(spawn, out, *words)
            ran = start.kill_at(draw, moment)
            start.check((moment, len(seen)))
            if not ran:
                break
            seen.append((moment, newest(out)))
            print(f"seed {SEED}: kill {len(seen)}, {moment}, of run {run}; step {seen[-1][1]} is saved", flush=True)
        finish(spawn, out, *words)
        assert_same(out, whole)
        run += 1
        if len(seen) == count:
            counts = ", ".join(f"{sum(m == name for m, _ in seen)} in {name}" for name in dict.fromkeys(moments))
            print(
                f"seed {SEED}: {count} kills of {run} runs ({counts}); each ended with the weights of one undisturbed"
            )
            return seen


def test_a_training_that_is_killed_goes_on_by_the_same_command_to_the_same_weights(spawn, tmp_path, undisturbed):
    killed(spawn, tmp_path, 1, undisturbed, [random.Random(SEED).choice(MOMENTS)])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_50_kills_of_a_training(spawn, tmp_path, undisturbed, part):
    killed(spawn, tmp_path, 50, undisturbed, (*MOMENTS, "checkpoint", "end", "any"), part=part)


@pytest.mark.slow
def test_10_kills_of_the_parent_of_two_ranks(spawn, tmp_path):
    """The ranks, of which nobody knows any more, are ended by the next start."""
    finish(spawn, tmp_path / "whole", "cluster=cpu2")
    killed(spawn, tmp_path, 10, tmp_path / "whole", MOMENTS, "cluster=cpu2")


@pytest.mark.usefixtures("small_network")
def test_what_the_last_evaluation_said_is_asked_again_by_a_start_that_finds_only_its_checkpoint(run_of, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    kept = []
    monkeypatch.setattr(tracker, "Tracker", lambda *_: tracker.NullTracker())
    monkeypatch.setattr(artifacts, "make", lambda _run, _out, _images, answers, *_: kept.append(answers) or [])
    run = run_of("model=tiny", "data=digits", "batch=32", "steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(result, "write", killed)
        with pytest.raises(Killed):
            train(run, Path(run.out))
    made = train(run, Path(run.out))
    first, again = kept
    assert again.valid.all() and len(again.labels) == 360 and result.read(Path(run.out)) == made
    assert np.array_equal(first.predicted, again.predicted) and (
        again.predicted == again.labels
    ).mean() == pytest.approx(made["eval/top1"])


LAST = """
import os, signal
from resnet.rundir import result
result.write = lambda out, came: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_run_killed_between_its_last_checkpoint_and_its_result_ends_with_all_that_a_run_has(spawn, tmp_path):
    """What the first start had made by then is put away, as if it had been killed a moment sooner."""
    out, away = tmp_path / "run", tmp_path / "away"
    words = ["model=tiny", "data=digits", "batch=32", "steps=2", f"out={out}"]
    first = spawn("resnet.train", *words, cwd=tmp_path, before=LAST).finish()
    assert first.returncode == -signal.SIGKILL, first.stderr
    made = {"confusion.png", "mistakes.png", "curves.png", "model"}
    assert made <= {path.name for path in out.iterdir()} and not (out / "result.json").exists()
    away.mkdir()
    for name in made:
        (out / name).rename(away / name)
    again = spawn("resnet.train", *words, cwd=tmp_path).finish()
    assert again.returncode == 0 and "resuming at step 2," in again.stdout, again.stderr
    assert made | {"result.json"} <= {path.name for path in out.iterdir()}
    for name in ("confusion.png", "mistakes.png"):
        assert (out / name).read_bytes() == (away / name).read_bytes(), name
    assert list((out / "model").rglob("saved_model.pb"))
    steps = [
        json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines() if "eval/top1" in line
    ]
    assert steps == [2]


# ------------------------------------------------------------------------------------------------------------ preparation
def preparation(folder, out):
    words = ["source=folder", f"dir={folder}", f"out={out}", "val_fraction=0.25", "processes=2", "train_shards=8"]
    return subprocess.Popen(
        [sys.executable, "-m", "resnet.prepare", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def shards_of(out):
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def kill_preparations(tree, folder, count):
    """Kill so many, the first process alone or all of them; then the last start's files are those of one undisturbed."""
    images, draw = tree({"cat": 40, "dog": 40, "eel": 40}, width=500, height=375), random.Random(SEED)
    began = time.monotonic()
    whole = preparation(images, folder / "whole")
    assert whole.communicate()[1] == "" and whole.returncode == 0
    life, kills, number = time.monotonic() - began, 0, 0
    wanted = shards_of(folder / "whole")
    while kills < count:
        out = folder / f"out-{number}"
        number += 1
        for _ in range(4):
            process = preparation(images, out)
            time.sleep(draw.uniform(0, life))
            alive = process.poll() is None
            if draw.random() < 0.5:
                process.kill()
            else:
                with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                    os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += alive
        last = preparation(images, out)
        errors = last.communicate()[1]
        assert last.returncode == 0, (SEED, errors)
        assert shards_of(out) == wanted, (SEED, number)
    print(f"seed {SEED}: {kills} kills of {number} preparations; each ended with the shards of one undisturbed")
    left = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]
    assert not left


def test_a_preparation_that_is_killed_goes_on_by_the_same_command_to_the_same_shards(tree, tmp_path):
    kill_preparations(tree, tmp_path, 3)


@pytest.mark.slow
def test_40_kills_of_a_preparation(tree, tmp_path):
    kill_preparations(tree, tmp_path, 40)
