"""What a long run writes: no more than it says, however long it is. What it holds meanwhile: `python -m resnet.bench soak`."""

import json
from pathlib import Path

import pytest

from resnet.training.loop import train

pytestmark = [pytest.mark.usefixtures("small_network"), pytest.mark.timeout(1800)]


def sizes(folder):
    """Bytes of every file, by its path."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("steps", [200, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_run_writes_a_line_where_it_says_so_and_keeps_the_newest_checkpoints(run_of, capsys, steps):
    every, parts = (
        steps // 20,
        ("model=tiny", "data=digits", "batch=8", "eval_steps=4", "optim.lr=0.01", "schedule=constant"),
    )
    run = run_of(
        *parts,
        f"steps={steps}",
        f"epochs={steps / 100}",
        f"log_every_steps={every}",
        f"save_every_steps={every}",
        f"eval_every_epochs={steps / 4 / 179}",
        "track=off",
    )
    out = Path(run.out)
    train(run, out)
    told = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = [line["step"] for line in told if "train/loss" in line]
    judged = [line["step"] for line in told if "eval/top1" in line]
    due = {1, *range(every, steps + 1, every), *judged}  # the first step, every so manieth, and before each evaluation
    assert logged == sorted(due) and len(told) == len(logged) + len(judged) + 1  # the last has final/...
    assert 4 <= len(judged) <= 5
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) <= len(logged) + len(judged) + 8 and said.err == ""
    left = sizes(out)
    saved = {name.split("/")[1] for name in left if name.startswith("checkpoints/")}
    assert len(saved) <= 4  # the newest three, and the best
    others = {name: size for name, size in left.items() if not name.startswith("checkpoints/")}
    assert set(others) == {"config.yaml", "classes.txt", "metrics.jsonl", "result.json"}
    assert others["metrics.jsonl"] < 250 * len(told)
