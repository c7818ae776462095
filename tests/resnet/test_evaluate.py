"""`python -m resnet.evaluate`: what training logged, counted again in NumPy, class by class."""

import csv
import dataclasses
import json
import os
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from resnet import UserError, cli, evaluate, files, rundir
from resnet.config import compose
from resnet.data import indexes, pipeline, shards, source
from resnet.data.formats import tfexample
from resnet.model import resnet, weights
from resnet.training import checkpoint, loop
from resnet.training.trained import load as trained_load
from resnet.training.trained import read as read_weights


@pytest.fixture(scope="module")
def photos(trained_once):
    """Shards of three classes, images of several sizes."""
    return trained_once.shards


@pytest.fixture(scope="module")
def classes(trained_once):
    """Their names."""
    return list(trained_once.names)


@pytest.fixture(scope="module")
def trained(trained_once, tmp_path_factory):
    """A run on them; only read it."""
    return trained_once.copy("plain", tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def truth(trained, photos):
    """(labels read from the shards, logits of the reloaded network in NumPy's hands) of the evaluation images."""
    index = indexes.index(shards.listing(str(photos), shards.LAYOUTS[0][1]))
    records = [tfexample.decode(shards.read(index, number)) for number in range(len(index))]
    labels = np.array([record["image/class/label"] - 1 for record in records])
    return labels, logits_of(trained, trained.data, len(labels))


def logits_of(run, settings, count):
    """Logits float64 [count, classes] of the evaluation images of `settings`, by the weights in the folder of `run`."""
    network = resnet.build(run.model, run.data.classes, "float32")
    weights.load_into(network, read_weights(run.out), run.out)
    pixels = np.concatenate([batch[0] for batch in pipeline.evaluation(source.open_source(settings), 7)])[:count]
    normal = (pixels.astype(np.float64) - settings.mean) / settings.std
    return network(normal.astype(np.float32), training=False).numpy().astype(np.float64)


def scores(labels, logits):
    """(top-1, top-5, loss)"""
    logged = logits - logits.max(1, keepdims=True)
    logged -= np.log(np.exp(logged).sum(1, keepdims=True))
    ranked = np.argsort(-logits, axis=1, kind="stable")
    rows = np.arange(len(labels))
    return (
        (ranked[:, 0] == labels).mean(),
        (ranked[:, :5] == labels[:, None]).any(1).mean(),
        -logged[rows, labels].mean(),
    )


def confusion_of(labels, logits):
    """[classes, classes]: rows are the truth."""
    found = np.zeros([logits.shape[1]] * 2, int)
    for label, said in zip(labels, logits.argmax(1), strict=True):
        found[label, said] += 1
    return found


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def close(told, labels, logits, rel=1e-5):
    top1, top5, loss = scores(labels, logits)
    assert (told["top1"], told["top5"], told["seen"]) == (pytest.approx(top1), pytest.approx(top5), len(labels))
    assert told["loss"] == pytest.approx(loss, rel=rel)


# --------------------------------------------------------------------------------------------------- what training logged
def logged(run, kind):
    """{step: (top-1, top-5, loss)} of metrics.jsonl."""
    lines = [json.loads(line) for line in (Path(run.out) / "metrics.jsonl").read_text().splitlines()]
    names = [f"{kind}/{name}" for name in ("top1", "top5", "loss")]
    return {line["step"]: tuple(line[name] for name in names) for line in lines if names[0] in line}


@pytest.mark.usefixtures("small_network")
def test_averaged_weights_of_the_best_checkpoint_have_the_scores_that_training_logged(run_at, tmp_path):
    words = ("model=tiny", "track=off", "batch=179", "epochs=1", "schedule=constant", "optim.lr=0.2", "ema.decay=0.8")
    run = run_at(tmp_path, *words, "eval_every_epochs=0.5", "ema.every_steps=2", "eval_steps=1", "dtype=bf16")
    loop.train(run, Path(run.out))
    wanted, raw = logged(run, "ema"), logged(run, "eval")
    assert len(set(wanted.values())) == 2 and all(wanted[step][2] != raw[step][2] for step in wanted)
    first, second = (saved.path for saved in checkpoint.list_checkpoints(Path(run.out)))
    told = evaluate.evaluate(str(second), [], tmp_path / "second")
    assert (told["top1"], told["top5"], told["loss"]) == pytest.approx(list(wanted.values())[1], rel=1e-6)
    assert told["seen"] == 179
    commit = json.loads((first / "commit.json").read_text())
    (first / "commit.json").write_text(checkpoint.commit_text({**commit, "top1": 1.0}))
    told = evaluate.evaluate(run.out, [], tmp_path / "best")
    assert (told["top1"], told["top5"], told["loss"]) == pytest.approx(next(iter(wanted.values())), rel=1e-6)
    assert json.loads((tmp_path / "best" / "scores.json").read_text()) == told


# ------------------------------------------------------------------------------------------------------------- the files
@pytest.fixture(scope="module")
def typed(trained, spawn):
    """(the process `python -m resnet.evaluate <run>`, the folder that it wrote)."""
    done = spawn("resnet.evaluate", Path(trained.out).name, cwd=Path(trained.out).parent).finish()
    assert done.returncode == 0, done.stderr
    return done, Path(f"{trained.out}-evaluation")


def test_the_command_tells_the_scores_and_where_the_files_are(typed, trained, truth):
    done, folder = typed
    told = json.loads((folder / "scores.json").read_text())
    assert told["weights"] == trained.out and told["data"] == "folder"
    close(told, *truth)
    best = max(logged(trained, "eval").values(), key=lambda found: found[0])
    assert told["top1"] == best[0]
    assert sorted(path.name for path in folder.iterdir()) == [
        "classes.csv",
        "confusion.csv",
        "confusion.png",
        "mistakes.png",
        "scores.json",
    ]
    assert done.stderr == ""
    percent = f"top-1 {100 * told['top1']:.2f} %  top-5 100.00 %  loss {told['loss']:.4f}  ({told['seen']} images)"
    assert percent in done.stdout.splitlines() and str(folder) in done.stdout


def test_classes_and_confusions_are_those_counted_from_labels_and_logits(typed, truth, classes):
    confusion, names = confusion_of(*truth), classes
    assert confusion.sum() == len(truth[0]) and confusion.sum(1).min() > 0
    head, *lines = rows(typed[1] / "confusion.csv")
    assert head == ["", *names]
    assert [line[0] for line in lines] == names
    np.testing.assert_array_equal(np.array([line[1:] for line in lines], int), confusion)
    head, *lines = rows(typed[1] / "classes.csv")
    assert head == ["class", "images", "right", "top1", "most_often_taken_for", "so_often"]
    for number, (line, counts) in enumerate(zip(lines, confusion, strict=True)):
        others = {other: counts[other] for other in range(3) if other != number and counts[other]}
        most = max(others.values(), default=0)
        assert line[:3] == [names[number], str(counts.sum()), str(counts[number])]
        assert float(line[3]) == pytest.approx(counts[number] / counts.sum(), abs=1e-6)
        assert line[4] in ([names[other] for other in others if others[other] == most] or [""])
        assert int(line[5]) == most


ODD = [
    "a\nb",
    "tab\t",
    'quote"',
    "comma,",
    r"$\frac$",
    "日本",
    "x" * 300,
    os.fsdecode(b"no utf-8 \xff"),
    "",
    "back\\slash",
]


def test_any_name_of_a_class_can_be_written(tmp_path):
    confusion = np.arange(100).reshape(10, 10)
    confusion[3] = 0
    evaluate.write(tmp_path, {"top1": 0.5, "seen": 10}, confusion, ODD)
    wanted = [name.encode("utf-8", "backslashreplace").decode() for name in ODD]
    assert [line[0] for line in rows(tmp_path / "classes.csv")[1:]] == wanted
    assert [line[0] for line in rows(tmp_path / "confusion.csv")[1:]] == wanted
    assert rows(tmp_path / "classes.csv")[4] == ["comma,", "0", "0", "", "", "0"]  # no images, no share of them


# ---------------------------------------------------------------------------------------------------- other words, other data
def test_how_the_network_was_taught_to_see_is_kept_unless_it_is_typed(trained, photos, truth, tmp_path):
    again = ["data=folder", f"data.dir='{photos}'"]  # whose own defaults are 224 px and other moments
    close(evaluate.evaluate(trained.out, again, tmp_path), *truth)
    typed = ["data.image_size=40", "data.eval_resize=40", "data.mean=[0,0,0]", "eval_steps=2", "batch=5"]
    run = compose.for_inference([*again, *typed], trained)
    assert (run.data.image_size, run.data.eval_resize, run.data.mean, run.data.std) == (40, 40, [0] * 3, [50, 60, 70])
    told = evaluate.evaluate(trained.out, [*again, *typed], tmp_path)
    assert told["seen"] == 10
    close(told, truth[0][:10], logits_of(trained, run.data, 10))


def test_a_run_of_several_ranks_is_evaluated_by_one(trained, truth, tmp_path):
    several = dataclasses.replace(trained.cluster, name="cpu2", ranks=2, hosts=["a:1", "b:1"])
    rundir.save(dataclasses.replace(trained, cluster=several, eval_steps=2, batch=4), tmp_path / "run")
    shutil.copytree(Path(trained.out) / "checkpoints", tmp_path / "run" / "checkpoints")
    told = evaluate.evaluate(str(tmp_path / "run"), [], tmp_path / "scores")  # 2 steps of 2 images on 2 ranks
    close(told, *(part[:8] for part in truth))
    told = evaluate.evaluate(str(tmp_path / "run"), ["batch=3", "eval_steps=null"], tmp_path / "scores")
    close(told, *truth)


def test_names_are_those_that_training_kept_if_the_data_is_elsewhere_now(
    trained, photos, classes, tmp_path, monkeypatch
):
    monkeypatch.setattr(trained.data, "dir", "/gone")
    out = tmp_path / "run"
    shutil.copytree(trained.out, out)
    rundir.save(trained, out)
    assert files.read_classes((out / "classes.txt").read_text()) == classes
    with pytest.raises(UserError, match="/gone"):
        evaluate.evaluate(str(out), [], tmp_path / "scores")
    moved = shutil.copytree(photos, tmp_path / "moved")
    (moved / "classes.txt").unlink()
    evaluate.evaluate(str(out), [f"data.dir={moved}"], tmp_path / "scores")
    assert [line[0] for line in rows(tmp_path / "scores" / "classes.csv")[1:]] == classes
    (out / "classes.txt").unlink()
    evaluate.evaluate(str(out), [f"data.dir={moved}"], tmp_path / "scores")
    assert [line[0] for line in rows(tmp_path / "scores" / "classes.csv")[1:]] == ["0", "1", "2"]


def test_a_file_of_weights_tells_its_model_by_its_shapes_and_the_rest_is_typed(trained, trained_once, truth, tmp_path):
    weights.write(tmp_path / "w.safetensors", read_weights(trained.out), {})
    words = ["data=folder", f"data.dir='{trained_once.shards}'", *trained_once.preprocessing]
    close(evaluate.evaluate(str(tmp_path / "w.safetensors"), words, tmp_path / "scores"), *truth)
    assert [line[0] for line in rows(tmp_path / "scores" / "classes.csv")[1:]] == list(trained_once.names)
    tensors = read_weights(trained.out)
    del tensors["bn1.weight"]
    weights.write(tmp_path / "odd.safetensors", tensors, {})
    with pytest.raises(UserError, match=r"odd.safetensors: not the weights of a network in conf/model; give model="):
        evaluate.evaluate(str(tmp_path / "odd.safetensors"), words, tmp_path / "odd")


def test_classes_that_are_not_the_networks_are_refused(trained, prepared, tmp_path):
    four = prepared(dict.fromkeys("abcd", 4), tmp_path / "four")
    for words, told in {
        ("data=digits",): r"has 3 outputs, and data=digits has 10 classes; choose the data that it was trained for",
        ("data=folder", f"data.dir={four}"): "has 3 outputs, and data=folder has 4 classes",
        (f"data.dir={four}",): "label 4 is not in 1..3|has 3 outputs, and data=folder has 4 classes",
        ("data.classes=4",): "has 3 outputs, and data=folder has 4 classes",
        ("model=resnet18",): "tensors do not fit resnet18 .*: use model=tiny",
    }.items():
        with pytest.raises(UserError, match=told) as error:
            evaluate.evaluate(trained.out, words, tmp_path / "scores")
        assert "\n" not in str(error.value)


@pytest.fixture
def renamed(photos, tmp_path):
    """`renamed(names, labels)`: the shards with these names of the classes, and labels[n] in place of label n + 1."""

    def make(names, labels):
        folder = shutil.copytree(photos, tmp_path / "renamed")
        (folder / "manifest.json").unlink()
        files.write_classes(folder, names)
        for path in folder.glob("*/*-of-*"):
            index = indexes.index([str(path)])
            records = [tfexample.decode(shards.read(index, number)) for number in range(len(index))]
            changed = [{**row, "image/class/label": labels[row["image/class/label"] - 1]} for row in records]
            shards.write(path.parent, path.name, map(tfexample.encode, changed))
        return folder

    return make


def test_classes_of_other_names_are_refused_however_many_they_are(trained, classes, renamed, tmp_path):
    other = renamed([classes[0], "dogs", classes[2]], [1, 2, 3])
    with pytest.raises(UserError) as error:
        evaluate.evaluate(trained.out, [f"data.dir={other}"], tmp_path / "scores")
    first = "(class 2 of the network is 'dog', and of the data 'dogs')"
    assert str(error.value).startswith(f"data.dir={other}: not the classes of {trained.out} {first}")
    assert "\n" not in str(error.value) and not (tmp_path / "scores").exists()
    (other / "classes.txt").unlink()  # the way out, if they are the same under other names
    assert trained_load(trained.out, [f"data.dir={other}"]).names == classes


def test_classes_in_another_order_are_scored_by_name(trained, classes, truth, renamed, tmp_path, capsys):
    order = [unicodedata.normalize("NFD", classes[2]), *classes[:2]]
    other = renamed(order, [2, 3, 1])
    close(evaluate.evaluate(trained.out, [f"data.dir={other}"], tmp_path / "scores"), *truth)
    assert "its outputs are put in the order of the classes of" in capsys.readouterr().out
    found = {unicodedata.normalize("NFC", line[0]): line[1:3] for line in rows(tmp_path / "scores" / "classes.csv")[1:]}
    confusion = confusion_of(*truth)
    assert found == {name: [str(confusion[n].sum()), str(confusion[n, n])] for n, name in enumerate(classes)}


def test_data_of_fewer_classes_is_refused(trained, prepared, tmp_path):
    two = prepared(dict.fromkeys("ab", 4), tmp_path / "two")
    with pytest.raises(UserError, match="has 3 outputs, and data=folder has 2 classes"):
        evaluate.evaluate(trained.out, [f"data.dir={two}"], tmp_path / "scores")


def test_damaged_data_is_told_by_its_place_or_passed_over_if_asked(trained, photos, truth, tmp_path):
    hurt = shutil.copytree(photos, tmp_path / "hurt")
    index = indexes.index(shards.listing(str(hurt), shards.LAYOUTS[0][1]))
    [file], place = index.files, int(index.offset[4]) - 12  # before its length and checksum
    content = bytearray(Path(file).read_bytes())
    content[place + 300] ^= 1
    Path(file).write_bytes(content)
    with pytest.raises(UserError, match=f"{file}: corrupt record at byte {place};") as error:
        evaluate.evaluate(trained.out, [f"data.dir={hurt}"], tmp_path / "scores")
    assert "\n" not in str(error.value)
    told = evaluate.evaluate(trained.out, [f"data.dir={hurt}", "data.on_corrupt=skip"], tmp_path / "scores")
    labels, logits = truth
    kept = np.arange(len(labels)) != 4
    close(told, labels[kept], logits[kept])
    found = np.array([line[1:] for line in rows(tmp_path / "scores" / "confusion.csv")[1:]], int)
    np.testing.assert_array_equal(found, confusion_of(labels[kept], logits[kept]))


def test_an_image_that_cannot_be_decoded_is_told_by_its_place(trained, photos, tmp_path):
    hurt = shutil.copytree(photos, tmp_path / "hurt")
    index = indexes.index(shards.listing(str(hurt), shards.LAYOUTS[0][1]))
    [file] = index.files
    records = [shards.read(index, number) for number in range(len(index))]
    spot = records[4].index(b"\xff\xd8\xff")
    records[4] = records[4][:spot] + bytes(200) + records[4][spot + 200 :]
    with tf.io.TFRecordWriter(file) as writer:
        for record in records:
            writer.write(record)
    told = f"{file}, byte {int(index.offset[4]) - 12}: no image that can be decoded"
    with pytest.raises(UserError, match=re.escape(told)) as error:
        evaluate.evaluate(trained.out, [f"data.dir={hurt}"], tmp_path / "scores")
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data=digits"], "resnet.evaluate: give one run's folder or weights file, not 0; --help tells more"),
        (["RUN", "other"], "resnet.evaluate: give one run's folder or weights file, not 2"),
        (["nowhere"], "nowhere: no such file or folder; give "),
        (["nowhere.safetensors", "data=digits"], "nowhere.safetensors: no such file or folder; give "),
        (["RUN", "optim.lr=1"], "optim.lr=1: not for this command; it takes model, data, dtype, cluster"),
        (["RUN", "steps=1"], "steps=1: not for this command"),
        (["RUN", "dat.dir=x"], "dat.dir=x: not for this command"),
        (["RUN", "data.dri=x"], "data.dri: no such knob; did you mean data.dir?"),
        (["RUN", "data=imagnet"], "data=imagnet: no such option; did you mean imagenet?"),
        (["RUN", "model=null"], "model=null: no such option; leave it out, or choose from: resnet101"),
        (["RUN", "batch=many"], "batch=many: must be a whole number"),
        (["RUN", "batch=0"], "batch=0: must be above 0"),
        (["RUN", "data=imagenet"], "data.dir: must be given"),
        (["RUN", "data=folder", "data.dir=nowhere"], "no classes.txt here to tell the classes"),
        (["RUN", "data.dir=nowhere"], "python -m resnet.prepare"),
        (["RUN", "data.eval_resize=8"], "data.eval_resize=8: the centre crop of data.image_size=48 must fit in"),
        (["RUN", "out=FILE/x"], "/x: cannot be written to (Not a directory); give another folder"),
        (["FILE", "data=digits"], "/config.yaml: no kind of weights that is known here"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_command_that_cannot_be_is_refused_in_one_line(
    words, told, trained, monkeypatch, capsys, tmp_path, exit_status
):
    monkeypatch.chdir(tmp_path)
    run, file = trained.out, f"{trained.out}/config.yaml"
    words = [word.replace("RUN", run).replace("FILE", file) for word in words]
    before = sorted(Path(run).parent.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["resnet.evaluate", *words])
    assert exit_status(evaluate.main) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and told in err, err
    assert list(tmp_path.iterdir()) == []  # a typing error leaves no folder behind
    assert sorted(Path(run).parent.rglob("*")) == before


def test_help_is_shown_if_asked_or_nothing_is_given(monkeypatch, capsys, exit_status):
    for words in ([], ["--help"], ["run", "-h"]):
        monkeypatch.setattr(sys, "argv", ["resnet.evaluate", *words])
        assert exit_status(evaluate.main) == 0
        assert "python -m resnet.evaluate WEIGHTS" in capsys.readouterr().out


def test_a_path_may_have_an_equals_sign_and_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert cli.weights_and_overrides(["runs/lr=0.1", "data=digits", "out=x"], "c") == (
        "runs/lr=0.1",
        ["data=digits"],
        "x",
    )
    assert cli.weights_and_overrides(["data.dir=a/b", "~/run", "out=x", "out=y"], "c") == (
        "/home/me/run",
        ["data.dir=a/b"],
        "y",
    )
