"""`python -m experiments.report`: tables, spreads and curves against what was put in, in folders and in a real MLflow store."""

import csv
import dataclasses
import io
import json
import math
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from resnet import UserError
from resnet.report import __main__ as report
from resnet.report import groups, load, plots, published, tables, tracked

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"
LARS = ("recipe=resnet50_lars_8x", "data.dir=/shards", "cluster=hls1")
TOP1 = {1: 0.7571, 2: 0.7583, 3: 0.7566}  # by seed
SPEED = {1: 11812.34567890123, 2: 11901.5, 3: 12001.25}
MINUTES = {1: 74.5, 2: 73.25, 3: 72.125}
EVIL = '<script>alert(1)</script> | [x](http://evil) & "co" résumé'


@pytest.fixture(scope="module")
def runs(invent, tmp_path_factory):
    """A folder of runs: three seeds, another recipe on other cards, one that stopped on the way, a sweep, one of no recipe."""
    top = tmp_path_factory.mktemp("report") / "some runs"
    for seed in TOP1:
        invent(top / f"lars{seed}", (625, TOP1[seed], SPEED[seed], MINUTES[seed]), *LARS, f"seed={seed}")
    invent(top / "sgd", (625, 0.7641, 9800.0, 221.0), "recipe=resnet50_sgd_8x", "data.dir=/shards", "cluster=gpu1")
    killed = invent(
        top / "killed",
        (625, 0.766, 7312.2, 130.0),
        "recipe=resnet101_lars_8x",
        "data.dir=/shards",
        "cluster=hls1",
        reached=0.5,
    )
    with (killed.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99999, "time_ms": 17, "train/lo')
    for number, lr in enumerate((0.015, 0.03)):
        words = ("recipe=quickstart", f"optim.lr={lr}")
        invent(top / "sweep" / str(number), (44, 0.985 - 0.01 * number, 137.0, 1.9), *words)
    mine = invent(top / "mine", (5, 0.5, 105.0, 0.5), "model=resnet18", "epochs=4", "seed=7")
    text = (mine.out / "config.yaml").read_text()
    (mine.out / "config.yaml").write_text(re.sub("run_name: .*", lambda _: f"run_name: {json.dumps(EVIL)}", text))
    return top


@pytest.fixture(scope="module")
def made(runs):
    """The report of all of them; only read it."""
    out = runs.parent / "the report"
    report.go([str(runs), f"out={out}"])
    return out


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def row_of(made, **wanted):
    """The one row of runs.csv or spread.csv with these fields."""
    name = "spread.csv" if wanted.pop("spread", False) else "runs.csv"
    found = [row for row in rows(made / name) if wanted.items() <= row.items()]
    assert len(found) == 1, found
    return found[0]


def lines_of(made):
    """Cells of every line of the Markdown table."""
    text = (made / "report.md").read_text(encoding="utf-8")
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]


# ---------------------------------------------------------------------------------------------------------------- figures
def test_the_csv_has_what_was_recorded_to_the_last_digit(made):
    for seed in TOP1:
        row = row_of(made, recipe="resnet50_lars_8x", seed=str(seed))
        assert (float(row["top1"]), float(row["images_per_s"])) == (TOP1[seed], SPEED[seed])
        assert float(row["minutes"]) == MINUTES[seed]
        assert (row["model"], row["api"], row["status"]) == ("ResNet50", "LARS", "finished")
        assert (float(row["epochs"]), row["cards"], row["batch_per_card"]) == (38, "8", "256")


def test_mean_and_spread_over_seeds_are_numpys(made):
    row = row_of(made, recipe="resnet50_lars_8x", spread=True)
    assert row["runs"] == "3"
    for name, values in (("top1", TOP1), ("images_per_s", SPEED), ("minutes", MINUTES)):
        listed = list(values.values())
        assert float(row[f"{name}_mean"]) == pytest.approx(np.mean(listed), rel=1e-14)
        assert float(row[f"{name}_deviation"]) == pytest.approx(np.std(listed, ddof=1), rel=1e-12)
        assert row[f"{name}_count"] == "3"


