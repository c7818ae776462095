"""What a person sees of jobs that run side by side."""

import io

import pytest
from rich.console import Console

from resnet.sweep import live
from resnet.sweep.job import Job


@pytest.fixture
def job(run_of):
    def make(number, latest, *words):
        return Job(number, run_of("model=tiny", "batch=32", "epochs=4", *words), [f"seed={number}"], latest=latest)

    return make


def screen(terminal=True):
    text = io.StringIO()
    return text, Console(file=text, force_terminal=terminal, width=100, highlight=False, color_system=None)


@pytest.mark.parametrize(
    ("latest", "words", "shown"),
    [
        ({}, [], ("", "", "", "")),
        # A quarter of the epochs at 100 images/s: three times as many images as the 1,000 are left.
        ({"train/epoch": 1, "train/images": 1000, "train/images_per_s": 100}, [], ("1.00/4", "", "100.0", "0:00:30")),
        ({"train/epoch": 1, "train/images": 1000, "train/images_per_s": 0.1}, [], ("1.00/4", "", "0.1", "8:20:00")),
        (
            {"train/epoch": 2, "train/images": 640, "train/images_per_s": 32},
            ["steps=30"],
            ("2.00/4", "", "32.0", "0:00:10"),
        ),
        (
            {"train/epoch": 4, "train/images": 9, "train/images_per_s": 9, "best/top1": 0.5},
            [],
            ("4.00/4", "50.00 %", "9.0", "0:00:00"),
        ),
    ],
)
def test_the_time_left_is_that_of_the_images_left_at_the_rate_of_now(job, latest, words, shown):
    one = job(0, latest, *words)
    assert live.progress(one.run, one.latest) == shown


def test_on_a_terminal_one_table_has_a_line_for_each_running_job(job):
    text, console = screen()
    display = live.Display(5, console)
    display.show([job(1, {"best/top1": 0.25}), job(3, {})], 2)
    display.line("job 0 (seed=0): finished, top-1 50.00 %")
    display.close()
    lines = [line.strip() for line in text.getvalue().splitlines()]
    assert any("2 of 5 finished, 2 running" in line for line in lines)
    assert any("seed=1" in line and "25.00 %" in line for line in lines) and any("seed=3" in line for line in lines)
    assert any(line.endswith("job 0 (seed=0): finished, top-1 50.00 %") for line in lines)


def test_elsewhere_only_what_stays_is_printed(job):
    text, console = screen(terminal=False)
    display = live.Display(5, console)
    display.show([job(1, {})], 0)
    display.line("job 1 (seed=1) starts")
    display.close()
    assert text.getvalue() == "job 1 (seed=1) starts\n"
