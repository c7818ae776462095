"""IDX files: the pixels and labels that NumPy reads from them, and a line for every damage."""

import gzip
import io
import json
import re
import struct

import numpy as np
import pytest
from PIL import Image

from resnet import UserError, files
from resnet.config import compose
from resnet.data import source
from resnet.data.formats import idx, tfexample
from resnet.prepare import __main__ as prepare

PIXELS = np.random.default_rng(1).integers(0, 256, (12, 9, 7), np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 3


def encoded(values, kind=8):
    """An IDX file's bytes, by the format's description."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def folder(tmp_path):
    """A pair of twelve training images, gzipped, and one of the first four."""
    root = tmp_path / "idx"
    root.mkdir()
    for part, count in (("train", 12), ("t10k", 4)):
        for what, values in (("images-idx3", PIXELS[:count]), ("labels-idx1", LABELS[:count])):
            content = encoded(values)
            zipped = part == "train"
            path = root / f"{part}-{what}-ubyte{'.gz' * zipped}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    return root


def do(*words):
    prepare.do(prepare.parse(["source=idx", *words]))


def records(folder):
    """(pixels [h, w, 3], label from 1, text) of the training images in the order of the files."""
    data = source.open_source(compose.one_group("data", "data=folder", dir=str(folder)))
    rows = [tfexample.decode(data.train_reader(number)) for number in range(data.train_images)]
    rows.sort(key=lambda row: row["image/filename"])
    images = [np.asarray(Image.open(io.BytesIO(row["image/encoded"]))) for row in rows]
    return images, [row["image/class/label"] for row in rows], [row["image/class/text"].decode() for row in rows]


def test_the_shards_have_what_numpy_reads(folder, tmp_path, capsys):
    do(f"dir={folder}", f"out={tmp_path / 'out'}", "names=cat,dog,T-shirt/top")
    images, labels, texts = records(tmp_path / "out")
    raw = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    expected = np.frombuffer(raw, np.uint8, offset=16).reshape(12, 9, 7)
    for image, pixels in zip(images, expected, strict=True):
        assert np.abs(image.astype(int) - pixels[..., None]).max() <= 3  # JPEG of quality 100, even of noise
    assert labels == (LABELS + 1).tolist()
    assert texts == [("cat", "dog", "T-shirt/top")[label] for label in LABELS]
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert content["splits"]["train"]["classes"] == {"cat": 4, "dog": 4, "T-shirt/top": 4}
    assert content["splits"]["val"]["classes"] == {"cat": 2, "dog": 1, "T-shirt/top": 1}
    assert "12 training and 4 validation images of 3 classes" in capsys.readouterr().out
    do(f"dir={folder}", f"out={tmp_path / 'out'}", "names=cat,dog,T-shirt/top")
    assert "prepared already" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"out={tmp_path}/out: finished with other options"):
        do(f"dir={folder}", f"out={tmp_path / 'out'}")
    prepare.do(prepare.parse([f"check={tmp_path / 'out'}", "deep=true", "processes=1"]))


def test_colours_names_in_a_file_and_files_elsewhere(folder, tmp_path):
    colours = np.stack([PIXELS, 255 - PIXELS, PIXELS // 2], axis=3)
    colours[:] = colours[:, :1, :1]  # one colour an image, which chroma of a whole block keeps
    (tmp_path / "mine-images-idx4-ubyte").write_bytes(encoded(colours))
    (tmp_path / "mine-labels-idx1-ubyte").write_bytes(encoded(LABELS))
    (tmp_path / "names.txt").write_text("ä\nb\nc\n")
    words = (f"train={tmp_path}/mine-images-idx4-ubyte", f"names={tmp_path}/names.txt", f"out={tmp_path}/out")
    do(f"dir={folder}", *words)
    images, _, texts = records(tmp_path / "out")
    assert max(np.abs(image.astype(int) - colour).max() for image, colour in zip(images, colours, strict=True)) <= 3
    assert texts[:3] == ["ä", "b", "c"]


def test_classes_without_names_are_numbers(folder, tmp_path):
    do(f"dir={folder}", f"out={tmp_path / 'out'}")
    assert files.read_text(str(tmp_path / "out" / files.CLASSES)) == "0\n1\n2\n"


TRAIN, VAL = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte"
GOOD = encoded(PIXELS[:4])
DAMAGE = {
    "no IDX": (VAL, b"\x89PNG", "no IDX file"),
    "empty": (VAL, b"", "no IDX file"),
    "floats": (VAL, encoded(PIXELS[:4], kind=13), "values of type 13 in 3 dimensions; must be uint8"),
    "labels": (VAL, encoded(LABELS), "values of type 8 in 1 dimensions; must be uint8 .8. in 3 or 4"),
    "cut header": (VAL, GOOD[:9], "0 values by its header"),
    "cut": (VAL, GOOD[:-1], "251 values, and its header says 252"),
    "too long": (VAL, GOOD + b"\0", "more than 252 values, and its header says 252"),
    "none": (VAL, encoded(PIXELS[:0]), "0 values by its header"),
    "a bomb": (VAL, struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "must be 1 to 1,073,741,824"),
    "a gzip bomb": (VAL, gzip.compress(encoded(PIXELS[:4]) + bytes(1 << 24)), "more than 252 values"),
    "a strip": (VAL, encoded(np.zeros((4, 1, 500), np.uint8)), "one side is more than 100 times the other"),
    "two channels": (VAL, encoded(np.zeros((4, 8, 8, 2), np.uint8)), "2 values a pixel; must be 1 .grey. or 3"),
    "more images": (VAL, encoded(PIXELS), "12 images, and 4 labels in .*t10k-labels-idx1-ubyte"),
    "cut gzip": (TRAIN, gzip.compress(encoded(PIXELS))[:-9], r"damaged \(.+\); copy it again"),
    "a flipped bit": (TRAIN, gzip.compress(encoded(PIXELS))[:-5] + b"\0" * 5, r"damaged \(CRC check failed .+\)"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_in_a_line_and_nothing_is_written(folder, tmp_path, case):
    name, content, message = DAMAGE[case]
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{folder}/{name}: .*{message}"):
        do(f"dir={folder}", f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named_with_the_way_out(folder, tmp_path):
    out = f"out={tmp_path / 'out'}"
    for words, message in (
        ((), "dir: must be given, the folder of the IDX files, or both train= and val="),
        ((f"dir={tmp_path}",), "no file of images in .+, such as train-images-idx3-ubyte.gz; name one with train=FILE"),
        ((f"dir={tmp_path}/no",), "cannot be listed"),
        ((f"dir={folder}", f"val={folder}/x"), f"{folder}/x: no such file"),
        ((f"dir={folder}", "names=a,b"), "labels up to 2, and 2 classes"),
        ((f"dir={folder}", "names=a,a,b"), "names=a,a,b: 'a' more than once"),
        ((f"dir={folder}", "names=nowhere.txt"), "names=nowhere.txt: cannot be read .+; give a,b,c, a file"),
    ):
        with pytest.raises(UserError, match=message):
            do(*words, out)
    (folder / "emnist-train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 files of such images .+; name one with train=FILE"):
        do(f"dir={folder}", out)
    (folder / "emnist-train-images-idx3-ubyte").unlink()
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"its labels must lie beside it, as t10k-labels-idx1-ubyte or with .gz"):
        do(f"dir={folder}", out)


# --------------------------------------------------------------------------------------------------------- data=fashion
def test_fashion_is_asked_for_by_the_name_of_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "FASHION_DIR", str(tmp_path / "no"))
    settings = compose.one_group("data", "data=fashion", dir=str(tmp_path / "shards"))
    lines = re.escape("apt-get install dataset-fashion-mnist") + ".+python -m resnet.prepare source=idx names=fashion"
    with pytest.raises(UserError, match=f"data=fashion: .+{lines}"):
        source.open_source(settings)
    assert list(tmp_path.iterdir()) == []


def test_fashion_is_written_once_from_its_package(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "FASHION_DIR", str(folder))
    settings = compose.one_group("data", "data=fashion", dir=str(tmp_path / "shards"))
    data = source.open_source(settings)
    assert (data.train_images, data.eval_images) == (12, 4)
    assert source.class_names(settings) == list(idx.FASHION)
    monkeypatch.setattr(idx, "FASHION_DIR", str(tmp_path / "no"))  # what is there needs no package
    assert source.open_source(settings).train_images == 12
    assert prepare.classes_and_kind(str(tmp_path / "shards")) == (list(idx.FASHION), "fashion")
