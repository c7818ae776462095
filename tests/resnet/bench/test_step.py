"""The step benchmark: its rows against figures of made-up sides, what it refuses, and small real ones."""

import contextlib
import subprocess
import sys

import pytest

from resnet import UserError
from resnet.bench import step, timm_step
from resnet.bench.step import Step
from resnet.bench.turns import Lacking

GFLOP = {"our_step": 24.0, "keras_step": 22.0}


PACES = {
    "our_step": [2.0, 4.0, 1.0],
    "keras_step": [4.0, 4.0, 4.0],
    "flops": [1 / 1000] * 3,
    "timm_step": [3.0, 4.0, 2.0],
}


class Side:
    """In place of a child: paces that are known."""

    def __init__(self, name, words, python=None):
        self.name, self.words, self.python = name, words, python
        self.facts = {
            "versions": f"{name} 1",
            "gflop": GFLOP.get(name),
            "peak_mb": 3000.0 if name == "our_step" else 4000.0,
        }
        self.left = iter(PACES[name])

    def pace(self, _steps):
        return next(self.left)


@pytest.fixture
def sides(monkeypatch):
    @contextlib.contextmanager
    def entered(*named):
        yield dict(named)

    monkeypatch.setattr(step, "Child", Side)
    monkeypatch.setattr(step, "entered", entered)
    monkeypatch.setattr(step, "facts", lambda: {"machine": "a box"})


def measured(**knobs):
    return step.measure(Step(rounds=3, batch=10, **knobs))


@pytest.mark.usefixtures("sides")
def test_keras_is_compared_in_gflops_and_the_peak_is_that_of_the_same_rounds():
    found = measured(against="keras")
    peak, gflops, images, memory = found.rows
    assert peak.ours == [120.0, 60.0, 240.0] and peak.theirs == [1000.0] * 3
    assert peak.ratio == pytest.approx(0.12) and peak.verdict == "missed by 0.5"
    assert (
        gflops.theirs == [55.0] * 3
        and gflops.ratio == pytest.approx(120 / 55)
        and gflops.fraction == pytest.approx(0.12)
    )
    assert gflops.goal.value == 1.05 and gflops.verdict == "reached"
    assert images.ratio == pytest.approx(2.0)
    assert (memory.ratio, memory.verdict) == (0.75, "reached")
    assert found.facts["sides"] == "our_step 1, flops 1, keras_step 1"


@pytest.mark.usefixtures("sides")
def test_goals_are_those_of_the_arithmetic():
    peak, *_, memory = measured(against="keras", dtype="fp32").rows
    assert peak.goal.value == 0.70 and memory.goal is None


@pytest.mark.usefixtures("sides")
def test_both_modes_of_timm_have_their_goals():
    found = measured(against="timm", torch_python="python", model="resnext50", dtype="fp32")
    assert [row.against for row in found.rows] == ["timm resnext50_32x4d, eager", "timm resnext50_32x4d, compiled"]
    assert [row.goal.value for row in found.rows] == [1.5, 1.5]
    assert found.rows[0].ratio == pytest.approx(1.5)  # of 1.5, 1, 2
    assert [row.goal.value for row in measured(against="timm", torch_python="python").rows] == [1.25, 1.15]


@pytest.mark.usefixtures("sides")
def test_our_step_is_compared_with_itself_by_onednn_alone(monkeypatch):
    built = []
    monkeypatch.setattr(step, "entered", lambda *named: built.extend(named) or contextlib.nullcontext(dict(named)))
    (row,) = measured(against="onednn").rows
    assert [(name, side.words[1:]) for name, side in built] == [
        ("ours", ["sgd", "", ""]),
        ("onednn", ["sgd", "", "onednn"]),
    ]
    assert row.ratio == 1 and row.against == "plain layers (no resnet.convolution, no RowNorm)"


@pytest.mark.usefixtures("sides")
def test_what_is_not_to_be_had_is_a_note_and_not_a_row(monkeypatch):
    found = measured(model="tiny", against="keras,timm")
    assert [row.against for row in found.rows] == ["the matrix products' peak"] and found.rows[0].goal is None
    assert found.notes == [
        "keras.applications has no tiny; left out.",
        "timm left out: torch_python= names no Python that has it.",
    ]

    def lacking(*_named):
        raise Lacking("/usr/bin/python3 has no torch")

    monkeypatch.setattr(step, "entered", lacking)
    assert measured(against="timm", torch_python="python").notes == ["timm left out: /usr/bin/python3 has no torch."]


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"against": "keras,pytorch"}, "^against=keras,pytorch: name some of keras, timm, onednn, lars, all"),
        ({"against": ""}, "^against=: name some of"),
        ({"batch": 0}, "^batch=0: must be above 0"),
        ({"size": 8}, "^size=8: must be at least 32 pixels"),
    ],
)
def test_what_cannot_be_measured_is_refused(knobs, said):
    with pytest.raises(UserError, match=said):
        Step(**knobs)


def test_names_of_torchvision_are_empty_but_there():
    module = timm_step.Torchvision().create_module(timm_step.Torchvision().find_spec("torchvision.ops"))
    assert module.InterpolationMode.BILINEAR is not module.InterpolationMode.NEAREST
    assert not isinstance(1, module.FrozenBatchNorm2d)
    assert timm_step.Torchvision().find_spec("torch") is None
    with pytest.raises(AttributeError):
        _ = module.__file__


def test_an_interpreter_without_pytorch_says_so():
    done = subprocess.run(
        [sys.executable, "-m", "resnet.benchmarks.timm_step", "resnet50", "fp32", "1", "32", "eager"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.strip()) == (77, f"{sys.executable} has no torch")


def bench(*words):
    small = ["size=32", "batch=8", "rounds=2", "steps=2"]
    return subprocess.run(
        [sys.executable, "-m", "resnet.bench", "step", *small, *words], capture_output=True, text=True
    )


@pytest.mark.slow
def test_a_small_one_of_every_comparison_ends_with_a_table_and_files(tmp_path):
    done = bench("model=tiny", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "step.json").is_file() and (tmp_path / "step.md").is_file()
    rows = [line for line in done.stdout.splitlines() if line.startswith("| tiny bf16 ")]
    assert len(rows) == 3 and "`python -m resnet.bench step size=32 batch=8 rounds=2 steps=2 model=tiny`" in done.stdout


@pytest.mark.slow
def test_keras_itself_is_measured():
    done = bench("against=keras", "dtype=fp32")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| keras.applications, model.fit | ") == 3


@pytest.mark.slow
def test_a_side_that_fails_is_told_in_one_line():
    done = bench("model=nothing", "against=lars")
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1].startswith("error: our_step failed: ")
        and "nothing" in done.stderr.splitlines()[-1]
    )
