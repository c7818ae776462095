"""`python -m experiments.report`: tables, spreads and curves against what was put in, of runs in folders."""

import base64
import csv
import json
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
from resnet.report import plots

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
    report.write([str(runs), f"out={out}"])
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


# -------------------------------------------------------------------------------------------------------------- figures
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
    header = "run|status|model|API|epochs|cards|batch per card|top-1, %|images/s|minutes to train"
    assert lines[0] == header.split("|")
    start = lines.index(["**recipe=resnet50_lars_8x**", *[""] * 9])
    theirs, first, _, _, mean = lines[start + 1 : start + 6]
    what = ["ResNet50", "LARS", "38", "8", "256"]
    assert theirs == ["*Habana, release 0.13*", "", *what, "75.5 to 75.9", "11,956", "73"]
    assert first[1:] == ["finished", *what, "75.71 (within)", "11,812.3 (-1.2 %)", "74.5 (+1.5)"]
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


def test_what_is_not_known_is_empty_and_never_0(made):
    row = row_of(made, recipe="resnet101_lars_8x")
    assert row["status"] == "unfinished" and float(row["epochs"]) == 19
    assert all(row[name] == "" for name in ("top1", "images_per_s", "minutes", "difference_top1"))
    row = row_of(made, recipe="resnet101_lars_8x", spread=True)
    assert (row["top1_mean"], row["top1_deviation"], row["top1_count"]) == ("", "", "0")
    assert next(line for line in lines_of(made) if line[1] == "unfinished")[7:] == ["", "", ""]
    assert row_of(made, seed="7")["published_top1_low"] == ""
    assert {row["published_cards"] for row in rows(made / "runs.csv")} == {"8", "1", ""}


def test_what_varies_is_told_and_only_that(made):
    settings = [row["settings"] for row in rows(made / "runs.csv") if row["recipe"] == "quickstart"]
    assert settings == ["optim.lr=0.015", "optim.lr=0.03"]
    assert row_of(made, recipe="resnet50_lars_8x", seed="1")["settings"] == ""


# --------------------------------------------------------------------------------------------------------------- curves
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


def ticks(svg, axis):
    """[n, 2] values and positions of the labels of an axis, as they are drawn."""
    marks = [one for one in svg.iter(f"{SVG}g") if (one.get("id") or "").startswith(f"{axis}tick")]
    texts = [next(mark.iter(f"{SVG}text")).text.replace("\N{MINUS SIGN}", "-") for mark in marks]
    places = [next(mark.iter(f"{SVG}use")).get(axis) for mark in marks]
    return np.array([texts, places], float).T


def drawn(svg):
    """[n, 2] epochs and values of each line, read off the picture by the labels of its axes."""
    curves = []
    scales = [np.polyfit(axis[:, 1], axis[:, 0], 1) for axis in (ticks(svg, "x"), ticks(svg, "y"))]
    for path in svg.iter(f"{SVG}path"):
        if path.get("clip-path") and any(f"stroke: {colour}" in path.get("style") for colour in plots.COLOURS):
            points = np.array([point.split() for point in re.split("[ML]", path.get("d"))[1:]], float)
            curves.append(np.stack([np.polyval(scale, points[:, n]) for n, scale in enumerate(scales)], 1))
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
    assert len([one for one in svg.iter() if "FillBetween" in (one.get("id") or "")]) == 1
    labels = [one.text for one in svg.iter(f"{SVG}text")]
    assert "resnet50_lars_8x (3 seeds: mean ± deviation)" in labels and "quickstart optim.lr=0.015" in labels


# ----------------------------------------------------------------------------------------------------------------- page
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


def images(page):
    """The charts in it."""
    sources = [value for name, value in page.attributes if name == "src"]
    return [ET.fromstring(base64.b64decode(source.removeprefix("data:image/svg+xml;base64,"))) for source in sources]


@pytest.fixture(scope="module")
def page(made):
    return Page((made / "report.html").read_text(encoding="utf-8"))


