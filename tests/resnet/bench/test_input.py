"""The input benchmark: the images it makes, and the table it prints."""

import contextlib
import io
import time

import foreign as writers
import numpy as np
import pytest
from PIL import Image

from resnet import UserError, addresses
from resnet.bench import __main__ as bench
from resnet.bench import children, far, images
from resnet.bench.input import Input, table
from resnet.bench.pixels import Pixels
from resnet.bench.result import Result
from resnet.bench.workers import Wrong
from resnet.config.data import Records
from resnet.data.source import open_source


def test_the_photographs_have_the_size_of_imagenets():
    encoded = [images.photo(np.random.default_rng(seed)) for seed in range(4)]
    with Image.open(io.BytesIO(encoded[0])) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")
    assert 85_000 < np.mean([len(one) for one in encoded]) < 120_000
    with Image.open(io.BytesIO(images.resized(encoded[0], 256, 75))) as image:
        assert min(image.size) == 256
        assert image.size == (341, 256)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    text = table({"naive": [50.0, 25.0, 100.0], "ours": [100.0, 100.0, 100.0]}, "naive")
    assert text.splitlines()[2:] == ["| naive | 50 | 1.00 |", "| ours | 100 | 2.00 |"]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match=r"^images=3: must be at least batch=64$"):
        Input(images=3)
    with pytest.raises(UserError, match=r"^dir=s3://b/x: give a local folder"):
        Input(dir="s3://b/x", far_ms=30)
    with pytest.raises(UserError, match=r"^far_mb=50.0: is for far_ms=30$"):
        Input(far_mb=50.0)


@pytest.fixture
def closed_server(monkeypatch):
    """The benchmark's server runs until its process ends: here it is closed at the end of the test."""
    servers = []

    class Server(far.Server):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            servers.append(self)

    monkeypatch.setattr(far, "Server", Server)
    yield
    for one in servers:
        one.shutdown()
        one.server_close()


@pytest.mark.usefixtures("closed_server")
def test_the_server_is_as_far_away_as_it_says(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y").write_bytes(bytes(range(250)) * 4000)
    facts, sides = far.server(str(tmp_path), "0.05", "1e7")
    place = f"{facts['address']}/x"
    assert list(addresses.listing(place)) == ["y"] and addresses.stamp(f"{place}/y")[0] == 1_000_000
    began = time.monotonic()
    assert addresses.read_exactly(f"{place}/y", 250, 1_000_000) == (tmp_path / "x" / "y").read_bytes()[250:]
    assert time.monotonic() - began > 0.14
    assert addresses.read(f"{place}/y", 999_000, 2_000_000) == (tmp_path / "x" / "y").read_bytes()[999_000:]
    with pytest.raises(FileNotFoundError):
        addresses.read(f"{place}/z", 0, 10)
    assert 0 < sides[""](1) < time.process_time() + 1


def test_the_rows_of_far_and_local_are_compared(tmp_path, monkeypatch):
    """Without processes: what is asked of each, and how its answers become rows."""
    seconds = {"server": 0.5, "first_batch http": 2.0, "first_batch": 0.5, "read http": 8.0, "read": 4.0}

    class Fake(contextlib.AbstractContextManager):
        def __init__(self, _module, words, **_cores):
            self.name = words[0] + " http" * (words[0] != "server" and words[1].startswith("http"))
            self.facts = {"address": f"http://host{words[1]}", "peak_mb": 900.0 if "http" in self.name else 700.0}

        def __exit__(self, *_):
            pass

        def step_time(self, _steps):
            return seconds[self.name]

    monkeypatch.setattr(far, "Child", Fake)
    result = Result()
    far.measure(Input(dir=str(tmp_path), far_ms=30, rounds=2), tmp_path, [0], result)
    assert [(list(row.ours), list(row.theirs)) for row in result.rows] == [
        ([8.0, 8.0], [16.0, 16.0]),
        ([900.0] * 2, [700.0] * 2),
        ([2.0] * 2, [0.5] * 2),
    ]
    assert result.notes[0] == "200 MB more than from the local disk; the first batch 1.50 s later."


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """What eight images of 64 px from four different photographs must look like."""
    folder = images.shards(tmp_path_factory.mktemp("shards"), images.photos(4), 8)
    return Pixels(open_source(Records(dir=str(folder), classes=1000)), (8, 64, 64, 3))


def test_pixels_are_those_that_pillow_decodes(pixels):
    decoded = [Image.open(io.BytesIO(one)) for one in images.photos(4)] * 2
    right = np.stack([np.asarray(image.resize((64, 64)), np.float32) for image in decoded])
    assert pixels.mean == pytest.approx(np.mean([np.asarray(image) for image in decoded]), abs=0.1)
    pixels.check([right])
    settings = pixels.settings
    pixels.check_normalized([(right - settings.mean) / settings.std])
    pixels.check_means(right.mean((1, 2, 3)))
    for wrong, reason in {
        "nothing": (right[:0], "images of shape"),
        "shapes": (np.array([[64, 64, 3]] * 8), "images of shape"),
        "zeros": (right * 0, "grey level 0.0"),
        "grey": (right * 0 + right.mean((1, 2, 3), keepdims=True), "contrast 0.0"),
        "one": (right[:1].repeat(8, 0), "the same image many times"),
        "normalized": ((right - 128) / 64, "grey level"),
    }.values():
        with pytest.raises(Wrong, match=reason):
            pixels.check([wrong])


def test_the_command_prints_every_pipeline_with_a_rate_and_a_ratio(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(images, "PHOTOS", 4)
    monkeypatch.setattr(bench, "machine", lambda: children.machine()[0])  # as a child of its own would say
    own = images.shards(tmp_path / "own", images.photos(2), 16)
    words = ["images=16", "batch=16", "rounds=1", f"data.dir={own}"]  # the knob has its name in training
    bench.measure("input", *words)
    printed = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.count("|") == 4][2:]
    assert len(rows) == 11
    rates = {row[0].strip(): float(row[1].replace(",", "")) for row in rows}
    naive, alone, resized = list(rates.values())[:3]
    assert 0 < max(alone, resized) < 20 * naive  # no matter how busy the machine is; 72 times when nothing was decoded
    assert "; cores 1; threads 1, as many as cores" in printed and "; commit " in printed


@pytest.mark.slow
def test_the_bench_of_pipelines_leaves_out_the_naive_side_of_tars(tmp_path):
    ours = str(writers.of_this_suite(tmp_path / "ours"))
    for kind, naive in (("tars", False), ("datasets", False), ("slim", True)):
        place = str(writers.FORMATS[kind](tmp_path / kind))
        facts, sides = children.pipelines(ours, ours, "6", place)
        assert (f"naive, {place}" in sides, bool(facts["notes"])) == (naive, not naive)
        assert f"training, {place}" in facts["pipelines"]
