"""The command line of all benchmarks, where a result goes, and what an interruption leaves of it."""

import json
import os
import signal
import subprocess
import sys

import pytest

from resnet.bench import __main__ as bench
from resnet.bench.result import Knobs, Row
from resnet.bench.step import Step

ROW = Row("step (bf16), images/s", [12.0, 30.0], [10.0, 20.0], "Keras, fit", [24.0, 40.0])


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "machine", lambda: {"cores": "2"})
    monkeypatch.setitem(bench.COMMANDS, "toy", (Knobs, lambda _knobs, result: result.rows.append(ROW)))


@pytest.mark.usefixtures("toy")
def test_a_result_is_printed_with_its_command_and_written_to_out(tmp_path, capsys):
    bench.measure("toy", "out=a folder")
    assert "`python -m resnet.bench toy`" in capsys.readouterr().out
    assert json.loads((tmp_path / "a folder" / "toy.json").read_text())["command"] == "python -m resnet.bench toy"


@pytest.mark.usefixtures("toy")
def test_a_result_is_printed_before_it_is_written(tmp_path, monkeypatch, capsys, exit_status):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["bench", "toy", "out=file/x"])
    monkeypatch.setattr(signal, "signal", lambda *_words: None)
    assert exit_status(bench.main) == 1
    output = capsys.readouterr()
    assert "| step (bf16), images/s | 21 |" in output.out
    assert output.err == "error: out=file/x: cannot be written to (Not a directory); give another folder\n"


def test_help_names_every_command_and_imports_no_tensorflow():
    code = (
        "import contextlib, sys; from resnet import bench; sys.argv[1:] = []\n"
        "with contextlib.suppress(SystemExit): bench.main()\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    names = [line.split()[0] for line in process.stdout.splitlines()[1:] if line and line[0] != " "]
    assert names == list(bench.COMMANDS) == ["step", "input", "train", "scaling", "start", "sweep"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["input", "imagess=3"], "imagess: resnet.bench input has no such knob; did you mean images?"),
        (
            ["inputs"],
            "inputs: no such benchmark; did you mean input? There are: step, input, train, scaling, start, sweep\n",
        ),
    ],
)
def test_an_error_is_one_line(monkeypatch, capsys, exit_status, words, error):
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    monkeypatch.setattr(signal, "signal", lambda *_words: None)
    assert exit_status(bench.main) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"error: {error}") and len(stderr.splitlines()) == 1


@pytest.mark.usefixtures("toy")
def test_a_reproducing_command_is_quoted_for_a_shell(monkeypatch, capsys):
    monkeypatch.setitem(bench.COMMANDS, "toy", (Step, bench.COMMANDS["toy"][1]))
    bench.measure("toy", "torch_python=a b", "out=x")
    assert capsys.readouterr().out.startswith("`python -m resnet.bench toy 'torch_python=a b'`\n")


# ----------------------------------------------------------------------------------------------------------- interruptions
INTERRUPTED = """
import sys, time
from resnet.bench import __main__ as bench
from resnet.bench.result import Knobs, Row

class Toy(Knobs):
    "a side that takes no time in its first rounds, then for ever"

def work(knobs, result):
    rounds = iter(range(9))
    def side():
        number = next(rounds)
        if number == COMPLETE:
            print("waiting", flush=True)
            time.sleep(60)
        return float(number + 1)
    values = result.measure({"ours": side, "theirs": lambda: 2.0}, knobs.rounds, "toy")
    result.rows.append(Row("toy, s", values["ours"], values["theirs"], "other"))

bench.machine = lambda: {"cores": "2"}
bench.COMMANDS["toy"] = Toy, work
bench.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("complete", [3, 0])
def test_an_interrupted_benchmark_keeps_its_complete_rounds(tmp_path, number, complete):
    code = INTERRUPTED.replace("COMPLETE", str(complete))
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, "toy", f"out={tmp_path}/out"]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        os.kill(process.pid, number)
        output, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in error
    if complete:
        assert "| toy, s | 2 | 2 | other | 1.000 |  |\n\nInterrupted: toy: 3 of 5 rounds.\n" in output
        assert json.loads((tmp_path / "out" / "toy.json").read_text())["rows"][0]["ours"] == [1.0, 2.0, 3.0]
    else:
        assert output == "" and not (tmp_path / "out").exists()
        assert error == "interrupted before a round was complete; there is nothing to print\n"


@pytest.mark.usefixtures("toy")
def test_rows_of_earlier_comparisons_are_kept_when_the_next_one_is_interrupted(monkeypatch, capsys, exit_status):
    def work(_knobs, result):
        result.rows.append(ROW)
        raise KeyboardInterrupt

    monkeypatch.setitem(bench.COMMANDS, "toy", (Knobs, work))
    assert exit_status(lambda: bench.measure("toy")) == 130
    assert "| step (bf16), images/s | 21 |" in capsys.readouterr().out
