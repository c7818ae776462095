"""All benchmarks one after the other: the page, and what becomes of one that fails."""

from pathlib import Path

import pytest

from resnet import UserError
from resnet.bench import __main__ as bench
from resnet.bench import everything
from resnet.bench.everything import BENCHMARKS, Everything


@pytest.fixture
def ran(monkeypatch):
    """The command lines, in place of running them; `input` fails."""
    lines = []

    def run(words):
        lines.append(words)
        folder = Path(words[-1].removeprefix("out="))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{words[0]}.md").write_text(f"# {words[0]}\n\n`{' '.join(words[:2])}`\n\nA table.\n")
        return "error: no shards" if words[0] == "input" else ""

    monkeypatch.setattr(everything, "run", run)
    return lines


def test_the_page_has_a_part_of_each_and_one_that_failed_stops_nothing(ran, tmp_path, capsys):
    with pytest.raises(UserError, match=rf"^1 of {len(BENCHMARKS)} failed: input: error: no shards$"):
        everything.measure(Everything(out=str(tmp_path)))
    page = (tmp_path / "all.md").read_text()
    assert page.count("\n## ") == len(BENCHMARKS) == len(ran)
    assert (
        "## step fp32\n\n`step dtype=fp32`\n\nA table.\n" in page and "## input\n\nFailed: error: no shards\n" in page
    )
    assert capsys.readouterr().out == f"{page}\n"


def test_every_folder_is_another_and_each_knob_is_given_once_and_exists(ran, tmp_path):
    with pytest.raises(UserError):
        everything.measure(Everything(out=str(tmp_path), quick=True, torch_python="python", track="mlflow"))
    assert len({words[-1] for words in ran}) == len(ran) == len(BENCHMARKS) - 2
    for command, *words in ran:
        kind, _ = bench.COMMANDS[command]
        bench.knobs.parse(kind, bench.knobs.split(words), command)
    step = next(words for words in ran if words[0] == "step")
    assert {"model=tiny", "rounds=2", "torch_python=python", "track=mlflow"} <= set(step)


def test_a_full_one_compares_with_every_default(ran, tmp_path):
    with pytest.raises(UserError):
        everything.measure(Everything(out=str(tmp_path)))
    assert {words[0] for words in ran} == set(bench.COMMANDS) - {"all", "soak"}
    assert not [word for words in ran for word in words if word.startswith(("rounds=", "steps=", "seeds="))]


def test_what_one_says_at_its_end_is_kept():
    assert everything.run(["nothing"]).startswith("error: nothing: no such benchmark")
    assert everything.run(["--help"]) == ""
