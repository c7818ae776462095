"""The input benchmark: the images it makes, and the table it prints."""

import io

import numpy as np
import pytest
from PIL import Image

from resnet import UserError
from resnet.bench import __main__ as bench
from resnet.bench import children, images
from resnet.bench.input import Input, table
from resnet.bench.pixels import Pixels
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
    assert len(rows) == 9
    rates = {row[0].strip(): float(row[1].replace(",", "")) for row in rows}
    naive, alone, resized = list(rates.values())[:3]
    assert 0 < max(alone, resized) < 20 * naive  # no matter how busy the machine is; 72 times when nothing was decoded
    assert "; cores 1; threads 1, as many as cores" in printed and "; commit " in printed
