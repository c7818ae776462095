"""Progress: a line now and then, with what is left; a bar on a terminal."""

import itertools
import os
import pty
import re
import subprocess
import sys
import time

from resnet.prepare import bar


def test_lines_tell_how_far_and_how_long(capsys):
    count = itertools.count(10, 10)
    with bar.Bar("images", 1000, lambda: next(count), already=100, line_s=0.05):
        time.sleep(0.3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    assert all(re.fullmatch(r"\d+ of 1,000 images, [\d,]+ a second, left \d:\d\d:\d\d", line) for line in lines)
    assert int(lines[0].split()[0]) > 100


def test_nothing_done_yet_is_no_division_by_zero(capsys):
    with bar.Bar("images", 10, lambda: 0, line_s=0.02):
        time.sleep(0.1)
    assert "0 of 10 images, 0 a second, left ?" in capsys.readouterr().out


def test_what_is_quick_says_nothing(capsys):
    with bar.Bar("images", 10, lambda: 10):
        pass
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar():
    code = (
        "import itertools, time; from resnet.prepare import bar; count = itertools.count()\n"
        "with bar.Bar('images', 50, lambda: next(count)): time.sleep(1)"
    )
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=environment)
    assert process.wait(30) == 0
    os.close(slave)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert "━" in shown
    assert "/50" in shown
    assert "images" in shown


def test_hours_minutes_seconds():
    assert [bar.clock(seconds) for seconds in (0, 59.6, 3599, 3600, 360_000)] == [
        "0:00:00",
        "0:01:00",
        "0:59:59",
        "1:00:00",
        "100:00:00",
    ]
