"""How fast, and how much memory: figures for docs/data.md. `pytest -n0 -s -m slow tests/resnet/prepare/test_scale.py`"""

import io
import os
import subprocess
import sys
import tarfile
import time

import numpy as np
import psutil
import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
IMAGES = int(os.environ.get("IMAGES", "40000"))  # 1281167 for ImageNet's length: 2 GB of disk, and a quarter of an hour


def prepared(*words):
    """Run the command; (seconds, CPU seconds, greatest PSS of all its processes in bytes, what it said)."""
    began = time.monotonic()
    before = os.times()
    process = subprocess.Popen([sys.executable, "-m", "resnet.prepare", *words], stdout=subprocess.PIPE, text=True)
    first, greatest = psutil.Process(process.pid), 0
    while process.poll() is None:
        total = 0
        for one in [first, *first.children(recursive=True)] if first.is_running() else []:
            try:
                total += one.memory_full_info().pss
            except psutil.Error:
                continue
        greatest = max(greatest, total)
        time.sleep(0.2)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert process.returncode == 0
    return time.monotonic() - began, used, greatest, process.stdout.read()


def photographs(folder, count):
    """500 x 375 JPEGs of about 100 KB, cut out of scikit-learn's two sample photographs."""
    from sklearn.datasets import load_sample_images

    draw, pictures = np.random.default_rng(0), load_sample_images().images  # 427 x 640
    for number in range(count):
        height = int(draw.integers(300, 427))
        top, left = draw.integers(0, 427 - height + 1), draw.integers(0, 640 - height * 4 // 3 + 1)
        cut = pictures[number % 2][top : top + height, left : left + height * 4 // 3]
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        resized = Image.fromarray(cut).resize((500, 375), Image.Resampling.LANCZOS)
        resized.save(place / f"{number}.jpg", quality=97)


@pytest.mark.parametrize("words", [(), ("resize=256", "quality=90")], ids=["as_is", "resized"])
def test_images_a_second_and_core(tmp_path, words):
    photographs(tmp_path / "tree", count=1000)
    size = sum(path.stat().st_size for path in tmp_path.glob("tree/*/*")) / 1000
    seconds, used, _, _ = prepared(
        "source=folder", f"dir={tmp_path / 'tree'}", f"out={tmp_path / 'x'}", "processes=1", *words
    )
    told = " ".join(words) or "as it is"
    print(f"\n{told}: {1000 / used:.0f} images a CPU second ({1000 / seconds:.0f} a second), of {size / 1000:.0f} kB")
    assert 1000 / used > (100 if words else 250)


def test_memory_does_not_grow_with_the_source(tmp_path):
    small = []
    for number in range(64):
        pixels = np.random.default_rng(number).integers(0, 256, (2, 3, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize((24, 16)).save(file, "JPEG", quality=30)
        small.append(file.getvalue())

    def member(tar, name, data):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))

    synsets = [f"n{1000000 + 7 * number:08d}" for number in range(1000)]
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as outer:
        for synset in synsets:
            inside = io.BytesIO()
            with tarfile.open(fileobj=inside, mode="w") as inner:
                for number in range(-(-IMAGES // 1000)):
                    member(inner, f"{synset}_{number}.JPEG", small[number % 64])
            member(outer, f"{synset}.tar", inside.getvalue())
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in range(50_000):
            member(tar, f"ILSVRC2012_val_{number + 1:08d}.JPEG", small[number % 64])
    (tmp_path / "synset_labels.txt").write_text("".join(f"{synset}\n" for synset in synsets * 50))
    seconds, _, memory, said = prepared("source=imagenet", f"dir={tmp_path}", f"out={tmp_path / 'x'}")
    print(f"\n{said.splitlines()[-2]}\n{memory / 2**20:.0f} MiB at most, {seconds:.0f} s")
    assert memory < 2**30
