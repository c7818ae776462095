"""What a person sees."""

import dataclasses
import io
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from resnet.config.cluster import Cluster, Device
from resnet.config.data import Cache, Records, Synthetic
from resnet.config.model import Block, Dtype, Model, Policy
from resnet.config.optim import Lars, LarsRow, Sgd
from resnet.config.run import Run
from resnet.config.schedule import Constant
from resnet.config.track import Mlflow, Off
from resnet.training import progress
from resnet.training.evaluation import EvalResult

RESULT = EvalResult(0.9812, 0.9999, 0.12345, 50_000)


@pytest.fixture
def plain():
    """(display, what it has printed so far) of 100 steps where there is no terminal."""
    file = io.StringIO()
    return progress.Display(100, 5.0, Console(file=file, width=60, highlight=False, soft_wrap=True)), file.getvalue


@pytest.fixture
def live():
    """(display, what it has printed so far) on a terminal."""
    file = io.StringIO()
    display = progress.Display(100, 5.0, Console(file=file, width=120, force_terminal=True, color_system=None))
    yield display, file.getvalue
    display.close()


def test_elsewhere_than_on_a_terminal_every_step_is_a_plain_line(plain):
    display, printed = plain
    display.advance(10)
    display.train_line(50, 2.5, 1.23456, 0.125, 1234.56)
    assert printed().startswith("step 50/100  epoch 2.50/5  loss 1.2346  lr 0.125  1,234.6 images/s  left 0:00:0")
    assert printed().count("\n") == 1 and "\x1b" not in printed()


def test_the_share_of_waiting_for_data_is_shown_where_it_is_worth_a_word(plain):
    display, printed = plain
    display.train_line(50, 2.5, 1.0, 0.1, 1000.0, 0.123)
    display.train_line(51, 2.5, 1.0, 0.1, 1000.0, 0.04)
    assert printed().count("waiting for data") == 1 and "1,000.0 images/s  12% waiting for data" in printed()


def test_the_first_step_has_no_speed_yet(plain):
    display, printed = plain
    display.advance(11)
    display.train_line(11, 0.55, 2.3, 0.0, None)
    assert "images/s" not in printed() and "left" not in printed() and "loss 2.3000  lr 0\n" in printed()


