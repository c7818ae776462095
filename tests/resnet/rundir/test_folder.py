"""A run's folder: what is written is read again as it was, it is nobody else's, and its run goes on."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import psutil
import pytest
import yaml

from resnet import UserError, rundir
from resnet.config import fingerprint
from resnet.config.run import Run
from resnet.config.track import Off
from resnet.rundir import lock


# -------------------------------------------------------------------------------------------------- there and back
@pytest.fixture(scope="module")
def default_yaml(tmp_path_factory):
    """config.yaml of a run of which nothing was said, as it is printed."""
    program = [sys.executable, "-m", "resnet.train", "--cfg", "job", "--resolve"]
    return subprocess.run(
        program, cwd=tmp_path_factory.mktemp("empty"), capture_output=True, text=True, check=True
    ).stdout


SHAPES = [
    (),
    ("recipe=quickstart",),
    ("optim=lars", "dtype=bf16", "track=off"),
    ("optim=lars", "batch=4096", "schedule=cosine"),
    ("schedule=constant", "data=synthetic", "cluster=gpu1", "model=resnext50", "steps=7", "stop_at_top1=0.5"),
    (
        "data=imagenet",
        "data.dir=/x",
        "model=resnet18",
        "optim.nesterov=true",
        "schedule.boundaries_epochs=[1e-3,1000]",
        "schedule.warmup_epochs=0",
        "optim.weight_decay=1e-7",
        "eval=false",
        "seed=0",
    ),
    ("track.run_name='a: b #c'", "track.experiment='null'", "out='3'"),
]


@pytest.mark.parametrize("words", SHAPES, ids=" ".join)
def test_a_saved_run_is_loaded_as_it_was(frozen, words, monkeypatch, tmp_path):
    run = frozen(*words)
    rundir.save(run, tmp_path / "saved")
    monkeypatch.chdir("/")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    again = rundir.load(tmp_path / "saved")
    assert again == run
    for knob in dataclasses.fields(Run):
        assert type(getattr(again, knob.name)) is type(getattr(run, knob.name))
    assert fingerprint.flat(again) == fingerprint.flat(run)


def test_config_yaml_is_plain_resolved_and_complete(frozen, tmp_path):
    run = frozen("optim=lars")
    rundir.save(run, tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    assert "${" not in text and "???" not in text and "!!" not in text
    saved = yaml.safe_load(text)
    assert set(saved) == {knob.name for knob in dataclasses.fields(Run)}
    assert saved["optim"]["name"] == "lars" and saved["optim"]["lr"] == 2.5
    assert len(saved["optim"]["rows"]) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]  # nothing is left of writing it


def test_a_folder_without_a_run_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=rf"^{tmp_path}: no run here \(config\.yaml is missing\)"):
        rundir.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "- 1", "a: [", "\tx", "model: 3", "{}", "batch: 3\nmodel: {name: tiny}", "\x00"],
    ids=repr,
)
def test_a_config_yaml_that_is_none_is_refused_by_name(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        rundir.load(tmp_path)
    assert f"{tmp_path}/config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda saved: saved["optim"].update(momentm=1), "optim.momentm"),
        (lambda saved: saved["optim"].update(lr="fast"), "optim.lr=fast"),
        (lambda saved: saved["optim"].update(lr=-1), "optim.lr=-1"),
        (lambda saved: saved["optim"].update(name="adam"), "adam"),
        (lambda saved: saved.update(batch=None), "batch"),
        (lambda saved: saved.pop("optim"), "optim"),
        (lambda saved: saved.update(extra=1), "extra"),
        (lambda saved: saved["model"].update(_target_="psutil.Popen"), "model._target_"),
        (lambda saved: saved.update(hydra={"callbacks": {"x": {"_target_": "psutil.Popen"}}}), "hydra"),
        (lambda saved: saved.update(init="${oc.env:HOME}"), "${oc.env:HOME} is not resolved"),
        (
            lambda saved: saved["cluster"].update(ranks=2, hosts=["-oProxyCommand=x:2"]),
            "cluster.hosts=['-oProxyCommand=x:2']",
        ),
    ],
)
def test_a_config_yaml_that_was_edited_is_checked_again(default_yaml, tmp_path, edit, named):
    saved = yaml.safe_load(default_yaml)
    del saved["sweep"]  # which is printed, and is no part of a run
    edit(saved)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(UserError) as caught:
        rundir.load(tmp_path)
    assert named in str(caught.value) and "\n" not in str(caught.value)


CHOOSE = ("optim.name", "schedule.name", "data.name", "augment.name", "track.name", "finetune.freeze")
ODD = [
    "a${b}",
    "${batch}",
    r"\${b}",
    r"\\${b}\\",
    "a${oc.env:HOME}",
    "off",
    "1e3",
    "null",
    "a: b # c",
    "'\"",
    "é\n\t ",
    "\udc80",
]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_every_string_of_a_run_comes_back_as_it_was(frozen, raw, tmp_path, text):
    run = frozen("data=folder", "data.dir=/x", "data.classes=3", "init=/y", "optim=lars", "track.tags={a: b}")
    strings = [name for name, value in fingerprint.flat(run).items() if isinstance(value, str)]
    strings = [name for name in strings if not hasattr(of(run, name), "name")]  # no Enum
    assert {"out", "init", "data.dir", "track.uri", "track.experiment", "track.run_name", "model.name"} <= set(strings)
    for name in strings:
        if name not in CHOOSE:
            put(run, name, f"sqlite:////{text}" if name == "track.uri" else f"/{text}")
    run.track.tags, run.finetune.freeze = {"a": text}, [text]
    run.optim.rows[0].source = text
    rundir.save(run, tmp_path / "mine")
    assert rundir.load(tmp_path / "mine") == run
    rundir.check_folder(run, tmp_path / "mine")
    again = rundir.resume(raw("resume=mine"))
    again.out = run.out
    assert again == run


def of(run, name):
    """The knob of a dotted name, as it is."""
    for part in name.split("."):
        run = getattr(run, part)
    return run


def put(run, name, value):
    parent, _, knob = name.rpartition(".")
    setattr(of(run, parent) if parent else run, knob, value)


# ------------------------------------------------------------------------------------------------ the folder of a run
def test_a_folder_is_taken_once_and_again_by_the_same_run(frozen, tmp_path):
    run = frozen("out=mine")
    rundir.claim(run, tmp_path / "mine")
    rundir.claim(run, tmp_path / "mine")
    assert rundir.load(tmp_path / "mine") == run


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(frozen, tmp_path):
    run, out = frozen(), tmp_path / "mine"
    rundir.claim(run, out)
    halves = [".classes.txt.9981.part", ".result.json.12.part", ".config.yaml.8.part", ".curves.png.7.part"]
    others = ["notes.part", ".mine", ".part", "result.json", ".gitignore", ".my.part"]
    folders = [".saved_model-x1y2.8.part", ".model.12.part", "model", ".server.part"]
    for name in (*halves, *others):
        (out / name).write_text("x")
    for name in folders:
        (out / name).mkdir()
        (out / name / "inside").write_text("x")
    rundir.claim(run, out)
    left = {path.name for path in out.iterdir()}
    assert left == {*others, "model", ".server.part", "config.yaml"}


def test_what_does_not_move_the_weights_may_change_in_a_folder(frozen, tmp_path):
    rundir.claim(frozen(), tmp_path / "mine")
    run = frozen(
        "steps=9",
        "eval=false",
        "log_every_steps=1",
        "track=off",
        "cluster.threads=1",
        "data.dir=/moved",
        "on_nan.policy=skip",
    )
    rundir.claim(run, tmp_path / "mine")
    assert rundir.load(tmp_path / "mine") == run


def a_step(out):
    (out / "metrics.jsonl").write_text('{"step": 0, "system/cpu": 1}\n{"step": 1, "train/loss": 2.5}\n')


def a_checkpoint(out):
    (out / "checkpoints" / "step-00000001").mkdir(parents=True)


def a_result(out):
    (out / "result.json").write_text("{}")


def a_process(out):
    other = psutil.Process(os.getppid())
    holder = lock.Holder(socket.gethostname(), other.pid, other.create_time(), "now")
    (out / lock.FILE).write_text(json.dumps(dataclasses.asdict(holder)))


def test_a_start_that_failed_leaves_the_folder_to_the_next_one(frozen, tmp_path):
    """Whatever failed: there is no step to lose, and nothing of it is taken for the other run's."""
    out = tmp_path / "mine"
    rundir.claim(frozen("init=/bad"), out)
    for name in ("classes.txt", "mlflow.json", "mlflow-0a1b2c3d.json", "tags.json", "notes.txt"):
        (out / name).write_text("x")
    (out / "metrics.jsonl").write_text('{"step": 0, "system/cpu": 1}\n')
    run = frozen("optim.lr=3")
    rundir.check_folder(run, out)
    rundir.claim(run, out)
    assert rundir.load(out) == run
    assert {path.name for path in out.iterdir()} == {"config.yaml", "notes.txt"}
    (out / "mlflow.json").write_text("x")  # the same run once more is the same in MLflow
    rundir.claim(run, out)
    assert (out / "mlflow.json").exists()


