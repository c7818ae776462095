"""What a long run writes: no more than its knobs say, however long it is."""

from pathlib import Path

import pytest
from fake_step import FakeStep
from run_files import lines, logged

from resnet.training.loop import train

pytestmark = [pytest.mark.usefixtures("small_network"), pytest.mark.timeout(1800)]


def sizes(folder):
    """Bytes of every file, by its path."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("steps", [200, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_run_writes_a_line_where_it_says_so_and_keeps_the_newest_checkpoints(run_of, capsys, steps):
    every = steps // 20
    words = (
        "data=digits",
        "batch=8",
        "eval_steps=4",
        "optim.lr=0.01",
        "schedule=constant",
        "track=off",
        f"steps={steps}",
    )
    words += (f"epochs={steps / 100}", f"log_every_steps={every}", f"save_every_steps={every}")
    run = run_of("model=tiny", *words, f"eval_every_epochs={steps / 4 / 179}")
    out = Path(run.out)
    train(run, out, make_step=FakeStep)
    losses, evaluations = ([step for step, _ in logged(out, name)] for name in ("train/loss", "eval/top1"))
    due = {
        1,
        *range(every, steps + 1, every),
        *evaluations,
    }  # the first step, every so manieth, and before each evaluation
    count = len(losses) + len(evaluations)
    assert losses == sorted(due) and len(lines(out)) == count + 1  # the last has final/...
    assert 4 <= len(evaluations) <= 5
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) <= count + 8 and printed.err == ""
    left = sizes(out)
    saved = {name.split("/")[1] for name in left if name.startswith("checkpoints/")}
    assert len(saved) <= 4  # the newest three, and the best
    others = {name: size for name, size in left.items() if not name.startswith("checkpoints/")}
    assert set(others) == {"config.yaml", "classes.txt", "metrics.jsonl", "result.json"}
    assert others["metrics.jsonl"] < 250 * (count + 1)
