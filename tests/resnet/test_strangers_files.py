"""Files of a stranger's run, shards and weights: what is no regular file, or too large, is refused in a line, and at once.

No link in a run's folder is written through, or sent to MLflow.
"""

import contextlib
import io
import json
import os
import signal
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from resnet import UserError, evaluate, files, rundir
from resnet.config import resolvers
from resnet.data import indexes, manifest, shards
from resnet.data.source import beside
from resnet.launch import rank_status
from resnet.report import load
from resnet.rundir import lock, metrics, result
from resnet.sweep import argv
from resnet.track import provenance, store, sync, tracker
from resnet.training import checkpoint, lr_find, profiling, trained

SECONDS = 20  # on a busy machine


@contextlib.contextmanager
def at_once():
    """What is inside ends within seconds."""

    def late(*_signal):
        raise AssertionError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(read, *words):
    """The one line that `read` refuses its argument with; an absent or damaged file (None, or nothing) is an answer too."""
    with at_once():
        try:
            answer = read(*words)
        except UserError as error:
            line = str(error)
            assert len(line) < 600, line
            return line
    assert not answer, answer
    return ""


# ------------------------------------------------------------------------------------------------------- what is no regular file
def fifo(path):
    os.mkfifo(path)


def zeros(path):
    path.symlink_to("/dev/zero")


def dangling(path):
    path.symlink_to(path.with_name("nowhere"))


def huge(path):
    """A file with a hole of 80 GB."""
    path.touch()
    os.truncate(path, 80 << 30)


def socket_file(path):
    import socket

    with contextlib.closing(socket.socket(socket.AF_UNIX)) as one:
        here = os.open(path.parent, os.O_RDONLY)  # a socket's path has 108 characters at most
        one.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def folder(path):
    path.mkdir()


def saved(out):
    """A checkpoint whose commit.json is right."""
    place = checkpoint.path_of(out, 3)
    place.mkdir(parents=True, exist_ok=True)
    return place


def with_commit(name):
    """Reads a checkpoint of which the file `name` is somebody's."""

    def read(out):
        commit = {"step": 3, "top1": None, "state": {}, "sha256": {name: "0"}}
        (saved(out) / checkpoint.COMMIT).write_text(checkpoint.commit_text(commit))
        assert checkpoint.verify(checkpoint.list_checkpoints(out)[0])

    return read


def with_config(read, *words):
    def after(out):
        (out / "config.yaml").write_text("model: {name: tiny}\nbatch: 8\n")
        return read(out, *words)

    return after


READERS = {  # file -> how it is read
    "config.yaml": rundir.load,
    "config.yaml of a report": lambda out: [(out / "metrics.jsonl").touch(), load.trainings([f"{out}/."])][1],
    "result.json": result.read,
    "result.json of a report": with_config(
        lambda out: [(out / "metrics.jsonl").touch(), load.trainings([f"{out}/."])][1]
    ),
    "metrics.jsonl": lambda out: metrics.read(out / "metrics.jsonl"),
    "metrics.jsonl of a report": with_config(lambda out: load.trainings([f"{out}/."])),
    "mlflow.json": lambda out: store.SyncState.read(out, "sqlite:///x"),
    "tags.json": lambda out: sync.read_tags(out / "tags.json"),
    "logs/rank-0.json": rank_status.read_all,
    "sweep.yaml": lambda out: argv.read_argv(out, "sweep.resume=x"),
    "checkpoints/step-00000003/commit.json": lambda out: checkpoint.restore(out, None),
    "checkpoints/step-00000003/weights.index": with_commit("weights.index"),
    "checkpoints/step-00000003/statistics.npy": lambda out: checkpoint.read_statistics(
        checkpoint.Saved(saved(out), 3, None, {})
    ),
    "variables/variables.index": lambda out: trained.of_variables(out, "variables/variables", ["weights"]),
    "classes.txt": lambda out: resolvers.counted_classes(_parent_=resolvers.OmegaConf.create({"dir": str(out)})),
    "manifest.json": manifest.read,
    "manifest.json of a source": lambda out: beside(str(out), manifest.NAME),
    "train-00000-of-00001": lambda out: indexes.index([str(out / "train-00000-of-00001")]),
    "w.npz": lambda out: trained.read(str(out / "w.npz")),
    "w.safetensors": lambda out: trained.read(str(out / "w.safetensors")),
}


