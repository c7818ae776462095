"""profile_steps: a TensorBoard profile of some steps, and the table of its operations."""

import csv
import json
from pathlib import Path

import pytest
import tensorflow as tf

from resnet.model import relu
from resnet.training import profiling
from resnet.training.loop import train

WORDS = ("model=tiny", "data=digits", "batch=32", "eval=false", "steps=6", "log_every_steps=2")


def test_the_table_is_by_place_and_operation_of_a_step_and_shares_are_of_a_place():
    host, card = "/host:CPU", "/device:GPU:0"
    took = [(host, "Conv2D", 0.03), (host, "Conv2D", 0.05), (host, "Relu", 0.02), (card, "k", 0.01)]
    assert profiling.table(took, 2) == [
        profiling.Row(host, "Conv2D", 1.0, pytest.approx(40.0), pytest.approx(0.8)),
        profiling.Row(host, "Relu", 0.5, pytest.approx(10.0), pytest.approx(0.2)),
        profiling.Row(card, "k", 0.5, pytest.approx(5.0), 1.0),
    ]
    assert profiling.as_line(profiling.table(took, 2), Path("x")).startswith(
        "profiled: Conv2D 80 %, Relu 20 %, k 100 %; x/operations.csv"
    )


def test_a_profile_of_known_work_counts_its_operations(tmp_path):
    @tf.function
    def work(x):
        for _ in range(3):
            x = x @ x
        return tf.nn.relu(x)

    x = tf.eye(64)
    work(x)
    profiler = profiling.Profiler([2, 3], tmp_path)
    for step in range(5):
        profiler.before(step, step + 1)
        rows = profiler.after(step + 1, work(x))
        assert bool(rows) == (step == 2)
        if rows:
            counted = {row.operation: row.calls for row in rows}
    assert counted["Relu"] == 1
    assert sum(calls for kind, calls in counted.items() if "MatMul" in kind) == 3
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
    with (tmp_path / "profile" / "operations.csv").open() as file:
        assert {row["operation"] for row in csv.DictReader(file)} == set(counted)


def test_what_xla_compiled_is_counted_by_its_function(tmp_path):
    @tf.function
    def work(x):
        for _ in range(2):
            x, _ = relu.add_relu(x, x)
        return x

    x = tf.ones([4, 4])
    work(x)
    profiler = profiling.Profiler([1, 2], tmp_path)
    for step in range(2):
        profiler.before(step, step + 1)
        rows = profiler.after(step + 1, work(x))
    # 2, unless the machine is so busy that TensorFlow drops an event.
    assert 1 <= {row.operation: row.calls for row in rows}["xla_relu_of_sum"] <= 2


@pytest.mark.parametrize(
    ("steps", "calls"), [([2, 3], [False, True, True, False]), ([1, 9], [True] * 4), (None, [False] * 4)]
)
def test_whole_calls_are_profiled(monkeypatch, tmp_path, steps, calls):
    on = []
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda _folder: on.append(True))
    profiler = profiling.Profiler(steps, tmp_path)
    profiled = []
    for step in range(4):
        profiler.before(step, step + 1)
        profiled.append(profiler.since is not None)
        if steps and step + 1 == steps[1]:
            profiler.since = profiler.steps = None  # as end() does
    assert profiled == calls and len(on) == (steps is not None)


@pytest.mark.usefixtures("small_network")
def test_a_run_profiles_the_steps_of_its_knob(run_at, tmp_path):
    run = run_at(tmp_path, *WORDS, "track=off", "profile_steps=[3,4]", f"out={tmp_path / 'run'}")
    train(run, Path(run.out))
    with (tmp_path / "run/profile/operations.csv").open() as file:
        rows = {row["operation"]: float(row["calls a step"]) for row in csv.DictReader(file)}
    assert sum(calls for kind, calls in rows.items() if "Conv2DBackpropFilter" in kind) >= 1
    names = tf.train.load_checkpoint(
        str(tmp_path / "run/checkpoints/step-00000006/weights")
    ).get_variable_to_shape_map()
    assert rows["ResourceApplyMomentum"] == sum("velocity" in name for name in names) > 4  # one a variable and step
    assert json.loads((tmp_path / "run/result.json").read_text())["steps"] == 6
