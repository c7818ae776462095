"""A training watched from outside: what is summed up, and a real one, short."""

import json
import subprocess
import sys

import pytest

from resnet import UserError
from resnet.bench import soak
from resnet.bench.soak import Look

MB = 1e6


def test_growth_is_between_the_medians_of_both_ends():
    looks = [Look(step, (100 * MB + step * MB, 30, 5)) for step in range(1, 101)]
    early, late = soak.held(looks, 0.05, 0.1, 100), soak.held(looks, 0.95, 1.0, 100)
    assert (early, late) == ([108 * MB, 30, 5], [198 * MB, 30, 5])
    assert soak.table(early, late, looks).splitlines()[2:] == [
        "| memory, MB | 108 | 198 | +83.33 % | 200 |",
        "| open files | 30 | 30 | +0.00 % | 30 |",
        "| threads | 5 | 5 | +0.00 % | 5 |",
    ]


def test_a_training_too_short_to_be_looked_at_is_refused():
    with pytest.raises(UserError, match=r"^steps=100: too few to be looked at between 5% and 10%"):
        soak.held([Look(50, (1, 1, 1))], 0.05, 0.1, 100)


@pytest.mark.parametrize(
    ("leak", "what"),
    [("b'y' * 2_000_000", "memory, MB"), ("open('/dev/null')", "open files"), ("0", None)],
)
def test_what_grows_is_a_failure(monkeypatch, capsys, tmp_path, leak, what):
    """In place of the training a process that keeps 2 MB of each step, an open file, or next to nothing."""
    code = f"""
import json, sys, time
from pathlib import Path
out, kept = Path(sys.argv[1]), []
out.mkdir()
base = b"x" * 20_000_000
with (out / "metrics.jsonl").open("w") as file:
    for step in range(1, 101):
        kept.append({leak})
        file.write(json.dumps({{"step": step}}) + "\\n")
        file.flush()
        time.sleep(0.03)
time.sleep(1)  # not to be looked at while it ends
"""
    monkeypatch.setattr(soak, "LOOK_S", 0.01)
    monkeypatch.setattr(soak, "command", lambda _asked, out: [sys.executable, "-c", code, str(out)])
    asked = soak.Soak(steps=200 // 2, evaluations=10, checkpoints=10, out=str(tmp_path))
    if what:
        with pytest.raises(UserError, match=f"^limit=0.02: {what} grown by "):
            soak.measure(asked)
    else:
        soak.measure(asked)
    assert "| memory, MB | " in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_training_evaluates_and_saves_as_often_as_it_was_asked_to(tmp_path):
    words = ["steps=1760", "evaluations=4", "checkpoints=2", f"out={tmp_path}", "limit=10"]
    done = subprocess.run([sys.executable, "-m", "resnet.bench", "soak", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "; 1,760 steps, 4 evaluations, " in done.stdout and "| threads | " in done.stdout
    logged = [json.loads(line) for line in (tmp_path / "soak" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "eval/top1" in line] == [440, 880, 1320, 1760]


def test_a_training_that_fails_is_told(tmp_path):
    words = ["steps=100", "evaluations=10", "checkpoints=10", f"out={tmp_path}", "words=batch=4096"]
    done = subprocess.run([sys.executable, "-m", "resnet.bench", "soak", *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the training failed: error: batch=4096: more than the 1437 training images" in done.stderr