@pytest.mark.parametrize("make", [fifo, zeros, dangling, huge, socket_file, folder])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_of_a_bounded_size_is_not_read(tmp_path, monkeypatch, name, make):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "run" / name.split()[0]
    path.parent.mkdir(parents=True)
    make(path)
    try:
        line = refused(READERS[name], tmp_path / "run")
    except OSError as error:  # callers report it: a folder in place of a file
        assert make in (folder, dangling)
        line = str(error)
    if make in (fifo, zeros, huge) and name not in ("mlflow.json", "logs/rank-0.json", "config.yaml of a report"):
        assert path.name in line or make is huge, line


# ------------------------------------------------------------------------------------------------------------- what is too large
def weights_of(tensors, path):
    """An npz, or a safetensors file, of so many tensors; written as fast as a stranger's program would."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "w") as packed:
            for number in range(tensors):
                packed.writestr(f"{number}.npy", b"")
    else:
        row = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        header = json.dumps({str(number): row for number in range(tensors)}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_weights_of_too_many_tensors_are_refused_before_they_are_read(tmp_path, ending):
    path = weights_of(10_001, tmp_path / f"w{ending}")
    line = refused(trained.read, str(path))
    assert line == f"{path}: cannot be read (10,001 tensors; at most 10,000 are read); fetch or write it again"


def test_a_safetensors_header_of_a_gigabyte_is_not_read(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 30))
    os.truncate(path, 2 << 30)
    assert "(a header of 1,073,741,824 bytes; at most 16,777,216 are read)" in refused(trained.read, str(path))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x\n" * 2_000_000, "more than 100,000 lines"),
        ("a\n" + "x" * 1_000_000 + "\nb\n", "line 2 has more than 1,000 characters"),
        ("x" * (17 << 20), "more than 16,777,216 bytes"),
    ],
)
def test_a_classes_txt_is_bounded(tmp_path, text, reason):
    (tmp_path / "classes.txt").write_text(text)
    line = refused(READERS["classes.txt"], tmp_path)
    assert line.startswith(f"{tmp_path / 'classes.txt'}: {reason}"), line


@pytest.mark.parametrize("number", ["9" * 400, "9" * 5000, "1e400", "NaN", "9223372036854775808", "[" * 100_000])
def test_a_number_that_no_computer_counts_to_is_none(tmp_path, number):
    path = tmp_path / "metrics.jsonl"
    sound = '{"step": 1, "time_ms": 5, "train/loss": 2.5}\n'
    path.write_text(
        f'{sound}{{"step": 2, "time_ms": 6, "train/loss": {number}}}\n{{"step": {number}, "time_ms": 7, "a": 1}}\n'
    )
    with at_once():
        assert metrics.read(path) == {"train/loss": {1: 2.5}}
    (tmp_path / "result.json").write_text(f'{{"final/top1": {number}, "steps": 3')
    assert refused(result.read, tmp_path) == ""


def test_a_line_without_end_is_read_in_pieces(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * (3 << 20) + b'\n{"step": 1, "a": 2}\n{"step": 2, "a"')
    with at_once(), path.open("rb") as file:
        assert metrics.read(path) == {"a": {1: 2.0}}
        assert [end for line, end in metrics.lines(file) if metrics.parse(line)] == [path.stat().st_size - 15]


@pytest.mark.parametrize(
    ("knob", "value", "reason"),
    [
        ("model.depths", [1_000_000, 1, 1, 1], "give four numbers above 0 and up to 256"),
        ("model.width", 10**9, "must be at most 4,096"),
        ("model.width", 4096, "weights; at most 10,000,000,000 are tried here"),
        ("batch", 10**9, "must be at most 10,000,000"),
        ("data.image_size", 10**6, "must be at most 4,096"),
        ("data.classes", 10**9, "must be at most 100,000"),
        ("cluster.threads", 10**9, "must be at most 10,000"),
        ("cluster.ranks", 10**9, "must be at most 10,000"),
    ],
)
def test_sizes_in_a_config_yaml_that_would_fill_the_memory_are_refused(run_of, tmp_path, knob, value, reason):
    run = run_of("model=tiny", "data=synthetic", "track=off")
    group, _, leaf = knob.rpartition(".")
    setattr(getattr(run, group) if group else run, leaf, value)
    rundir.save(run, tmp_path / "run")
    line = refused(rundir.load, tmp_path / "run")
    assert f"({knob}={value}: " in line and reason in line, line


def test_an_index_that_names_more_than_the_files_hold_is_not_followed(tmp_path):
    """TensorFlow makes room for a tensor before it looks for it."""
    import tensorflow as tf

    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "weights"), tensor_names=["a"], shape_and_slices=[""], tensors=[tf.zeros([1000])]
    )
    assert checkpoint.open_variables(tmp_path / "weights").has_tensor("a")
    os.truncate(tmp_path / "weights.data-00000-of-00001", 10)
    with pytest.raises(ValueError, match="names more than the files hold"):
        checkpoint.open_variables(tmp_path / "weights")


# ------------------------------------------------------------------------------------------------------------------------- links
def hold(out):
    with lock.hold(out):
        pass


WRITERS = {  # file -> how it is written
    ".lock": hold,
    "metrics.jsonl": lambda out: metrics.MetricsFile(out / "metrics.jsonl").append("{}"),
    "environment.txt": provenance.environment,
    "config.yaml": lambda out: files.write_text(out / "config.yaml", "x"),
    ".result.json.PID.part": lambda out: result.write(out, {}),
    "logs/rank-0.log": lambda out: rank_status.redirect(out, 0),
    "lr_find.csv": lambda out: lr_find.write_csv(out / "lr_find.csv", lr_find.Curve([1.0], [1.0], [1.0])),
    "scores.json": lambda out: evaluate.write(out, {}, np.eye(2, dtype=int), ["a", "b"]),
    "classes.csv": lambda out: evaluate.write(out, {}, np.eye(2, dtype=int), ["a", "b"]),
    "operations.csv": lambda out: profiling.write(out / "operations.csv", []),
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_through_a_link(tmp_path, name, monkeypatch):
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    path = tmp_path / "run" / name.replace("PID", str(os.getpid()))
    path.parent.mkdir(parents=True)
    path.symlink_to(theirs)
    monkeypatch.setattr(os, "dup2", lambda *_handles: None)
    with contextlib.suppress(UserError), at_once():
        WRITERS[name](tmp_path / "run")
    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("name", lock.SUBFOLDERS)
def test_a_run_s_folders_are_no_links_or_files_and_hold_none(tmp_path, name):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "run")  # the run's own folder may be one
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / name.replace("PID", str(os.getpid()))
    path.symlink_to(theirs)
    assert f"{name} must be a folder" in refused(hold, tmp_path / "linked")
    path.unlink()
    path.touch()
    assert f"{name} must be a folder" in refused(hold, tmp_path / "linked")
    path.unlink()
    path.mkdir()
    hold(tmp_path / "linked")
    (path / "deep").mkdir()
    (path / "deep" / "x").symlink_to(theirs)
    assert f"{name}/deep/x is a link" in refused(hold, tmp_path / "linked")


def test_data_and_weights_may_be_links(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    shards.write(real, "shard", [b"record"])
    files.write_classes(real, ["a", "b"])
    np.savez(real / "w.npz", **{"fc.bias": np.zeros(3)})
    for path in real.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert len(shards.scan(str(tmp_path / "shard"))[0]) == 1
    assert READERS["classes.txt"](tmp_path) == 2
    assert trained.read(str(tmp_path / "w.npz"))["fc.bias"].shape == (3,)


def test_no_link_is_sent_to_mlflow(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(store, "log_artifact", lambda *words: sent.append(words[-1]))
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"notes\.txt: a link, which is not sent"):
        tracker.log_artifact(tmp_path / "notes.txt", "sqlite:///x", None, "1")
    with pytest.raises(UserError, match=r"notes\.txt: a link, which is not sent"):
        tracker.log_artifact(tmp_path, "sqlite:///x", None, "1")
    tracker.log_artifact(tmp_path / "secret", "sqlite:///x", None, "1")
    assert sent == [tmp_path / "secret"]


def test_an_answer_of_the_program_has_no_limit_of_its_own(tmp_path):
    """What is refused above is what no run of this suite writes."""
    path = files.write_text(tmp_path / "a.json", json.dumps({"n": 2**63 - 1, "list": [1.5] * 1000}))
    assert files.read_json(path)["n"] == 2**63 - 1
    assert files.read_text(str(path)) == path.read_text()
    assert io.BytesIO(files.read_bytes(path)).read() == path.read_bytes()
    assert Path("/proc/self/status").exists() is False or files.read_bytes("/proc/self/status")