def test_the_markdown_has_the_published_columns_and_the_published_row_beside_ours(made):
    lines = lines_of(made)
    assert lines[0] == [
        "run",
        "status",
        "model",
        "API",
        "epochs",
        "cards",
        "batch per card",
        "top-1, %",
        "images/s",
        "minutes to train",
    ]
    start = lines.index(["**recipe=resnet50_lars_8x**", *[""] * 9])
    theirs, first, _, _, mean = lines[start + 1 : start + 6]
    assert theirs == [
        "*Habana, release 0.13*",
        "",
        "ResNet50",
        "LARS",
        "38",
        "8",
        "256",
        "75.5 to 75.9",
        "11,956",
        "73",
    ]
    assert first[1:] == [
        "finished",
        "ResNet50",
        "LARS",
        "38",
        "8",
        "256",
        "75.71 (within)",
        "11,812.3 (-1.2 %)",
        "74.5 (+1.5)",
    ]
    assert mean[0] == "*mean of 3*"
    deviation = np.std(list(TOP1.values()), ddof=1) * 100
    assert mean[7] == f"{100 * np.mean(list(TOP1.values())):.2f} ± {deviation:.2f} (within)"


def test_a_difference_is_ours_less_the_published_one(made):
    row = row_of(made, recipe="resnet50_lars_8x", seed="2")
    assert float(row["difference_top1"]) == 0  # in 75.5 to 75.9
    assert float(row["difference_images_per_s_share"]) == pytest.approx(11901.5 / 11956 - 1)
    assert float(row["difference_minutes"]) == pytest.approx(0.25)
    row = row_of(
        made,
        recipe="quickstart",
        place=next(r["place"] for r in rows(made / "runs.csv") if r["place"].endswith("sweep/1")),
    )
    assert float(row["difference_top1"]) == pytest.approx(0.975 - 0.98)


def test_speed_is_not_held_beside_other_cards_nor_top1_beside_another_training(made):
    row = row_of(made, recipe="resnet50_sgd_8x")
    assert float(row["difference_top1"]) == pytest.approx(0.7641 - 0.7615)
    assert row["difference_images_per_s_share"] == row["difference_minutes"] == ""
    text = (made / "report.md").read_text()
    assert "images/s and minutes not compared: cards 1, not 8" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optim.lr=9"], ["optim.lr 9.0, not 9.5"]),
        (["seed=5", "log_every_steps=7", "cluster=local", "dtype=fp32"], []),
        (["eval_steps=3"], ["evaluated on 3 batches only"]),
        (
            ["mixup=0.2", "model.zero_init_residual=false"],
            ["model.zero_init_residual false, not true", "mixup 0.2, not 0.0"],
        ),
        (["data=digits", "batch=256"], ["optim.lr 2.5, not 9.5", "data digits, not imagenet", "batch 256, not 2048"]),
    ],
)
def test_what_makes_another_training_than_the_recipe_is_named(invent, tmp_path, words, told):
    words = [word for word in LARS if not {word} & {"data.dir=/shards"} or "data=digits" not in words] + words
    (run,) = load.trainings(invent(tmp_path / "run", (5, 0.75, 1.0, 1.0), *words).out)
    row = published.rows()["resnet50_lars_8x"]
    assert row.another_training(run) == told
    machine = ["cards 1, not 8", "dtype fp32, not bf16"] if "dtype=fp32" in words else []
    assert row.another_machine(run) == machine


def test_a_run_that_stopped_early_is_another_training(invent, tmp_path):
    made = invent(tmp_path / "run", (5, 0.75, 1.0, 1.0), *LARS, reached=0.5)
    (run,) = load.trainings(made.out)
    assert published.rows()["resnet50_lars_8x"].another_training(run) == ["stopped after 19 of 38 epochs"]


def test_a_run_that_went_on_after_its_end_has_not_ended(invent, tmp_path):
    out = invent(tmp_path / "run", (5, 0.5, 100.0, 10.0), "epochs=2").out
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "train/loss": 1.0, "train/epoch": 2.2}\n')
    (run,) = load.trainings(out)
    assert (run.status, run.top1, run.epochs) == ("unfinished", None, 2.2)


def test_a_run_that_did_not_end_well_is_told_by_the_note_in_its_folder(invent, tmp_path):
    out = invent(tmp_path / "run", (5, 0.5, 100.0, 10.0), "epochs=2", reached=0.5).out
    for noted, told in (("KILLED", "killed"), ("FAILED", "failed"), (None, "unfinished"), ("FINISHED", "unfinished")):
        (out / "mlflow.json").write_text(json.dumps({"uri": "http://x", "run_id": "5" * 32, "status": noted}))
        (run,) = load.trainings(out)
        assert (run.status, run.key) == (told, "5" * 32)


