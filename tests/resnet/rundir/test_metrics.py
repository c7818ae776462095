"""metrics.jsonl read back as curves."""

import json

from resnet.rundir import metrics


def test_of_a_step_that_was_done_twice_the_last_one_counts_and_what_came_after_the_first_is_gone(tmp_path):
    first = [(step, {"train/loss": 9.0, "train/lr": 0.1}) for step in (10, 20, 30, 35)]
    again = [(step, {"train/loss": step / 10}) for step in (20, 30, 40)]
    points = [*first, (30, {"eval/top1": 0.5}), *again, (40, {"eval/top1": 0.7})]
    text = "".join(json.dumps({"step": step, "time_ms": 1, **values}) + "\n" for step, values in points)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 50, "train/lo')  # the power went
    curves = metrics.read(tmp_path / "metrics.jsonl")
    assert curves["train/loss"] == {10: 9.0, 20: 2.0, 30: 3.0, 40: 4.0}
    assert curves["eval/top1"] == {30: 0.5, 40: 0.7}
    assert list(curves["train/lr"]) == [10, 20, 30, 35]
