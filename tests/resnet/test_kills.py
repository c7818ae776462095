"""kill -9 at random moments of training, of writing a checkpoint, of evaluating and of preparing images; then the same command.

A handful by default, 200 with -m slow. What is drawn is told in the name of a failing assertion: RESNET_KILLS_SEED repeats it.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from resnet import checkpoint, lock

pytestmark = pytest.mark.timeout(7200)

SEED = int(os.environ.get("RESNET_KILLS_SEED", random.randrange(10**6)))
SAVE, EPOCH, STEPS = 10, 44, 88
WORDS = ["-m", "resnet.train", "model=tiny", "data=digits", "batch=32", f"steps={STEPS}", f"save_every_steps={SAVE}",
         "log_every_steps=1", "track=off", "mixup=0.2", "ema.decay=0.9"]  # fmt: skip
MOMENTS = ("training", "checkpoint", "evaluation")


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
    whole = [saved.step for saved in checkpoint.found(out) if checkpoint.fault(saved) is None]
    return max(whole, default=0)


def weights(out):
    """Every number of the last checkpoint."""
    import tensorflow as tf

    saved = checkpoint.found(out)[-1]
    assert saved.step == STEPS
    reader = tf.train.load_checkpoint(str(saved.path / "weights"))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in n}


class Start:
    """One start of a training in `out`."""

    def __init__(self, out, *words):
        self.out, self.from_step = out, newest(out)
        self.before = len(logged(out)[0])
        self.log = out.with_name(f"{out.name}.log")
        with self.log.open("w") as log:
            command = [sys.executable, *WORDS, *words, f"out={out}"]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

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
            return self.wait_for(lambda: list(self.out.glob("checkpoints/.writing-*")))
        return self.wait_for(lambda: (steps := logged(self.out))[0][-1:] == [max(steps[0], default=0) // EPOCH * EPOCH or -1]
                             and steps[0][-1] not in steps[1])  # fmt: skip

    def kill_at(self, draw, moment):
        """SIGKILL there, a little later; whether it still ran."""
        later = {"any": 8.0, "training": 1.0, "checkpoint": 0.04, "evaluation": 0.3}[moment]
        running = self.reached(moment)
        time.sleep(draw.uniform(0, later))
        running = running and self.process.poll() is None
        self.process.kill()
        self.process.wait()
        return running

    def check(self, said=""):
        """What the start said, and what is there after it."""
        text, orphans = self.log.read_text(), "cluster=cpu2" in self.process.args  # which go on for a moment
        if "batch 32 on" in text:
            told = re.search("going on from step (\\d+),", text)
            step = int(told[1]) if told else 0
            assert step >= self.from_step if orphans else step == self.from_step, (SEED, said, text)
        assert "error" not in text and "Traceback" not in text, (SEED, said, text)
        steps, now = logged(self.out)[0], newest(self.out)
        assert now >= self.from_step, (SEED, said)
        assert max(steps, default=0) <= now + SAVE, (SEED, said, "more steps are lost than since the last checkpoint")


def finish(out, *words):
    """The last start, which nobody disturbs; its result."""
    start = Start(out, *words)
    assert start.process.wait() == 0, (SEED, start.log.read_text())
    start.check("the last start")
    assert not list(out.glob("checkpoints/.writing-*")) and not list(out.glob(".*.part"))
    lock.check_free(out)
    return json.loads((out / "result.json").read_text())


def assert_same(out, whole):
    """The same weights to the bit, and the same scores."""
    left, right = weights(out), weights(whole)
    assert left.keys() == right.keys() and len(left) > 40
    for name, value in left.items():
        assert np.array_equal(value, right[name]), (SEED, name)
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (out, whole))
    for name in one:
        if name not in ("out",) and not name.startswith(("final/images", "final/minutes", "final/training")):
            assert one[name] == other[name], (SEED, name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(out)
    return out


def killed(folder, count, whole, moments, *words):
    """Kill `count` starts, of as many runs as it takes; what was killed when."""
    draw, seen, run = random.Random(SEED), [], 0
    while True:
        out = folder / f"run-{run}"
        while len(seen) < count:
            moment = moments[len(seen) % len(moments)]
            start = Start(out, *words)
            ran = start.kill_at(draw, moment)
            start.check((moment, len(seen)))
            if not ran:
                break
            seen.append((moment, newest(out)))
        finish(out, *words)
        assert_same(out, whole)
        run += 1
        if len(seen) == count:
            return seen


def test_a_training_that_is_killed_goes_on_by_the_same_command_to_the_same_weights(tmp_path, undisturbed):
    seen = killed(tmp_path, 3, undisturbed, MOMENTS)
    assert max(step for _, step in seen) > 0


@pytest.mark.slow
def test_150_kills_of_a_training(tmp_path, undisturbed):
    seen = killed(tmp_path, 150, undisturbed, (*MOMENTS, "checkpoint", "any"))
    print(f"seed {SEED}:", {moment: sum(m == moment for m, _ in seen) for moment in (*MOMENTS, "any")})


@pytest.mark.slow
def test_10_kills_of_the_parent_of_two_ranks(tmp_path):
    """The ranks, of which nobody knows any more, are ended by the next start."""
    finish(tmp_path / "whole", "cluster=cpu2")
    killed(tmp_path, 10, tmp_path / "whole", MOMENTS, "cluster=cpu2")


# ------------------------------------------------------------------------------------------------------------ preparation
def preparation(folder, out):
    words = ["source=folder", f"dir={folder}", f"out={out}", "val_fraction=0.25", "processes=2", "train_shards=8"]
    return subprocess.Popen([sys.executable, "-m", "resnet.prepare", *words], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip


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
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += alive
        last = preparation(images, out)
        errors = last.communicate()[1]
        assert last.returncode == 0, (SEED, errors)
        assert shards_of(out) == wanted, (SEED, number)
    left = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]
    assert not left


def test_a_preparation_that_is_killed_goes_on_by_the_same_command_to_the_same_shards(tree, tmp_path):
    kill_preparations(tree, tmp_path, 3)


@pytest.mark.slow
def test_40_kills_of_a_preparation(tree, tmp_path):
    kill_preparations(tree, tmp_path, 40)
