"""Two recipes against each other: real trainings, and the table made of their results."""

import json
import subprocess
import sys

import pytest

from resnet.bench import accuracy


def result(top1, training, minutes):
    return {"final/top1": top1, "final/training_minutes": training, "final/minutes": minutes}


def test_the_table_has_medians_and_the_ratio_of_the_whole_runs():
    runs = {
        "slow": [result(0.98, 4.0, 5.0), result(0.99, 8.0, 9.0), result(0.97, 3.0, 4.0)],
        "fast": [result(0.985, 1.0, 2.0), result(0.90, 9.0, 9.5), result(0.99, 1.5, 2.5)],
    }
    assert accuracy.table(runs, "slow").splitlines()[2:] == [
        "| slow | 98.00 % | 4.00 | 5.00 | 1.00 |",
        "| fast | 98.50 % | 1.50 | 2.50 | 2.00 |",
    ]


def bench(cwd, *words):
    command = [sys.executable, "-m", "resnet.bench", "accuracy", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_both_recipes_are_trained_with_each_seed_and_their_results_are_in_the_table(tmp_path):
    done = bench(
        tmp_path,
        "seeds=2",
        "fast=resnet50_lars_1x",
        "out=kept",
        "words=model=tiny data=digits dtype=fp32 batch=64 steps=2",
    )
    assert done.returncode == 0, done.stderr
    runs = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("kept/*/result.json")}
    assert sorted(runs) == ["quickstart-1", "quickstart-2", "resnet50_lars_1x-1", "resnet50_lars_1x-2"]
    config = (tmp_path / "kept/resnet50_lars_1x-2/config.yaml").read_text()
    assert "seed: 2\n" in config and "name: lars" in config
    row = done.stdout.splitlines()[-1]
    kept = json.loads((tmp_path / "kept/accuracy.json").read_text())
    assert [(kept_row["against"], len(kept_row["ours"])) for kept_row in kept["rows"]] == [("quickstart", 2)] * 2
    mean = (runs["resnet50_lars_1x-1"]["final/top1"] + runs["resnet50_lars_1x-2"]["final/top1"]) / 2
    assert row.startswith(f"| resnet50_lars_1x | {100 * mean:.2f} % |")


TINY = "words=model=tiny data=digits dtype=fp32 batch=64 steps=1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fast=nothing", TINY], "recipe=nothing: no such option"),
        (["seeds=0"], "seeds=0: must be above 0"),
        ([f"{TINY} eval=false"], "recipe=quickstart was not evaluated at its end"),
    ],
    ids=["recipe", "seeds", "eval"],
)
def test_what_cannot_be_compared_is_told_in_one_line(tmp_path, words, said):
    done = bench(tmp_path, *words)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