def test_figures_of_an_earlier_end_are_not_those_of_a_run_that_goes_on(runs):
    """In MLflow they stay with the run while it is RUNNING again."""
    (run,) = load.trainings(runs / "sgd")
    again = dataclasses.replace(run, status="running")
    assert (run.top1, run.images_per_s, run.minutes) == (0.7641, 9800.0, 221.0)
    assert (again.top1, again.images_per_s, again.minutes) == (None, None, None)


def test_a_copy_of_a_configuration_is_no_run(runs, tmp_path):
    (tmp_path / "artifacts").mkdir()
    shutil.copy(runs / "sgd" / "config.yaml", tmp_path / "artifacts")
    assert load.trainings(tmp_path) == []


def test_what_is_not_known_is_empty_and_never_0(made):
    row = row_of(made, recipe="resnet101_lars_8x")
    assert row["status"] == "unfinished" and float(row["epochs"]) == 19
    assert all(row[name] == "" for name in ("top1", "images_per_s", "minutes", "difference_top1"))
    row = row_of(made, recipe="resnet101_lars_8x", spread=True)
    assert (row["top1_mean"], row["top1_deviation"], row["top1_count"]) == ("", "", "0")
    assert next(line for line in lines_of(made) if line[1] == "unfinished")[7:] == ["", "", ""]
    assert row_of(made, seed="7")["published_top1_low"] == ""


def test_what_varies_is_told_and_only_that(made):
    settings = [row["settings"] for row in rows(made / "runs.csv") if row["recipe"] == "quickstart"]
    assert settings == ["optim.lr=0.015", "optim.lr=0.03"]
    assert row_of(made, recipe="resnet50_lars_8x", seed="1")["settings"] == ""


def test_a_run_in_several_starts_has_no_minutes(invent, tmp_path):
    out = invent(tmp_path / "resumed", (5, 0.5, 100.0, 10.0), "epochs=2").out
    told = json.loads((out / "result.json").read_text())
    (out / "result.json").write_text(json.dumps({**told, "final/training_minutes": 25.0}))
    (run,) = load.trainings(out)
    assert run.minutes is None and run.top1 == 0.5
    assert "several starts" in " ".join(tables.remarks(run))


# ----------------------------------------------------------------------------------------------------------------- curves
def test_the_curves_are_what_was_recorded(runs, made):
    lines = [json.loads(line) for line in (runs / "sgd" / "metrics.jsonl").read_text().splitlines()]
    for metric in ("train/loss", "eval/top1", "eval/loss"):
        wanted = [(line["step"], line[metric]) for line in lines if metric in line]
        found = [
            row for row in rows(made / "curves.csv") if (row["place"], row["metric"]) == (str(runs / "sgd"), metric)
        ]
        assert [(int(row["step"]), float(row["value"])) for row in found] == wanted
        assert all(float(row["epoch"]) == pytest.approx(int(row["step"]) / 625) for row in found)
        assert all(int(row["images"]) == int(row["step"]) * 2048 for row in found)


def test_of_a_step_taken_twice_the_later_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "train/loss": loss}) + "\n" for step, loss in ((1, 9), (2, 8), (1, 7)))
    )
    assert load.curves(path) == {"train/loss": [(1, 7.0), (2, 8.0)]}


def ticks(svg, anchor):
    """(value, position) of the labels of an axis, as they are drawn."""
    found = [one for one in svg.iter(f"{SVG}text") if one.get("class") == "tick" and one.get("text-anchor") == anchor]
    return [(float(one.text.replace(",", "")), float(one.get("x" if anchor == "middle" else "y"))) for one in found]


def drawn(svg):
    """[n, 2] epochs and values of each line, read off the picture by the labels of its axes."""
    across, up = np.array(ticks(svg, "middle")), np.array(ticks(svg, "end")) - [0, 4]  # a label stands 4 below its line
    curves = []
    for path in svg.iter(f"{SVG}path"):
        if path.get("class").startswith("line") and "h26" not in path.get("d"):
            points = np.array([point.split() for point in path.get("d")[1:].split("L")], float)
            x = np.polyval(np.polyfit(across[:, 1], across[:, 0], 1), points[:, 0])
            curves.append(np.stack([x, np.polyval(np.polyfit(up[:, 1], up[:, 0], 1), points[:, 1])], 1))
    return curves


