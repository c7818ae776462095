"""The step benchmark: its rows against figures of made-up sides, what it refuses, and small real ones."""

import subprocess
import sys
from typing import ClassVar

import pytest

from resnet import UserError
from resnet.bench import step, timm_child
from resnet.bench.result import Result
from resnet.bench.step import Step
from resnet.bench.workers import Unavailable

# Paces, GFLOP of an image and peak MB of the children by module and side.
SIDES = {
    "children step": ([2.0, 4.0, 1.0], 24.0, 3000.0),
    "children peak": ([1 / 1000] * 3, None, 4000.0),
    "keras_child step": ([4.0, 4.0, 4.0], 22.0, 4000.0),
    "timm_child eager": ([3.0, 4.0, 2.0], None, 4000.0),
    "timm_child compiled": ([3.0, 4.0, 2.0], None, 4000.0),
}


class Side:
    """In place of a child: paces that are known."""

    started: ClassVar[list] = []

    def __init__(self, module, words, python=None):
        self.words, self.python = words, python
        paces, gflop, peak_mb = SIDES[f"{module} {words[0]}"]
        self.facts = {"versions": f"{module} 1", "gflop": gflop, "peak_mb": peak_mb}
        self.paces = iter(paces)

    def __enter__(self):
        self.started.append(self)
        return self

    def __exit__(self, *_error):
        pass

    def step_time(self, _steps):
        return next(self.paces)


@pytest.fixture
def started(monkeypatch):
    """The children of all comparisons."""
    monkeypatch.setattr(step, "Child", Side)
    monkeypatch.setattr(Side, "started", [])
    return Side.started


def measured(**knobs):
    result = Result()
    step.measure(Step(rounds=3, batch=10, **knobs), result)
    return result


@pytest.mark.usefixtures("started")
def test_keras_is_compared_in_gflops_and_the_peak_is_that_of_the_same_rounds():
    result = measured(against="keras")
    peak, gflops, images, memory = result.rows
    assert peak.ours == [120.0, 60.0, 240.0] and peak.theirs == [1000.0] * 3
    assert peak.ratio == pytest.approx(0.12)
    assert gflops.theirs == [55.0] * 3
    assert gflops.ratio == pytest.approx(120 / 55) and gflops.fraction == pytest.approx(0.12)
    assert images.ratio == pytest.approx(2.0)
    assert memory.ratio == 0.75 and memory.less_is_better
    assert result.facts["sides"] == "children 1, keras_child 1"


@pytest.mark.usefixtures("started")
def test_timm_is_compared_eager_and_compiled():
    result = measured(against="timm", torch_python="python", model="resnext50", dtype="fp32")
    assert [row.against for row in result.rows] == ["timm resnext50_32x4d, eager", "timm resnext50_32x4d, compiled"]
    assert result.rows[0].ratio == pytest.approx(1.5)  # of 1.5, 1, 2


def test_our_step_is_compared_with_itself(started):
    result = measured(against="onednn,lars,all")
    assert [child.words[2:4] for child in started] == [
        *(["sgd", ""], ["sgd", "plain"]),
        *(["lars", ""], ["sgd", ""]),
        *(["sgd", "tracked"], ["sgd", ""]),
    ]
    assert [(row.what, row.against, row.less_is_better) for row in result.rows] == [
        ("resnet50 bf16 step, images/s", "plain layers (no gradients of conv.py, no RowNorm)", False),
        ("resnet50 bf16 LARS step, s", "SGD step", True),
        ("resnet50 bf16 step with EMA, metrics, MLflow and progress, s", "without", True),
    ]
    assert [row.ours for row in result.rows] == [[5.0, 2.5, 10.0], [2.0, 4.0, 1.0], [2.0, 4.0, 1.0]]


@pytest.mark.usefixtures("started")
def test_a_side_that_is_not_available_is_a_note_and_not_a_row(monkeypatch):
    result = measured(model="tiny", against="keras,timm")
    assert [row.against for row in result.rows] == ["the matrix products' peak"]
    assert result.notes == [
        "keras.applications has no tiny; left out.",
        "timm left out: torch_python= names no Python that has it.",
    ]

    def unavailable(_side):
        raise Unavailable("/usr/bin/python3 has no torch")

    monkeypatch.setattr(Side, "__enter__", unavailable)
    notes = measured(against="timm", torch_python="python").notes
    assert notes == ["timm left out: /usr/bin/python3 has no torch."]


def test_an_interruption_ends_the_comparisons_after_the_row_of_its_rounds(started, monkeypatch):
    def interrupted(self, _steps):
        if (pace := next(self.paces)) == 1.0:  # of the third round
            raise KeyboardInterrupt
        return pace

    monkeypatch.setattr(Side, "step_time", interrupted)
    result = measured(against="lars,all")
    assert [(row.what, row.ours) for row in result.rows] == [("resnet50 bf16 LARS step, s", [2.0, 4.0])]
    assert result.interrupted and len(started) == 2


@pytest.mark.parametrize(
    ("knobs", "error"),
    [
        (
            {"against": "keras,pytorch"},
            "^against=keras,pytorch: name some of keras, timm, onednn, lars, lamb, clip, all",
        ),
        ({"against": ""}, "^against=: name some of"),
        ({"steps": 0}, "^steps=0: must be above 0"),
        ({"steps": 2}, "^steps=2: with against=all a multiple of 10: weights are averaged every 10 steps"),
    ],
)
def test_what_cannot_be_measured_is_refused(knobs, error):
    with pytest.raises(UserError, match=error):
        Step(**knobs)


def test_names_of_torchvision_are_empty_but_there():
    module = timm_child.Torchvision().create_module(timm_child.Torchvision().find_spec("torchvision.ops"))
    assert module.InterpolationMode.BILINEAR is not module.InterpolationMode.NEAREST
    assert not isinstance(1, module.FrozenBatchNorm2d)
    assert timm_child.Torchvision().find_spec("torch") is None
    with pytest.raises(AttributeError):
        _ = module.__file__


def bench(*words):
    small = ["size=32", "batch=8", "rounds=2", "steps=10"]
    return subprocess.run(
        [sys.executable, "-m", "resnet.bench", "step", *small, *words], capture_output=True, text=True
    )


@pytest.mark.slow
def test_a_small_one_of_every_comparison_ends_with_a_table_and_files(tmp_path):
    process = bench("model=tiny", f"out={tmp_path}")
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "step.json").is_file() and (tmp_path / "step.md").is_file()
    rows = [line for line in process.stdout.splitlines() if line.startswith("| tiny bf16 ")]
    assert len(rows) == 4
    assert "`python -m resnet.bench step size=32 batch=8 rounds=2 steps=10 model=tiny`" in process.stdout


@pytest.mark.slow
def test_keras_itself_is_measured():
    process = bench("against=keras", "dtype=fp32")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("| keras.applications, model.fit | ") == 3


@pytest.mark.slow
def test_a_side_that_fails_is_one_line():
    process = bench("model=nothing", "against=lars")
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith("error: children step failed: ") and "nothing" in last