@pytest.mark.parametrize("leave", [a_step, a_checkpoint, a_result, a_process])
def test_another_run_is_not_written_over_the_one_that_lies_there(frozen, tmp_path, leave):
    rundir.claim(frozen(), tmp_path / "mine")
    leave(tmp_path / "mine")
    before = (tmp_path / "mine" / "config.yaml").read_bytes()
    for word, told in {
        "optim.lr=0.5": "optim.lr was 0.128 and is 0.5",
        "seed=2": "seed was 1 and is 2",
        "model=tiny": "model.name was resnet50 and is tiny",
        "optim=lars": "optim.name was sgd and is lars",
        "epochs=4": "epochs was 90.0 and is 4.0",
    }.items():
        other = frozen(word)
        for refuse in (rundir.check_folder, rundir.claim):
            with pytest.raises(UserError) as caught:
                refuse(other, tmp_path / "mine")
            assert f"out={tmp_path}/mine: another run is here" in str(caught.value)
            assert told in str(caught.value) and "give another out=" in str(caught.value)
    assert (tmp_path / "mine" / "config.yaml").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_refused_by_name(frozen, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"^out={tmp_path}/file/run: cannot be written to"):
        rundir.save(frozen(), tmp_path / "file" / "run")


# ----------------------------------------------------------------------------------------------------------- resume=
@pytest.fixture
def begun(frozen, tmp_path):
    """The folder of a run that was begun."""
    run = frozen("model=tiny", "optim=lars", "optim.lr=3", "out=begun", "track.run_name='my run'", "steps=4")
    rundir.claim(run, tmp_path / "begun")
    return run


