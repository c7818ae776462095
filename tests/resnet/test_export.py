"""`python -m resnet.export`: what stands in the folder gives the same numbers, in TensorFlow alone and in NumPy."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from resnet import UserError, evaluate, export, remote
from resnet.config import compose
from resnet.data import indexes, pipeline, shards, source
from resnet.data.formats import tfexample
from resnet.model import weights
from resnet.training import loop
from resnet.training import trained as trained_networks
from resnet.training.trained import read as read_weights

MEAN, STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
FILES = ["classes.txt", "model.safetensors", "saved_model"]

# Loads a SavedModel where there is nothing of ours, and runs every signature on what it is given.
ALONE = """
import sys
sys.modules["resnet"] = None  # importing it fails
import numpy as np, tensorflow as tf
folder, given, made = sys.argv[1:]
loaded, given = tf.saved_model.load(folder), np.load(given, allow_pickle=True)
found = {"signatures": sorted(loaded.signatures), "names": loaded.names.numpy().astype(bytes)}
def run(name, key, values, note=""):
    for output, value in loaded.signatures[name](**{key: tf.constant(values)}).items():
        found[f"{name}{note} {output}"] = value.numpy()
run("serving_default", "images", given["floats"])
run("uint8", "images", given["bytes"])
run("uint8", "images", given["bytes"][:1], " of one")
run("jpeg", "encoded", list(given["jpegs"]))
np.savez(made, **found)
assert not any(name.startswith(("resnet", "hydra", "omegaconf")) for name in sys.modules if sys.modules[name])
"""


# --------------------------------------------------------------------------------------------------- the network in NumPy
def conv(x, weight, stride=1):
    """torch.nn.functional.conv2d of [B, C, H, W] with weight [O, C, K, K], padded by (K - 1) // 2."""
    size = weight.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), *[((size - 1) // 2,) * 2] * 2))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bihwyx,oiyx->bohw", windows, weight, optimize=True)


def forward(file, images):
    """Logits of uint8 or float images [B, H, W, 3] in 0..255: timm's bottleneck ResNet by its file, in float64."""
    w = {name: tensor.astype(np.float64) for name, tensor in load_file(file).items()}

    def norm(x, name):
        scale = w[f"{name}.weight"] / np.sqrt(w[f"{name}.running_var"] + 1e-5)
        return x * scale[:, None, None] + (w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale)[:, None, None]

    x = ((images.astype(np.float64) - MEAN) / STD).transpose(0, 3, 1, 2)
    x = np.maximum(norm(conv(x, w["conv1.weight"], 2), "bn1"), 0)
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max((4, 5))
    for layer in (1, 2, 3, 4):
        name, stride = f"layer{layer}.0", 1 if layer == 1 else 2
        shortcut = norm(conv(x, w[f"{name}.downsample.0.weight"], stride), f"{name}.downsample.1")
        for number, step in ((1, 1), (2, stride)):
            x = np.maximum(norm(conv(x, w[f"{name}.conv{number}.weight"], step), f"{name}.bn{number}"), 0)
        x = np.maximum(norm(conv(x, w[f"{name}.conv3.weight"]), f"{name}.bn3") + shortcut, 0)
    return x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]


def softmax(logits):
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


# ------------------------------------------------------------------------------------------------- one run, exported once
@pytest.fixture(scope="module")
def trained(trained_once, tmp_path_factory):
    """A run in bfloat16 with averaged weights, on images that were moved since: (run, where the images are now)."""
    folder = tmp_path_factory.mktemp("trained")
    return trained_once.copy("averaged", folder, dir=str(folder / "shards")), trained_once.shards


@pytest.fixture(scope="module")
def exported(trained, spawn):
    """What `python -m resnet.export` wrote of it."""
    out = Path(trained[0].out).parent / "exported"
    done = spawn("resnet.export", "run", "out=exported", cwd=out.parent).finish()
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert f"exported: {', '.join(FILES)} (tiny, 3 classes, 48 px)" in done.stdout
    return out


@pytest.fixture(scope="module")
def jpegs(trained, encoded, photo):
    """JPEGs: of the evaluation shards, and of other sizes and colours."""
    index = indexes.index(shards.listing(str(trained[1]), shards.LAYOUTS[0][1]))
    records = [tfexample.decode(shards.read(index, number)) for number in range(len(index))]
    found = [record["image/encoded"] for record in records]
    assert len({Image.open(io.BytesIO(one)).size for one in found}) >= 3
    return [*found, encoded(photo(1, 300, 40)), encoded(photo(2, 20, 31)), encoded(photo(3).convert("L"))]


@pytest.fixture(scope="module")
def alone(exported, jpegs, tmp_path_factory):
    """(what a process with TensorFlow alone was given, and what it found)."""
    folder = tmp_path_factory.mktemp("alone")
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
    given = {"floats": random.uniform(0, 255, (4, 48, 48, 3)).astype(np.float32), "bytes": pixels}
    np.savez(folder / "given.npz", **given, jpegs=np.array(jpegs, object))
    shutil.copytree(exported / "saved_model", folder / "saved_model")
    (folder / "alone.py").write_text(ALONE)
    command = [sys.executable, "-I", "alone.py", "saved_model", "given.npz", "found.npz"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    return given, dict(np.load(folder / "found.npz"))


def test_a_process_with_tensorflow_alone_loads_it_and_finds_three_signatures(alone, trained_once):
    _, found = alone
    assert list(found["signatures"]) == ["jpeg", "serving_default", "uint8"]
    assert [name.decode() for name in found["names"]] == list(trained_once.names)


def test_the_file_in_timms_naming_gives_the_same_logits_in_numpy_though_the_run_was_in_bfloat16(alone, exported):
    given, found = alone
    for signature, images in (("serving_default", given["floats"]), ("uint8", given["bytes"])):
        wanted = forward(exported / "model.safetensors", images)
        assert np.ptp(wanted, axis=0).max() > 1e-2  # the images differ at all
        np.testing.assert_allclose(found[f"{signature} logits"], wanted, rtol=1e-4, atol=1e-5)
        assert found[f"{signature} logits"].dtype == np.float32
    np.testing.assert_allclose(found["uint8 of one logits"], found["uint8 logits"][:1], rtol=1e-5, atol=1e-6)
    assert {tensor.dtype for tensor in load_file(exported / "model.safetensors").values()} == {np.dtype("float32")}


def test_jpegs_of_any_size_are_seen_as_in_evaluation(alone, exported, trained, jpegs):
    run, images = trained
    _, found = alone
    settings = compose.for_inference([f"data.dir='{images}'"], run).data
    pixels = np.concatenate([batch[0] for batch in pipeline.evaluation(source.open_source(settings), 6)])
    assert len(pixels) == len(jpegs) - 3
    others = [pipeline.centre_crop(tf.constant(one), settings).numpy() for one in jpegs[-3:]]
    wanted = forward(exported / "model.safetensors", np.concatenate([pixels, others]))
    np.testing.assert_allclose(found["jpeg logits"], wanted, rtol=1e-4, atol=1e-5)


def test_probabilities_are_the_softmax_of_the_logits(alone):
    for signature in ("serving_default", "uint8", "uint8 of one", "jpeg"):
        logits, found = (alone[1][f"{signature} {output}"] for output in ("logits", "probabilities"))
        np.testing.assert_allclose(found, softmax(logits.astype(np.float64)), rtol=1e-5)


def test_the_weights_are_the_averaged_ones_of_the_run_bit_for_bit(exported, trained):
    wanted = read_weights(trained[0].out)
    for path in (exported / "model.safetensors", exported / "saved_model"):
        found = read_weights(str(path))
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert np.array_equal(found[name], tensor), name


def test_the_folder_tells_names_and_how_images_are_prepared(exported):
    assert sorted(path.name for path in exported.iterdir()) == FILES
    assert (exported / "classes.txt").read_text() == "cat\ndog\nümlaut, of $x$\\u000aüber\n"
    with safe_open(exported / "model.safetensors", "np") as file:
        told = file.metadata()
    assert (told["model"], told["classes"], told["image_size"], told["format"]) == ("tiny", "3", "48", "pt")
    assert (told["eval_resize"], told["eval_resample"], told["eval_interpolation"]) == ("56", "antialias", "bilinear")
    np.testing.assert_allclose(json.loads(told["mean"]), np.divide(MEAN, 255))
    np.testing.assert_allclose(json.loads(told["std"]), np.divide(STD, 255))


# -------------------------------------------------------------------------------------------------------------- round trip
@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """What resnet.evaluate says of the run, in the arithmetic that is exported."""
    run, images = trained
    return evaluate.evaluate(run.out, [f"data.dir='{images}'", "dtype=fp32"], tmp_path_factory.mktemp("scored"))


def test_the_folder_of_an_export_is_read_as_its_saved_model(exported):
    read = [read_weights(str(place)) for place in (exported, exported / "saved_model")]
    assert read[0].keys() == read[1].keys() and all(np.array_equal(read[0][name], read[1][name]) for name in read[0])
    names = [trained_networks.class_names_of(str(place), 3) for place in (exported, exported / "saved_model")]
    assert names[0] == names[1] and len(names[0]) == 3


@pytest.mark.parametrize("name", [pytest.param("model.safetensors", marks=pytest.mark.slow), "saved_model"])
def test_evaluated_or_trained_from_it_has_the_scores_of_the_run(exported, trained_once, scored, run_at, tmp_path, name):
    (tmp_path / "config.yaml").write_text("not: ours\n")  # beside a SavedModel there may be anything
    path = tmp_path / name
    shutil.copytree(exported / name, path) if (exported / name).is_dir() else shutil.copy(exported / name, path)
    words = ["data=folder", f"data.dir='{trained_once.shards}'", *trained_once.preprocessing]
    told = evaluate.evaluate(str(path), words, tmp_path / "found")
    going = run_at(
        tmp_path,
        "model=tiny",
        "track=off",
        *words,
        f"init={path}",
        "optim.lr=0",
        "finetune.freeze=head",
        "batch=6",
        "steps=1",
    )
    made = loop.train(going, Path(going.out))
    for score in ("top1", "top5", "loss"):
        assert told[score] == pytest.approx(scored[score], rel=1e-6)
        assert made[f"eval/{score}"] == pytest.approx(scored[score], rel=1e-6)


@pytest.mark.parametrize("name", ["model.safetensors", pytest.param("saved_model", marks=pytest.mark.slow)])
def test_what_was_exported_can_be_exported_again(exported, trained_once, tmp_path, name):
    """No image is read, so none need be there; how they are to be prepared must be typed. From an address, to another."""
    store = fsspec.filesystem("memory")
    store.put(str(exported), "/bucket/model", recursive=True)
    place = "memory://bucket/model" if name == "model.safetensors" else str(exported / name)
    lines = export.export_to(place, trained_once.preprocessing, "memory://bucket/again/")
    assert lines[-1].startswith("memory://bucket/again: classes.txt, model.safetensors, saved_model (tiny, 3 classes")
    with pytest.raises(UserError, match="out=memory://bucket/again: exists already"):
        export.export_to(place, trained_once.preprocessing, "memory://bucket/again")
    store.get("/bucket/again", str(tmp_path / "again"), recursive=True)
    assert not (tmp_path / "again" / remote.INCOMPLETE).exists()
    store.rm("/bucket", recursive=True)
    again, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", exported))
    assert again.keys() == before.keys() and all(np.array_equal(again[name], before[name]) for name in before)
    with safe_open(tmp_path / "again" / "model.safetensors", "np") as file:
        assert file.metadata()["image_size"] == "48"
    assert (tmp_path / "again" / "saved_model" / "saved_model.pb").is_file()


def test_for_mlflow_too_if_asked(trained, trained_once, jpegs, alone, tmp_path, call):
    """JPEGs as they come, to the probabilities of the SavedModel."""
    status, out, _ = call(trained[0].out, f"out={tmp_path / 'out'}", "mlflow=true")
    assert status == 0
    lines = out.splitlines()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*FILES, "mlflow_model"])
    assert "mlflow_model" in lines[-1]
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "out" / "mlflow_model"))
    found = loaded.predict(pd.DataFrame({"image": jpegs}))["top"]
    for row, wanted in zip(found, alone[1]["jpeg probabilities"], strict=True):
        told = {one["class"]: one["probability"] for one in row}
        assert [told[name] for name in trained_once.names] == pytest.approx(list(wanted), rel=1e-4)