def test_a_picture_shows_the_curve_at_its_place(runs, made):
    (path,) = [path for path in (made / "curves").glob("*-top1.svg") if "resnet50-sgd-b2048" in path.name]
    (curve,) = drawn(ET.parse(path).getroot())
    lines = [json.loads(line) for line in (runs / "sgd" / "metrics.jsonl").read_text().splitlines()]
    wanted = np.array([(line["step"] / 625, 100 * line["eval/top1"]) for line in lines if "eval/top1" in line])
    assert len(wanted) == 90
    np.testing.assert_allclose(curve, wanted, atol=0.25)  # a tenth of a unit of 250 to 80 points of top-1


def test_the_overlay_has_a_line_for_each_configuration_and_the_mean_of_its_seeds(runs, made):
    svg = ET.parse(made / "top1.svg").getroot()
    curves = drawn(svg)
    assert len(curves) == len(rows(made / "spread.csv")) == 6
    seeds = []
    for seed in TOP1:
        lines = [json.loads(line) for line in (runs / f"lars{seed}" / "metrics.jsonl").read_text().splitlines()]
        seeds.append([100 * line["eval/top1"] for line in lines if "eval/top1" in line])
    lars = next(curve for curve in curves if len(curve) == 38)
    np.testing.assert_allclose(lars[:, 1], np.mean(seeds, 0), atol=0.3)
    assert len([path for path in svg.iter(f"{SVG}path") if path.get("class").startswith("band")]) == 1
    labels = [one.text for one in svg.iter(f"{SVG}text")]
    assert "resnet50_lars_8x (3 seeds: mean ± deviation)" in labels and "quickstart optim.lr=0.015" in labels


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.7, 76.3), (1e-4, 2e-4), (-3, 1e6), (5, 5), (0, 0), (0.1, 0.1 + 1e-17)]
)
def test_an_axis_holds_its_values_between_round_ticks(low, high):
    axis = plots.axis(low, high, 10, 110, 5)
    assert axis.ticks[0] <= low <= high <= axis.ticks[-1] and 2 <= len(axis.ticks) <= 9
    steps = np.diff(axis.ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert round(steps[0] / 10 ** math.floor(math.log10(steps[0] * 1.000001)), 6) in (1, 2, 5)
    assert (axis.at(axis.low), axis.at(axis.high)) == (10, 110)


def test_a_long_line_keeps_its_ends_and_extremes():
    values = np.random.default_rng(3).normal(0, 1, 50_000)
    values[12_345], values[34_567] = 99, -99
    points = list(enumerate(values.tolist()))
    kept = plots.thinned(points)
    assert len(kept) <= 1600 and set(kept) <= set(points) and kept == sorted(kept)
    assert {points[0], points[-1], points[12_345], points[34_567]} <= set(kept)
    assert plots.thinned(points[:1600]) == points[:1600]


# ------------------------------------------------------------------------------------------------------------------- page
class Page(HTMLParser):
    """Tags, attributes, text by tag, and the cells of each table row."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.rows, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append((dict(attrs).get("class"), []))
        if tag in ("td", "th"):
            self.rows[-1][1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][1][-1] += f" {data}" if self.rows[-1][1][-1] else data


@pytest.fixture(scope="module")
def page(made):
    return Page((made / "report.html").read_text(encoding="utf-8"))


def test_the_page_has_the_table_and_every_curve(page):
    assert [kind for kind, _ in page.rows].count("run") == 8
    mean = next(cells for kind, cells in page.rows if kind == "mean")
    assert mean[0] == "mean of 3" and mean[7] == "75.73 ± 0.09 within"
    assert page.tags.count("svg") == 2 + 2 * 2 + 2 * 8  # all, the two recipes of several runs, each run
    lines = [value for name, value in page.attributes if name == "d" and "L" in value]
    assert len(lines) >= 2 * 6 + 2 * 8 and not any("nan" in value or "inf" in value for value in lines)


def test_the_page_needs_nothing_beside_it_and_names_are_no_markup(page, made):
    text = (made / "report.html").read_text(encoding="utf-8")
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(page.tags)
    assert not {"src", "href", "xlink:href", "onload", "style"} & {name for name, _ in page.attributes}
    addresses = [(name, value) for name, value in page.attributes if "http" in (value or "")]
    assert {name for name, _ in addresses} == {"xmlns", "aria-label"}
    assert {value for name, value in addresses if name == "xmlns"} == {"http://www.w3.org/2000/svg"}
    assert "url(" not in text and "@import" not in text and "<script" not in text
    assert EVIL[1:] in next(cells[0] for kind, cells in page.rows if kind == "run" and "alert" in cells[0])
    assert "prefers-color-scheme: dark" in text


def test_names_are_no_markup_in_markdown_and_pictures_either(made):
    text = (made / "report.md").read_text(encoding="utf-8")
    assert r"\<script\>alert(1)\</script\> \| \[x\](http://evil)" in text
    assert len({len(line) for line in lines_of(made)}) == 1
    for path in [*made.glob("*.svg"), *(made / "curves").glob("*.svg")]:
        tags = {one.tag.removeprefix(SVG) for one in ET.parse(path).getroot().iter()}
        assert tags <= {"svg", "style", "rect", "text", "path", "title", "circle"}, path
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+", path.name) for path in (made / "curves").iterdir())


# ----------------------------------------------------------------------------------------------------------------- MLflow
@pytest.fixture(scope="module")
def stored(invent, ship, tmp_path_factory):
    """(uri, ids by name): the LARS runs, a sweep with its parent, a killed run, and something that is no training."""
    from resnet.track import store

    folder = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = store.connect(uri)
    first, second = client.create_experiment("resnet"), client.create_experiment("it's others")
    ids = {"parent": client.create_run(first, run_name="sweep", tags={"sweep": "parent"}).info.run_id}
    for seed in TOP1:
        out = folder / "runs" / str(seed)
        made = invent(out, (625, TOP1[seed], SPEED[seed], MINUTES[seed]), *LARS, f"seed={seed}")
        ids[seed] = ship(client, first, made, "resnet50 lars b2048", recipe="resnet50_lars_8x")
        (out / "mlflow.json").write_text(json.dumps({"uri": uri, "run_id": ids[seed]}))
    for number, lr in enumerate((0.015, 0.03)):
        made = invent(folder / "sweep" / str(number), (44, 0.98, 137.0, 1.9), "recipe=quickstart", f"optim.lr={lr}")
        ids[f"job{number}"] = ship(client, first, made, f"job {number}", **{"mlflow.parentRunId": ids["parent"]})
    made = invent(folder / "dead", (44, 0.9, 100.0, 2.0), "recipe=quickstart", "seed=5", reached=0.5)
    ids["dead"] = ship(client, second, made, "dead", status="KILLED")
    ids["alien"] = client.create_run(second, run_name="of another program").info.run_id
    return uri, ids, folder


def names(found):
    return [run.name for run in found]


def test_an_experiment_is_all_its_trainings_and_not_the_parent_of_a_sweep(stored):
    uri, _, _ = stored
    assert sorted(names(tracked.trainings(["resnet"], uri))) == ["job 0", "job 1", *["resnet50 lars b2048"] * 3]
    (dead,) = tracked.trainings(["it's others"], uri)
    assert (dead.status, dead.top1, dead.minutes) == ("killed", None, None)
    assert dead.epochs == 5 and dead.curves["eval/top1"]


def test_a_run_id_is_that_run_and_a_sweeps_is_its_jobs(stored):
    uri, ids, _ = stored
    assert names(tracked.trainings([ids["job1"], ids["dead"]], uri)) == ["job 1", "dead"]
    assert sorted(names(tracked.trainings([ids["parent"]], uri))) == ["job 0", "job 1"]


def test_a_run_gives_the_same_from_mlflow_and_from_its_folder_and_counts_once(stored, tmp_path):
    uri, ids, folder = stored
    one, other = tmp_path / "one", tmp_path / "other"
    report.go([str(folder / "runs"), f"out={one}"])
    report.go([*(ids[seed] for seed in TOP1), f"out={other}", f"uri={uri}"])

    def without_place(path):
        return [{name: value for name, value in row.items() if name != "place"} for row in rows(path)]

    for name in ("runs.csv", "spread.csv", "curves.csv"):
        assert without_place(one / name) == without_place(other / name)
    assert float(rows(other / "spread.csv")[0]["top1_mean"]) == pytest.approx(np.mean(list(TOP1.values())))
    report.go([str(folder / "runs"), str(folder / "runs" / "2"), ids[1], f"out={other}", f"uri={uri}"])
    assert len(rows(other / "runs.csv")) == 3


def test_a_store_can_be_named_by_its_file(stored):
    _, ids, folder = stored
    assert len(report.trainings([ids[1]], str(folder / "mlflow.db"))) == 1


# ----------------------------------------------------------------------------------------------------------------- errors
def refused(*words):
    """The one line that `go` refuses these words with."""
    with pytest.raises(UserError) as caught:
        report.go(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_in_no_store_is_told_with_what_there_is(stored, tmp_path):
    uri, ids, _ = stored
    out = f"out={tmp_path / 'report'}"
    assert "did you mean resnet? There are:" in refused("resnt", f"uri={uri}", out)
    assert "no such run" in refused("0" * 32, f"uri={uri}", out)
    assert "nothing in it is a training" in refused(ids["alien"], f"uri={uri}", out)
    assert not (tmp_path / "report").exists()


def test_a_store_that_does_not_answer_is_told_without_its_password(tmp_path):
    told = refused("resnet", "uri=http://me:secret@127.0.0.1:9", f"out={tmp_path / 'report'}")
    assert told.startswith("uri=http://127.0.0.1:9: MLflow does not answer") and "secret" not in told


def test_runs_that_are_not_there_or_cannot_be_read_are_told(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("./nothing") == "./nothing: no such folder"
    assert refused("resnet").startswith("uri=sqlite:///mlflow.db: no such file; give uri=")
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "empty").mkdir()
    assert refused("./empty").startswith("./empty: no run in this folder")
    shutil.copytree(runs / "mine", tmp_path / "torn")
    (tmp_path / "torn" / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": 2}\n{"step": \n{"step": 3, "train/loss": 1}\n'
    )
    assert "metrics.jsonl: line 2 is not a record" in refused("./torn")
    shutil.copy(runs / "mine" / "metrics.jsonl", tmp_path / "torn")
    (tmp_path / "torn" / "result.json").write_text('{"status"')
    assert "result.json: cannot be read as JSON" in refused("./torn")
    (tmp_path / "torn" / "config.yaml").write_text("model: [")
    assert "config.yaml: cannot be read as YAML" in refused("./torn")
    assert refused(str(runs), "colour=red").startswith("colour: experiments.report has no such knob")


def test_out_is_refused_where_it_would_take_something_away(runs, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("dear diary")
    assert (
        refused(str(runs), f"out={mine}")
        == f"out={mine}: holds notes.txt, which is no part of a report; give another folder"
    )
    assert refused(str(runs), f"out={mine / 'notes.txt'}").endswith("is a file; give a folder")
    assert "cannot be written to" in refused(str(runs), f"out={mine / 'notes.txt' / 'report'}")
    made = tmp_path / "made"
    report.go([str(runs / "mine"), f"out={made}"])
    (made / "curves" / "mine.txt").touch()
    assert "holds curves/mine.txt" in refused(str(runs), f"out={made}")
    monkeypatch.chdir(mine)
    assert "the working folder is in it" in refused(str(runs), f"out={tmp_path}")
    assert (mine / "notes.txt").read_text() == "dear diary"


def test_a_report_is_replaced_whole_or_stays_as_it_was(runs, tmp_path, monkeypatch):
    out = tmp_path / "deep" / "report"
    report.go([str(runs / "lars1"), f"out={out}", "title=The first"])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with monkeypatch.context() as broken:

        def full(*_words, **_more):
            raise OSError(28, "No space left on device")

        broken.setattr(Path, "write_text", full)
        assert "No space left on device" in refused(str(runs), f"out={out}")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    report.go([str(runs / "sgd"), f"out={out}", "title=The second"])
    assert "The second" in (out / "report.html").read_text() and len(rows(out / "runs.csv")) == 1
    assert [path.name for path in out.parent.iterdir()] == ["report"]


# -------------------------------------------------------------------------------------------------------------- published
# Copied from the published tables, not from the program: recipe -> (API, epochs, cards, batch, top-1, images/s, minutes).
TABLE = {
    "resnet50_keras_sgd_1x": ("Keras SGD", 90, 1, 256, (0.7615, 0.7615), 1670, None),
    "resnet50_sgd_1x": ("SGD", 90, 1, 256, (0.764, 0.764), 1554, None),
    "resnet50_lars_1x": ("LARS", 38, 1, 256, (None, None), 1519, None),
    "resnet50_sgd_8x": ("SGD", 90, 8, 256, (0.756, 0.7615), 11801.3, 173),
    "resnet50_lars_8x": ("LARS", 38, 8, 256, (0.755, 0.759), 11956, 73),
    "resnet101_sgd_8x": ("SGD", 90, 8, 256, (None, None), 7399.5, None),
    "resnet101_lars_8x": ("LARS", 38, 8, 256, (0.766, 0.766), 7312.2, 127),
    "resnet152_sgd_8x": ("SGD", 90, 8, 256, (None, None), 5279.5, None),
    "resnet152_lars_8x": ("LARS", 38, 8, 256, (0.773, 0.773), 4444.4, 208),
}


@pytest.mark.parametrize("recipe", TABLE)
def test_the_published_rows_are_the_published_tables(recipe):
    row = published.rows()[recipe]
    told = (row.api, row.epochs, row.cards, row.batch_per_card, (row.low, row.high), row.images_per_s, row.minutes)
    assert told == TABLE[recipe]
    assert row.model == "ResNet" + re.match(r"resnet(\d+)", recipe)[1]


def test_every_published_row_has_its_recipe_and_stands_in_the_ledger():
    recipes = {path.stem for path in (ROOT / "experiments" / "recipe").glob("*.yaml")}
    found = published.rows()
    assert recipes - set(found) == {"finetune_folder", "resnet50_250ep_8x"}  # of which nothing was published
    assert set(found) <= recipes
    ledger = (ROOT / "experiments" / "README.md").read_text()
    for recipe, row in found.items():
        target = re.search(rf"^\| `{recipe}` \| [^|]+\| ([^|]+) \|", ledger, re.M)[1]
        ends = [end for end in (row.low, row.high) if end is not None]
        if recipe == "resnet50_sgd_cosine":
            assert target.startswith("77.0 +- 0.15") and ends == [0.7685, 0.7715]
        else:
            assert bool(ends) != target.startswith("none published")
            assert all(f"{100 * end:g}" in target for end in ends), (recipe, target)


@pytest.mark.parametrize(
    "recipe", [name for name, row in TABLE.items()] + ["quickstart", "quickstart_fast", "resnet50_lars_64k"]
)
def test_a_recipe_as_it_is_counts_as_the_published_training(invent, tmp_path, recipe):
    words = () if recipe.startswith("quickstart") else ("data.dir=/shards",)
    made = invent(tmp_path / "run", (2, 0.75, 1000.0, 10.0), f"recipe={recipe}", *words)
    (run,) = load.trainings(made.out)
    assert published.rows()[recipe].another_training(run) == []


# ---------------------------------------------------------------------------------------------------------------- command
def test_the_command_from_a_checkout_loads_neither_tensorflow_nor_for_folders_mlflow(runs, tmp_path):
    code = (
        "import runpy, sys; sys.argv[1:] = sys.argv[2:]\n"
        "try: runpy.run_module('experiments.report', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "print(*{'tensorflow', 'mlflow', 'matplotlib'} & set(sys.modules))"
    )
    words = [sys.executable, "-c", code, "-", str(runs), f"out={tmp_path / 'made here'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told, loaded = done.stdout.splitlines()
    assert told.startswith("8 runs of 6 configurations: ") and loaded == ""
    assert (tmp_path / "made here" / "report.html").is_file()


def test_help_and_errors_of_the_command(tmp_path):
    def said(*words):
        return subprocess.run(
            [sys.executable, "-m", "experiments.report", *words], cwd=ROOT, capture_output=True, text=True
        )

    helped = said("--help")
    assert helped.returncode == 0 and all(word in helped.stdout for word in ("out=report", "uri=", "title=", "WHAT"))
    wrong = said("./no/such/folder", f"out={tmp_path / 'r'}")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == "error: ./no/such/folder: no such folder\n"


def test_csv_of_nothing_is_empty():
    assert list(csv.DictReader(io.StringIO(tables.runs_csv(groups.groups([], {}))))) == []