def test_resume_goes_on_with_the_settings_of_the_folder(begun, raw):
    assert rundir.resume(raw("resume=begun")) == begun


def test_resume_takes_what_does_not_move_the_weights_from_the_command_line(begun, raw):
    run = rundir.resume(raw("resume=begun", "steps=9", "eval=false", "track=off", "cluster.threads=1"))
    assert (run.steps, run.eval, run.cluster.threads) == (9, False, 1)
    assert isinstance(run.track, Off)
    assert (run.model, run.optim, run.schedule, run.out) == (begun.model, begun.optim, begun.schedule, begun.out)


@pytest.mark.usefixtures("begun")
def test_resume_takes_a_string_as_it_is(raw):
    assert rundir.resume(raw("resume=begun", r"track.run_name='a\${b}'")).track.run_name == "a${b}"


@pytest.mark.usefixtures("begun")
def test_resume_follows_a_folder_that_was_moved(raw, tmp_path):
    (tmp_path / "begun").rename(tmp_path / "moved here")
    assert rundir.resume(raw("resume='moved here'")).out == str(tmp_path / "moved here")


@pytest.mark.parametrize("word", ["optim.lr=1", "model=resnet18", "out=x", "recipe=quickstart", "+x=1"])
@pytest.mark.usefixtures("begun")
def test_resume_refuses_what_would_be_another_run(raw, word):
    with pytest.raises(UserError) as caught:
        rundir.resume(raw("resume=begun", word))
    message = str(caught.value)
    assert word in message or word.lstrip("+") in message
    assert "\n" not in message


def test_resume_of_nothing_is_refused_by_name(raw, tmp_path):
    with pytest.raises(UserError, match=rf"^{tmp_path}/nowhere: no run here"):
        rundir.resume(raw("resume=nowhere"))
