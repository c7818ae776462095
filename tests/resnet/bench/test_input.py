"""The input benchmark: the images it makes, and the table it prints."""

import io
import subprocess
import sys

import numpy as np
from PIL import Image

from resnet.bench import images


def test_the_photographs_have_the_size_of_imagenets():
    encoded = [images.photo(np.random.default_rng(seed)) for seed in range(4)]
    with Image.open(io.BytesIO(encoded[0])) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")
    assert 85_000 < np.mean([len(one) for one in encoded]) < 120_000
    with Image.open(io.BytesIO(images.resized(encoded[0], 256, 75))) as image:
        assert min(image.size) == 256
        assert image.size == (341, 256)


def test_the_command_prints_every_pipeline_with_a_rate_and_a_ratio():
    words = ["images=16", "batch=16", "rounds=1"]
    done = subprocess.run(
        [sys.executable, "-m", "resnet.bench", "input", *words], capture_output=True, text=True, check=True
    )
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.count("|") == 4][2:]
    assert len(rows) == 7
    assert all(float(cell.replace(",", "")) > 0 for row in rows for cell in row[1:])


def test_an_unknown_knob_is_told_in_one_line():
    done = subprocess.run([sys.executable, "-m", "resnet.bench", "input", "imagess=3"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: imagess: resnet.bench input has no such knob; did you mean images?")
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_benchmark_is_told_with_those_there_are():
    done = subprocess.run([sys.executable, "-m", "resnet.bench", "inputs"], capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr == "error: inputs: no such benchmark; did you mean input? There are: "
        "step, input, train, accuracy, scaling, start, track, soak, all\n"
    )


def test_your_own_shards_are_named_as_in_training(tmp_path):
    command = [
        sys.executable,
        "-m",
        "resnet.bench",
        "input",
        "images=16",
        "batch=16",
        "rounds=1",
        f"data.dir={tmp_path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: data.dir={tmp_path}: no shards here")