# ------------------------------------------------------------------------------------------------------- what is refused
@pytest.fixture
def call(monkeypatch, capsys, exit_status):
    """`call(*words)`: (exit status, stdout, stderr) of the command in this process."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["resnet.export", *map(str, words)])
        return exit_status(export.main), *capsys.readouterr()

    return command


def test_a_folder_that_is_there_is_left_as_it_is(trained, tmp_path, call):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine, too")
    for name in ("full", "file"):
        status, _, err = call(trained[0].out, f"out={tmp_path / name}")
        assert (status, err) == (1, f"error: out={tmp_path / name}: exists already; give another folder\n")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine.txt"]
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["RUN"], "resnet.export: give out=DIR, a folder that does not exist yet"),
        (["RUN", "out="], "resnet.export: give out=DIR"),
        (["out=x"], "resnet.export: give one run's folder or weights file, not 0"),
        (["RUN", "RUN", "out=x"], "not 2"),
        (["nowhere", "out=x"], "nowhere: no such file or folder"),
        (["RUN", "out=x", "optim.lr=1"], "optim.lr=1: not for this command"),
        (["RUN", "out=x", "data.sise=1"], "data.sise: no such knob"),
        (["RUN", "out=x", "data=digits"], "has 3 outputs, and data=digits has 10 classes"),
        (["RUN", "out=x", "mlflow=yes"], "mlflow=yes: must be true or false"),
        (["RUN", "out=RUN/config.yaml/x"], "cannot be written (Not a directory)"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_command_that_cannot_be_is_refused_in_one_line(trained, tmp_path, monkeypatch, call, words, told):
    monkeypatch.chdir(tmp_path)
    before = sorted(Path(trained[0].out).parent.rglob("*"))
    status, _, err = call(*(word.replace("RUN", trained[0].out) for word in words))
    assert status == 1
    assert err.startswith("error: ") and err.count("\n") == 1 and told in err, err
    assert list(tmp_path.iterdir()) == []
    assert sorted(Path(trained[0].out).parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("module", "work", "error"),
    [
        (tf.saved_model, "save", tf.errors.ResourceExhaustedError(None, None, "No space\nleft")),
        (weights, "write", OSError(errno.ENOSPC, "No space left on device")),
    ],
    ids=["TensorFlow", "ours"],
)
def test_an_export_that_fails_leaves_nothing(trained, tmp_path, monkeypatch, module, work, error):
    def failing(*words):
        next(Path(word) for word in words if isinstance(word, (str, Path))).mkdir()  # something has been written
        raise error

    monkeypatch.setattr(module, work, failing)
    with pytest.raises(UserError, match=r"out=.*: cannot be written \(No space.*\)") as told:
        export.export(trained[0].out, [], tmp_path / "out")
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_network")
def test_a_run_on_synthetic_images_has_no_jpegs_and_no_names(run_at, tmp_path):
    words = ("model=tiny", "track=off", "data=synthetic", "data.image_size=32", "data.classes=7", "batch=4", "steps=1")
    run = run_at(tmp_path, *words, "eval=false")
    loop.train(run, Path(run.out))
    with pytest.raises(UserError, match="data=synthetic: images that are no pictures"):
        export.export(run.out, [], tmp_path / "out", mlflow=True)
    export.export(run.out, [], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES[1:]
    loaded = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
    assert sorted(loaded.signatures) == ["serving_default", "uint8"]
    assert loaded.names.dtype == tf.string and loaded.names.shape == [0]  # none, of strings


def test_names_that_are_no_utf_8_are_kept(trained, tmp_path):
    run = shutil.copytree(trained[0].out, tmp_path / "run")
    (run / "classes.txt").write_text("a\nno utf-8 \\udcff\nc\n")
    export.export(str(run), [], tmp_path / "out")
    assert (tmp_path / "out" / "classes.txt").read_text() == "a\nno utf-8 \\udcff\nc\n"
    names = tf.saved_model.load(str(tmp_path / "out" / "saved_model")).names
    assert list(names.numpy()) == [b"a", b"no utf-8 \xff", b"c"]
