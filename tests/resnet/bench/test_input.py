"""The input benchmark: the images it makes, and the table it prints."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from resnet import UserError
from resnet.bench import images
from resnet.bench.input import Input, table


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


def test_the_command_prints_every_pipeline_with_a_rate_and_a_ratio(tmp_path):
    own = images.shards(tmp_path / "own", images.photos(2), 16)
    words = ["images=16", "batch=16", "rounds=1", f"data.dir={own}"]  # the knob has its name in training
    process = subprocess.run([sys.executable, "-m", "resnet.bench", "input", *words], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    rows = [line.split("|")[1:-1] for line in process.stdout.splitlines() if line.count("|") == 4][2:]
    assert len(rows) == 9
    assert all(float(cell.replace(",", "")) > 0 for row in rows for cell in row[1:])
    assert "; cores 1; threads 1, as many as cores" in process.stdout and "; commit " in process.stdout
