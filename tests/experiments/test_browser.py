"""A real sweep, looked at in a real browser: our report of it, and MLflow's own list and comparison of its runs.

SCREENSHOT=docs/mlflow_compare.png bash launch/test.sh -m slow tests/experiments/test_browser.py   makes the README's picture anew
"""

import base64
import csv
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from resnet.report import __main__ as report
from resnet.report import plots
from resnet.rundir import result

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (shutil.which("chromedriver") and shutil.which("chromium")),
        reason="looks at pages in Chromium: apt-get install chromium chromium-driver",
    ),
]
BATCHES, RATES = (32, 64), (0.05, 0.1)


class Browser:
    """Headless Chromium by the W3C WebDriver protocol, which is JSON over HTTP."""

    def __init__(self, driver, folder):
        self.driver = driver
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--window-size=1400,1000",
            f"--user-data-dir={folder}",
        ]
        wanted = {"goog:chromeOptions": {"args": options}}
        self.session = "/session"
        self.session += "/" + self.ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def ask(self, method, path, body=None):
        """What the driver answers."""
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(f"{self.driver}{self.session}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def go(self, url):
        """Open a page from scratch."""
        self.ask("POST", "/url", {"url": "about:blank"})
        self.ask("POST", "/url", {"url": url})

    def run(self, script, *words):
        """What a JavaScript function body returns for `arguments`."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(words)})

    def text(self):
        """What can be read on the page."""
        return self.run("return document.body.innerText")

    def type(self, selector, text):
        """Type into the element of this CSS selector."""
        (found,) = self.ask("POST", "/element", {"using": "css selector", "value": selector}).values()
        self.ask("POST", f"/element/{found}/value", {"text": text})

    def picture(self):
        """What can be seen, an image."""
        return Image.open(io.BytesIO(base64.b64decode(self.ask("GET", "/screenshot")))).convert("RGB")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser, gone with the tests."""
    folder = tmp_path_factory.mktemp("browser")
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            told = next(line for line in driver.stdout if "started successfully on port" in line)
            port = re.search(r"on port (\d+)", told)[1]
            opened = Browser(f"http://127.0.0.1:{port}", folder)
            yield opened
            opened.ask("DELETE", "")
        finally:
            driver.terminate()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The folder in which a 2 x 2 sweep was trained on the digits; its jobs lie in runs/digits, its store in mlflow.db."""
    folder = tmp_path_factory.mktemp("swept")
    words = [
        "model=tiny",
        "data=digits",
        f"batch={','.join(map(str, BATCHES))}",
        f"optim.lr={','.join(map(str, RATES))}",
        "epochs=4",
        "schedule=cosine",
        "schedule.warmup_epochs=1",
        "log_every_steps=5",
        "out=runs/digits",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "resnet.train", "-m", *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def truth(sweep):
    """What the jobs came to, by (batch, lr)."""
    jobs = [(batch, lr) for batch in BATCHES for lr in RATES]
    return {job: result.read(sweep / "runs" / "digits" / str(number)) for number, job in enumerate(jobs)}


# --------------------------------------------------------------------------------------------------------------- our report
@pytest.fixture(scope="module", params=["experiment", "folder"])
def made(request, sweep):
    """The report of the sweep, from MLflow and from its folder."""
    what = {"experiment": ["resnet", f"uri={sweep / 'mlflow.db'}"], "folder": [str(sweep / "runs" / "digits")]}[
        request.param
    ]
    out = sweep / f"report of {request.param}"
    report.write([*what, f"out={out}"])
    return out


def strokes(path):
    """The colours of the lines of a chart, in their order."""
    colours = re.findall(r"clip-path.*stroke: (#\w+)", path.read_text())
    return [colour for colour in colours if colour in plots.COLOURS]


def test_the_report_shows_its_table_and_its_curves(browser, made, truth):
    browser.go((made / "report.html").as_uri())
    cells = browser.run(
        "return [...document.querySelectorAll('tr.run')].map(row => [...row.cells].map(c => c.innerText))"
    )
    assert len(cells) == len(truth) == 4
    shown = {(int(row[6]), float(re.search(r"optim\.lr=([\d.]+)", row[0])[1])): row for row in cells}
    for job, came in truth.items():
        assert shown[job][1] == "finished" and shown[job][2] == "tiny"
        assert shown[job][7] == f"{100 * came['final/top1']:.2f}"
        assert float(shown[job][8].replace(",", "")) == pytest.approx(came["final/images_per_s"], abs=0.05)
    shapes = browser.run(
        "return [...document.images].map(one => [one.complete, one.naturalWidth, one.getBoundingClientRect().width])"
    )
    assert len(shapes) == 2 + 2 * 4 and all(complete and min(sizes) > 200 for complete, *sizes in shapes)
    charts = [made / "loss.svg", made / "top1.svg", *(made / "curves").iterdir()]
    assert sum(len(strokes(chart)) for chart in charts) == 2 * 4 + 4 * 3  # of each run training, evaluation, and top-1
    assert len(set(strokes(charts[0]))) == 4
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")


def pixels(image, colour, box):
    """How many pixels in the box (left, top, right, bottom) are about of this colour."""
    near = np.abs(np.asarray(image.crop(box), int) - colour).max(-1) < 40
    return int(near.sum())


def test_curves_are_painted(browser, made):
    browser.go((made / "report.html").as_uri())
    browser.run("document.images[0].scrollIntoView()")
    box = browser.run(
        "const b = document.images[0].getBoundingClientRect(); return [b.left, b.top, b.right, b.top + b.height / 2]"
    )
    image = browser.picture()
    assert image.getpixel((2, 2)) == (255, 255, 255)
    for stroke in strokes(made / "loss.svg"):
        assert pixels(image, ImageColor.getrgb(stroke), box) > 50, stroke


# ----------------------------------------------------------------------------------------------------------- MLflow's own
@pytest.fixture(scope="module")
def server(sweep):
    """`mlflow server` over the sweep's store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        "server",
        "--backend-store-uri",
        f"sqlite:///{sweep / 'mlflow.db'}",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        (sweep / "server.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--workers", "1"], stdout=log, stderr=log, env=quiet
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 120
            while not answers(f"{url}/health"):
                assert process.poll() is None and time.monotonic() < deadline, (sweep / "server.log").read_text()
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()


def answers(url):
    """Whether anything does."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def recorded(sweep):
    """(experiment id, MLflow's runs of the jobs by (batch, lr))."""
    from resnet.track import store

    client = store.connect(f"sqlite:///{sweep / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("resnet").experiment_id
    runs = [run for run in client.search_runs([experiment]) if "mlflow.parentRunId" in run.data.tags]
    return experiment, {(int(run.data.params["batch"]), float(run.data.params["optim.lr"])): run for run in runs}


@pytest.fixture
def listed(browser, server, recorded, wait):
    """MLflow's page of the experiment with the sweep unfolded, and nothing beside it."""
    page = f"{server}/#/experiments/{recorded[0]}/runs"
    browser.go(page)
    wait(lambda: "matching runs" in browser.text(), 120)
    browser.run("localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')")
    names = [run.info.run_name for run in recorded[1].values()]
    folded = not any(name in browser.text() for name in names)
    if folded:
        browser.run("document.querySelector('[role=row] [col-id=\"attributes.`Run Name`\"] button').click()")
    wait(lambda: all(name in browser.text() for name in names), 120)
    return page


def test_the_report_is_the_same_over_http(server, made):
    out = made.parent / "report over http"
    report.write(["resnet", f"out={out}", f"uri={server}"])
    ours, theirs = (sorted(without_place(folder / "runs.csv")) for folder in (made, out))
    assert ours == theirs and len(ours) == 4


def without_place(path):
    """Rows of a runs.csv, each without what depends on where it was found or in which order."""
    with path.open(newline="") as file:
        return [
            [value for name, value in row.items() if name not in ("place", "configuration")]
            for row in csv.DictReader(file)
        ]


def test_mlflow_lists_the_runs_of_the_sweep(browser, listed, recorded):
    assert listed.endswith("/runs")
    assert "5 matching runs" in browser.text()  # with their parent
    assert len(recorded[1]) == 4


def test_mlflow_draws_the_curves_of_the_sweep_one_over_the_other(browser, listed, wait):
    browser.go(f"{listed}?compareRunsMode=CHART")
    drawn = "return [...document.querySelectorAll('.scatterlayer path.js-line')].filter(p => p.getTotalLength() > 20).length"
    wait(lambda: "Search metric charts" in browser.run("return document.body.innerHTML"), 120)
    browser.type('input[placeholder="Search metric charts"]', "eval/")
    wait(lambda: "eval/top1" in browser.text() and "best/top1" not in browser.text(), 120)
    wait(lambda: browser.run(drawn) >= 3 * 4, 120)  # loss, top-1 and top-5 of four runs
    if place := os.environ.get("SCREENSHOT"):
        browser.run(
            "document.head.append(Object.assign(document.createElement('style'), {textContent: "
            "'.modebar, [aria-label^=Assistant] { display: none !important }'}))"
        )
        browser.picture().crop((198, 0, 1400, 640)).quantize(64).save(place, optimize=True)
        assert Path(place).stat().st_size < 150_000


def test_mlflow_compares_the_runs_of_the_sweep(browser, server, recorded, truth, wait):
    experiment, runs = recorded
    chosen = json.dumps([runs[job].info.run_id for job in sorted(runs)], separators=(",", ":"))
    browser.go(f'{server}/#/compare-runs?runs={urllib.request.quote(chosen)}&experiments=["{experiment}"]')
    names = [run.info.run_name for run in runs.values()]
    wait(lambda: all(name in browser.text() for name in names) and "final/top1" in browser.text(), 120)
    for came in truth.values():
        assert f"{came['final/top1']:.3f}".rstrip("0") in browser.text()