def test_the_page_has_the_table_and_every_curve(page):
    assert [kind for kind, _ in page.rows].count("run") == 8
    mean = next(cells for kind, cells in page.rows if kind == "mean")
    assert mean[0] == "mean of 3" and mean[7] == "75.73 ± 0.09 within"
    charts = images(page)
    assert len(charts) == 2 + 2 * 2 + 2 * 8  # all, the two recipes of several runs, each run
    assert sum(len(drawn(chart)) for chart in charts) >= 2 * 6 + 2 * 8
    lines = [path.get("d") for chart in charts for path in chart.iter(f"{SVG}path")]
    assert not any("nan" in line or "inf" in line for line in lines)


def test_the_page_needs_nothing_beside_it_and_names_are_no_markup(page, made):
    text = (made / "report.html").read_text(encoding="utf-8")
    assert not {"script", "link", "iframe", "object", "use"} & set(page.tags)
    assert not {"href", "xlink:href", "onload", "style"} & {name for name, _ in page.attributes}
    assert all(value.startswith("data:image/svg+xml;base64,") for name, value in page.attributes if name == "src")
    assert {name for name, value in page.attributes if "http" in (value or "")} == {"alt"}
    assert "url(" not in text and "@import" not in text and "<script" not in text
    assert EVIL[1:] in next(cells[0] for kind, cells in page.rows if kind == "run" and "alert" in cells[0])


def test_names_are_no_markup_in_markdown_and_pictures_either(made):
    text = (made / "report.md").read_text(encoding="utf-8")
    assert r"\<script\>alert(1)\</script\> \| \[x\](http://evil)" in text
    assert len({len(line) for line in lines_of(made)}) == 1
    for path in [*made.glob("*.svg"), *(made / "curves").glob("*.svg")]:
        parts = list(ET.parse(path).getroot().iter())
        tags = {one.tag.removeprefix(SVG) for one in parts}
        assert tags <= {"svg", "defs", "style", "clipPath", "g", "rect", "text", "path", "use"}, path
        links = [value for one in parts for name, value in one.items() if name.endswith("href") or "url(" in value]
        assert links and all(re.fullmatch(r"#\w+|url\(#\w+\)", link) for link in links)
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+", path.name) for path in (made / "curves").iterdir())


# --------------------------------------------------------------------------------------------------------------- errors
def refused(*words):
    """The one line that the command refuses these words with."""
    with pytest.raises(UserError) as caught:
        report.write(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_runs_that_are_not_there_or_cannot_be_read_are_told(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("./nothing") == "./nothing: no such folder"
    assert refused("resnet").startswith("uri=sqlite:///mlflow.db: no such file; give uri=")
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "empty").mkdir()
    assert refused("./empty").startswith("./empty: no run in this folder")
    shutil.copytree(runs / "mine", tmp_path / "torn")
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
    report.write([str(runs / "mine"), f"out={made}"])
    (made / "curves" / "mine.txt").touch()
    assert "holds curves/mine.txt" in refused(str(runs), f"out={made}")
    monkeypatch.chdir(mine)
    assert "the working folder is in it" in refused(str(runs), f"out={tmp_path}")
    assert (mine / "notes.txt").read_text() == "dear diary"


def test_a_report_is_replaced_whole_or_stays_as_it_was(runs, tmp_path, monkeypatch):
    out = tmp_path / "deep" / "report"
    report.write([str(runs / "lars1"), f"out={out}", "title=The first"])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with monkeypatch.context() as broken:

        def full(*_words, **_more):
            raise OSError(28, "No space left on device")

        broken.setattr(Path, "write_text", full)
        assert "No space left on device" in refused(str(runs), f"out={out}")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    report.write([str(runs / "sgd"), f"out={out}", "title=The second"])
    assert "The second" in (out / "report.html").read_text() and len(rows(out / "runs.csv")) == 1
    assert [path.name for path in out.parent.iterdir()] == ["report"]


# -------------------------------------------------------------------------------------------------------------- command
def test_the_command_from_a_checkout_loads_neither_tensorflow_nor_for_folders_mlflow(runs, tmp_path):
    code = (
        "import runpy, sys; sys.argv[1:] = sys.argv[2:]\n"
        "try: runpy.run_module('experiments.report', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "print(*{'tensorflow', 'mlflow'} & set(sys.modules))"
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
