"""Children that take turns: what they read and answer, and what is left of them when something goes wrong."""

import socket
import sys
from pathlib import Path

import pytest

from resnet import UserError
from resnet.bench import workers
from resnet.bench.result import Result
from resnet.bench.workers import ROOT, Child, Unavailable, Wrong, moving

HEAD = f"import sys; sys.path.append({str(ROOT)!r})\nfrom resnet.bench.workers import *\n"
ONE = "serve({'toy': lambda: ({}, {'': lambda steps: 1.0})})"


def child(code, name="toy", python=sys.executable):
    toy = Child(name, [], python)
    toy.command = [python, "-c", HEAD + code, "toy"]
    return toy


def gone(process):
    return process.returncode is not None and not Path(f"/proc/{process.pid}").exists()


def test_a_turn_is_so_many_steps_and_their_seconds():
    with child("serve({'toy': lambda: ({'versions': 'x 1'}, {'': lambda steps: steps * 0.5})})") as one:
        assert one.facts == {"versions": "x 1"}
        assert one.step_time(4) == 0.5
        assert 1 < one.facts["peak_mb"] < 1000
    assert gone(one.process)


def test_a_child_may_have_several_sides():
    code = "serve({'toy': lambda: ({}, {'a b': lambda steps: 1.0 * steps, 'c': lambda steps: 2.0 * steps})})"
    with child(code) as one:
        assert (one.step_time(3, "a b"), one.step_time(3, "c")) == (1.0, 2.0)


def test_what_else_a_child_prints_is_no_answer():
    loud = "import os\ndef work(steps):\n    print('hello')\n    os.system('echo world')\n    return 1.0\n"
    with child(loud + "print('early')\nserve({'toy': lambda: ({}, {'': work})})") as one:
        assert one.step_time(1) == 1.0


def test_a_child_may_change_its_facts():
    code = "facts = {'graphs': 0}\ndef work(steps):\n    facts['graphs'] += 1\n    return 1.0\n"
    with child(code + "serve({'toy': lambda: (facts, {'': work})})") as one:
        one.step_time(1)
        one.step_time(1)
        assert one.facts["graphs"] == 3  # the first warms up


def test_only_one_works_at_a_time_and_in_turn(tmp_path):
    log = tmp_path / "log"
    code = "def work(steps):\n    open({log!r}, 'a').write({name!r})\n    return 1.0\n"
    a, b = (child(code.format(log=str(log), name=name) + "serve({'toy': lambda: ({}, {'': work})})") for name in "ab")
    with a, b:
        rates = Result().measure({"a": lambda: a.step_time(1), "b": lambda: b.step_time(1)}, 3, "toy")
    assert log.read_text() == "ab" + "ababab"
    assert rates == {"a": [1.0] * 3, "b": [1.0] * 3}


@pytest.mark.parametrize("when", ["starting", "working"])
def test_a_child_that_fails_is_reported_with_its_last_line_and_leaves_nothing(when):
    fail = "raise RuntimeError('no more room')"
    late = f"def work(steps):\n    if steps == 9:\n        {fail}\n    return 1.0\nserve({{'toy': lambda: ({{}}, {{'': work}})}})"
    one, other = child(fail if when == "starting" else late, "keras_child"), child(ONE)
    with (
        pytest.raises(UserError, match=r"^keras_child failed: RuntimeError: no more room$"),
        other,
        one,
    ):
        one.step_time(9)
    assert gone(one.process) and gone(other.process)


def test_a_row_that_is_not_what_it_says_is_reported_by_its_name():
    """Steps are counted, and what the last one returns is looked at when the clock has stopped."""
    code = "def check(last):\n    require(last < 4, f'{last} is too much')\n"
    code += (
        "numbers = iter(range(99))\nserve({'toy': lambda: ({}, {'a row': timed(lambda: next(numbers), check=check)})})"
    )
    with pytest.raises(UserError, match=r"^toy failed: a row: 4 is too much$"), child(code) as one:
        one.step_time(2, "a row")


def test_weights_that_stay_or_are_not_finite_are_no_training():
    values = iter([1.0, 2.0, 2.0, float("nan")])
    check = moving(lambda: next(values))
    check()
    for reason in ("did not change", "are not finite"):
        with pytest.raises(Wrong, match=reason):
            check()


def test_another_python_gets_the_environment_without_what_this_package_and_its_launcher_set(tmp_path, monkeypatch):
    """TF_USE_LEGACY_KERAS=1 of ours would keep another TensorFlow from importing Keras; PYTHONPATH is of packages for ours."""
    code = "import os\nserve({'toy': lambda: (dict(os.environ), {})})"
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "ours")
    monkeypatch.setattr(workers, "INHERITED", {"PATH": "/bin", "PYTHONPATH": "/x", "OMP_NUM_THREADS": "1"})
    (tmp_path / "python").symlink_to(sys.executable)
    for python, paths in ((sys.executable, "/x"), (str(tmp_path / "python"), None)):
        with child(code, python=python) as one:
            assert (one.facts["PATH"], one.facts["OMP_NUM_THREADS"], one.facts.get("PYTHONPATH")) == (
                "/bin",
                "1",
                paths,
            )
            assert one.facts.get("TF_USE_LEGACY_KERAS") != "ours"


def test_a_child_that_was_killed_is_reported_by_its_status():
    one = child("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match=r"^toy failed: exit status -9 without a message$"), one:
        pass
    assert gone(one.process)


def test_a_child_that_lacks_something_is_no_failure():
    with pytest.raises(Unavailable, match=r"^no such package$"), child("sys.exit(print('no such package') or MISSING)"):
        pass


def test_an_interpreter_that_does_not_exist_is_reported(tmp_path):
    one = Child("timm_child", [], python=str(tmp_path / "python"))
    with pytest.raises(Unavailable, match=r"/python: cannot be run \(No such file or directory\)$"), one:
        pass


def test_a_child_is_bound_to_its_cores():
    code = "import os, time; time.sleep(0.5); cores = sorted(os.sched_getaffinity(0))\n"
    one = child(code + "serve({'toy': lambda: ({'cores': cores}, {})})")
    one.cores = {0}
    with one:
        assert one.facts["cores"] == [0]


def test_a_child_ends_with_its_parent():
    with child(ONE) as one:
        one.channel.shutdown(socket.SHUT_RDWR)
        assert one.process.wait(30) == 0


def test_a_module_in_the_working_directory_is_not_a_package_and_a_python_without_pytorch_says_so(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise RuntimeError('not PyTorch')")
    monkeypatch.chdir(tmp_path)
    words = ["eager", "resnet50", "fp32", "1", "32"]
    with pytest.raises(Unavailable, match=rf"^{sys.executable} has no torch$"), Child("timm_child", words):
        pass
