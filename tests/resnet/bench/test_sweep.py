"""The benchmark of sweeps: what its rows are computed from, what it refuses, and a small real one."""

import json
from pathlib import Path

import pytest

from resnet import UserError
from resnet.bench import sweep
from resnet.bench.result import Result


@pytest.fixture
def sweeps(monkeypatch):
    """Stands in for sweeps: a job takes 5 s, 2 of them training, and 3 s are for the first; pruned searches have 3 jobs left."""
    lines = []

    def run(out, *words):
        lines.append(words)
        values = dict(word.split("=", 1) for word in words)
        count = int(values.get("sweep.trials", 0)) or len(values["seed"].split(","))
        pruned = "sweep.pruner" in values
        for number in range(3 if pruned else count):
            (out / str(number)).mkdir(parents=True)
            content = {"final/training_minutes": 2 / 60, "final/top1": 0.5 + number / 100 + pruned / 1000}
            (out / str(number) / "result.json").write_text(json.dumps(content))
        return 3 + 5 * count / int(values["sweep.jobs"]) / (2 if pruned else 1)

    monkeypatch.setattr(sweep, "run_sweep", run)
    return lines


def test_the_cost_of_a_job_is_what_one_more_takes_less_its_training(sweeps):
    result = Result()
    sweep.measure(sweep.Sweep(rounds=2, part="jobs"), result)
    together, each, cost = result.rows
    assert (together.ours, together.theirs) == ([23.0] * 2, [43.0] * 2) and together.ratio == pytest.approx(23 / 43)
    assert (each.ours, cost.ours) == ([5.0] * 2, pytest.approx([3.0] * 2))
    assert len(sweeps) == 6 and all({"model=tiny", "track=off", "epochs=4"} <= set(words) for words in sweeps)


def test_a_search_is_compared_by_seeds(sweeps):
    result = Result()
    sweep.measure(sweep.Sweep(rounds=2, part="search", trials=8), result)
    time, top1 = result.rows
    assert (time.ours, time.theirs) == ([13.0] * 2, [23.0] * 2)
    assert top1.ours == pytest.approx([52.1] * 2) and top1.theirs == pytest.approx([57.0] * 2)
    assert "seed 2: 52.10 % against 57.00 %, 5 jobs pruned" in result.notes[0]
    assert [next(word for word in words if word.startswith("seed=")) for words in sweeps] == [
        "seed=1",
        "seed=1",
        "seed=2",
        "seed=2",
    ]


def test_jobs_that_did_not_finish_are_no_measurement(tmp_path):
    with pytest.raises(UserError, match="0 jobs of 8 finished"):
        sweep.finished(tmp_path, 8)
    with pytest.raises(UserError, match="many=20: must be above 20"):
        sweep.Sweep(many=20)


def test_a_sweep_that_fails_is_reported_by_its_last_line(tmp_path):
    with pytest.raises(UserError, match=r"optim\.momentm=0\.9: exit status 1: error: "):
        sweep.run_sweep(Path(tmp_path), "model=tiny", "optim.momentm=0.9")