def test_the_time_left_counts_from_the_end_of_the_first_call_of_this_start(plain, monkeypatch):
    """The first call traces the graph: 960 s here, which say nothing about the steps after it."""
    display, printed = plain
    now = iter([1000.0, 1040.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    for step in (10, 30, 50):  # the first is the one that counts
        display.advance(step)
    display.train_line(50, 2.5, 1.0, 0.1, 1.0)  # 40 steps in 40 s: 50 more take 50 s
    assert printed().splitlines()[0].endswith("left 0:00:50")


def test_without_a_step_after_the_first_call_no_time_is_left_to_tell(plain):
    display, printed = plain
    display.train_line(10, 0.5, 1.0, 0.1, 1.0)  # not even that: no division by zero
    display.advance(10)
    display.train_line(10, 0.5, 1.0, 0.1, 1.0)
    assert "left" not in printed() and printed().count("\n") == 2


def test_moving_the_bar_prints_nothing_where_there_is_none(plain):
    display, printed = plain
    display.advance(11)
    display.close()
    assert printed() == ""


def test_an_evaluation_is_a_line_that_stays_and_that_of_averaged_weights_another(plain, live):
    for display, printed in (plain, live):
        display.evaluation_lines(100, 5.0, RESULT, EvalResult(0.5, 0.9, 2.0, 50_000))
        assert "epoch 5  step 100  top-1 98.12 %  top-5 99.99 %  loss 0.1235  (50,000 images)" in printed()
        assert "epoch 5  step 100  averaged weights: top-1 50.00 %  top-5 90.00 %  loss 2.0000" in printed()


def test_on_a_terminal_a_bar_shows_epoch_step_loss_lr_and_speed(live):
    display, printed = live
    display.train_line(50, 2.5, 1.23456, 0.125, 1234.56)
    display.close()
    assert "epoch 2.5/5" in printed() and "50/100" in printed()
    assert "loss 1.2346  lr 0.125  1,234.6 images/s" in printed()


def test_closing_gives_the_terminal_back_and_lines_may_follow(live):
    display, printed = live
    display.advance(20)
    display.close()
    assert printed().endswith("\x1b[2K") or "\x1b[?25h" in printed()  # the cursor shows again
    display.print("after")
    display.close()
    assert printed().rstrip().endswith("after")


def test_text_is_printed_letter_by_letter(plain):
    display, printed = plain
    for text in ("runs/[bold]x[/bold]", "[/red]", ":fire:", "x" * 200, "1 2.5 'a' None"):
        display.print(text)
        assert printed().splitlines()[-1] == text


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00:00"), (59.6, "0:01:00"), (3599, "0:59:59"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_time_is_told_in_hours_minutes_and_seconds(seconds, shown):
    assert progress.clock(seconds) == shown


# ------------------------------------------------------------------------------------------------------------ headline
def run(optim, batch=256):
    return Run(
        model=Model(name="resnet50", block=Block.bottleneck, depths=[3, 4, 6, 3]),
        optim=optim,
        schedule=Constant(),
        dtype=Dtype(name="bf16", policy=Policy.mixed_bfloat16),
        data=Synthetic(classes=10, image_size=24),
        cluster=Cluster(name="local", device=Device.cpu),
        track=Off(),
        out="/runs/[x]",
        batch=batch,
    )


PLAN = SimpleNamespace(total_steps=12_345, steps_per_epoch=1000, epoch=lambda step: step / 1000)
SOURCE = SimpleNamespace(train_images=1_281_167, eval_images=50_000)


def headline(run, step=0):
    return "\n".join(progress.headline(run, PLAN, SOURCE, "a card", step))


def test_the_headline_says_what_is_about_to_happen_and_on_what():
    text = headline(run(Sgd(lr=0.128)))
    for part in (
        "resnet50",
        "sgd",
        "constant",
        "bf16",
        "batch 256 on a card",
        "1,281,167 training",
        "50,000 evaluation",
    ):
        assert part in text
    assert "10 classes, 24 px" in text and "12,345 steps, 1,000 to the epoch, peak lr 0.128" in text
    assert "/runs/[x]" in text
    assert "resuming" not in text


def test_the_headline_says_where_a_run_goes_on():
    assert "resuming at step 2,500, epoch 2.50" in headline(run(Sgd(lr=0.1)), step=2500)


def test_the_headline_says_where_the_cache_is_and_whether_all_has_room():
    half = SimpleNamespace(length=np.array([20e9]))
    reader = SimpleNamespace(disk=SimpleNamespace(folder="/scratch/blocks"))
    source = SimpleNamespace(train=half, val=half, train_reader=reader)
    settings = Records(classes=10, dir="s3://bucket/x", cache=Cache.disk)
    assert progress.cached(settings, source) == ["data.cache=disk: at most 100 GB in /scratch/blocks"]
    settings.cache_gb = 30.0
    (line,) = progress.cached(settings, source)
    assert line.endswith("30 GB in /scratch/blocks, and the shards have 40 GB: some is read again")


ROWS = [LarsRow(up_to=256, lr=2.5, source="one card"), LarsRow(up_to=None, lr=9.5, source="a paper")]


@pytest.mark.parametrize(
    ("batch", "lr", "said"),
    [
        (256, 2.5, "the row of global batches up to 256 (one card)"),
        (257, 9.5, "the row of global batches above all others (a paper)"),
    ],
)
def test_the_headline_says_which_row_lars_took(batch, lr, said):
    lines = progress.headline(run(Lars(lr=lr, rows=ROWS), batch), PLAN, SOURCE, "a card", 0)
    assert [said in line for line in lines].count(True) == 1


def test_the_headline_names_no_row_when_the_lr_is_ones_own():
    assert "the row of" not in headline(run(Lars(lr=1.0, rows=ROWS)))
    assert "the row of" not in headline(run(Lars(lr=1.0)))
    assert "the row of" not in headline(run(Sgd(lr=2.5)))


# -------------------------------------------------------------------------------------------------------------- report
CONTENT = {
    "final/top1": 0.98123,
    "eval/top5": 0.9999,
    "final/images_per_s": 1234.56,
    "final/images_per_s_median": 1300.0,
    "final/training_minutes": 2.54,
    "final/minutes": 3.04,
    "out": "/runs/x",
}


def report(capsys, uri=None, **other):
    track = Mlflow(uri=uri, run_name="x") if uri else Off()
    progress.report({**CONTENT, **other}, dataclasses.replace(run(Sgd(lr=0.1)), track=track))
    return capsys.readouterr().out


def test_the_report_has_the_figures_of_the_end(capsys):
    text = report(capsys)
    for parts in (["top-1", "98.12 %"], ["top-5", "99.99 %"], ["images/s", "1,234.6", "1,300.0"], ["run", "/runs/x"]):
        assert [all(part in line for part in parts) for line in text.splitlines()].count(True) == 1
    assert "2.5 of training, 3.0 in all" in text
    assert "Compare" not in text


def test_the_report_says_what_was_not_measured(capsys):
    nothing = {name: None for name in CONTENT if name not in ("out", "final/training_minutes", "final/minutes")}
    text = report(capsys, **nothing)
    assert text.count("not evaluated") == 2 and "None" not in text


@pytest.mark.parametrize("out", ["/runs/[bold]x[/bold]", "/x/[/red]", "/" + "long/" * 40 + "end", "/it's a :fire:"])
def test_the_report_has_the_folder_in_one_piece_to_copy(capsys, monkeypatch, out):
    monkeypatch.setenv("COLUMNS", "80")
    assert out in report(capsys, out=out)


def test_the_report_ends_with_the_command_that_opens_mlflow(capsys):
    uri = "sqlite:////my runs/mlflow.db"
    last = report(capsys, uri).splitlines()[-1]
    command = last.partition(": ")[2]
    assert shlex.split(command) == ["mlflow", "ui", "--backend-store-uri", uri]
    assert report(capsys, "http://127.0.0.1:5000").splitlines()[-1].endswith(" http://127.0.0.1:5000")


def test_the_first_lines_say_which_store_counts_if_mlflows_own_variable_names_one(monkeypatch):
    settings = Mlflow(uri="http://host:5000", run_name="x", experiment="birds")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert progress.tracking(settings) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pass@word@host:5000")
    assert progress.tracking(settings) == ["MLflow: http://host:5000 (from MLFLOW_TRACKING_URI), experiment birds"]
    assert progress.tracking(Off()) == ["MLFLOW_TRACKING_URI=http://host:5000 is not used: track=off"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    (line,) = progress.tracking(settings)
    assert "track.uri counts; MLFLOW_TRACKING_URI=http://other is not used" in line
