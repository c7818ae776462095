"""Children that take turns: what they are told and answer, and what is left of them when something goes wrong."""

import sys
from pathlib import Path

import pytest

from resnet import UserError
from resnet.bench.sides import interleaved
from resnet.bench.turns import NOT_HERE, ROOT, Child, Lacking, entered

HEAD = f"import sys; sys.path.append({str(ROOT)!r})\nfrom resnet.benchmarks import turns\nturns.quiet()\n"


def child(code, name="toy"):
    made = Child(name, [])
    made.command = [sys.executable, "-c", HEAD + code]
    return made


def gone(process):
    return process.returncode is not None and not Path(f"/proc/{process.pid}").exists()


def test_a_turn_is_so_many_steps_and_their_seconds():
    with child("turns.take_turns({'versions': 'x 1'}, lambda steps: steps * 0.5)") as one:
        assert one.wait().facts == {"versions": "x 1"}
        assert (one.turn(4), one.pace(4)) == (2.0, 0.5)
        assert 1 < one.facts["peak_mb"] < 1000
    assert gone(one.process)


def test_what_else_a_child_prints_is_no_answer():
    loud = "import os\ndef work(steps):\n    print('hello')\n    os.system('echo world')\n    return 1.0\n"
    with child(loud + "turns.take_turns({}, work)") as one:
        assert one.wait().turn(1) == 1.0


def test_a_child_may_change_its_facts():
    code = "facts = {'graphs': 0}\ndef work(steps):\n    facts['graphs'] += 1\n    return 1.0\nturns.take_turns(facts, work)"
    with child(code) as one:
        one.wait().turn(1)
        one.turn(1)
        assert one.facts["graphs"] == 2


def test_only_one_works_at_a_time_and_in_turn(tmp_path):
    log = tmp_path / "log"
    code = "def work(steps):\n    open({log!r}, 'a').write({name!r})\n    return 1.0\nturns.take_turns({{}}, work)"
    made = [(name, child(code.format(log=str(log), name=name))) for name in "ab"]
    with entered(*made) as children:
        rates = interleaved({name: lambda one=one: one.turn(1) for name, one in children.items()}, 3)
    assert log.read_text() == "ababab"
    assert rates == {"a": [1.0] * 3, "b": [1.0] * 3}


@pytest.mark.parametrize("when", ["starting", "working"])
def test_a_child_that_fails_is_told_with_its_last_line_and_leaves_nothing(when):
    fail = "raise RuntimeError('no more room')"
    code = fail if when == "starting" else f"def work(steps):\n    {fail}\nturns.take_turns({{}}, work)"
    one, other = child(code, "keras_step"), child("turns.take_turns({}, lambda steps: 1.0)")
    with (
        pytest.raises(UserError, match=r"^keras_step failed: RuntimeError: no more room$"),
        entered(("other", other), ("one", one)) as children,
    ):
        children["one"].turn(1)
    assert gone(one.process) and gone(other.process)


def test_a_child_that_was_killed_is_told_by_its_status():
    one = child("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match=r"^toy failed: exit status -9, and not a word$"), one:
        one.wait()
    assert gone(one.process)


def test_a_child_that_lacks_something_is_no_failure():
    with pytest.raises(Lacking, match=r"^no such package$"), child("turns.absent('no such package')") as one:
        one.wait()
    assert one.process.returncode == NOT_HERE


def test_an_interpreter_that_is_not_there_is_told(tmp_path):
    one = Child("timm_step", [], python=str(tmp_path / "python"))
    with pytest.raises(Lacking, match=r"/python: cannot be run \(No such file or directory\)$"), one:
        pass


def test_a_child_is_kept_to_its_cores():
    one = child("import os, time; time.sleep(0.5); turns.take_turns({'cores': sorted(os.sched_getaffinity(0))}, float)")
    one.cores = {0}
    with one:
        assert one.wait().facts["cores"] == [0]


def test_a_child_ends_with_its_parent():
    code = "turns.take_turns({}, lambda steps: 1.0)"
    with child(code) as one:
        one.wait()
        one.process.stdin.close()
        assert one.process.wait(30) == 0
        one.process.stdin = None


def test_a_module_in_the_working_folder_is_not_taken_for_a_package(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise RuntimeError('not PyTorch')")
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(Lacking, match=r" has no torch$"),
        Child("timm_step", ["resnet50", "fp32", "1", "32", "eager"]) as one,
    ):
        one.wait()
