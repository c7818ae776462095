"""A disk that is full while a checkpoint, the log, the index or the configuration is written: a real one, of a megabyte or two.

What prepare does then: tests/resnet/prepare/test_again.py.
"""

import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import small_disk
import tensorflow as tf
from fake_step import FakeStep
from run_files import lines, logged

from resnet import UserError, rundir
from resnet.data import indexes, shards
from resnet.rundir import metrics, result
from resnet.training import checkpoint
from resnet.training.loop import train

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
PAGE = 4096  # a tmpfs gives out whole ones


@pytest.fixture
def disk(tmp_path):
    with small_disk.mounted(tmp_path / "a disk") as disk:
        yield disk


@dataclass
class State:
    """In place of the progress of a run."""

    seconds: float = 0.0


def test_a_checkpoint_is_whole_or_not_there_whatever_room_there_is(disk, capfd):
    weights = tf.train.Checkpoint(network=tf.Variable(tf.range(5000.0)))

    def save(step):
        writer = checkpoint.CheckpointWriter(disk.path, weights, 3)
        saved = writer.save(step, None, State())
        writer.wait()
        return saved

    first, written = save(1), 0
    for pages in range(16):
        weights.network.assign(tf.range(5000.0) + pages)
        disk.fill(pages * PAGE)
        try:
            assert checkpoint.verify(save(2)) is None
            written += 1
        except UserError as error:
            text = str(error)
            assert "the checkpoint could not be written (No space left on device)" in text and "make room" in text
        assert checkpoint.verify(first) is None
        disk.free()
        newest, notes = checkpoint.restore(disk.path, weights)
        assert newest.step in (1, 2) and not notes
        assert weights.network.numpy()[0] == (pages if newest.step == 2 else 0)
        for path in (disk.path / checkpoint.FOLDER).iterdir():
            assert path.name.startswith("step-"), "nothing half written stays"
            if path != first.path:
                shutil.rmtree(path)
    assert 0 < written < 16
    capfd.readouterr()  # TensorFlow's own warnings


@pytest.mark.usefixtures("small_network")
def test_a_run_says_so_and_the_same_command_goes_on_when_there_is_room(disk, run_at, monkeypatch, capfd):
    words = ("model=tiny", "data=digits", "batch=96", "steps=10", "save_every_steps=2", "log_every_steps=1")
    run = run_at(disk.path.parent, *words, "eval=false", "track=off", f"out={disk.path / 'run'}")
    write, out = checkpoint.CheckpointWriter.write, Path(run.out)

    def on_full_disk(writer, slots, values, saved, statistics):  # in a thread, while training goes on to the next one
        if saved.step == 4:
            disk.fill()
        return write(writer, slots, values, saved, statistics)

    monkeypatch.setattr(checkpoint.CheckpointWriter, "write", on_full_disk)
    with pytest.raises(
        UserError, match=r"step-00000004: the checkpoint could not be written \(No space left on device\)"
    ):
        train(run, out, make_step=FakeStep)
    assert [saved.step for saved in checkpoint.list_checkpoints(out) if not checkpoint.verify(saved)] == [2]
    assert lines(out)[-1]["step"] <= 6  # the next save reports it
    monkeypatch.setattr(checkpoint.CheckpointWriter, "write", write)
    disk.free()
    content = train(run, out, make_step=FakeStep)
    assert content["steps"] == 10 and result.read(out) == content
    assert checkpoint.list_checkpoints(out)[-1].step == 10
    assert [step for step, _ in logged(out, "train/loss")][-8:] == list(range(3, 11))
    capfd.readouterr()


def test_lines_of_the_log_wait_for_room_are_told_once_and_none_is_lost(disk, capsys):
    log = metrics.MetricsFile(disk.path / "metrics.jsonl")
    disk.fill(PAGE)
    wanted = [json.dumps({"step": step, "train/loss": 1 / (step + 1)}) for step in range(300)]
    for line in wanted[:200]:
        log.append(line)
    assert capsys.readouterr().err == (
        f"{disk.path / 'metrics.jsonl'}: No space left on device; lines that cannot be written are kept, and written when "
        "they can be\n"
    )
    assert (disk.path / "metrics.jsonl").stat().st_size == PAGE
    disk.free()
    for line in wanted[200:]:
        log.append(line)
    assert log.close() is None
    assert (disk.path / "metrics.jsonl").read_text().splitlines() == wanted


def test_a_log_that_never_gets_room_ends_with_a_whole_line_and_says_what_is_missing(disk, capsys):
    log = metrics.MetricsFile(disk.path / "metrics.jsonl")
    disk.fill(PAGE)
    for step in range(200):
        log.append(json.dumps({"step": step, "train/loss": 1 / (step + 1)}))
    trouble = log.close()
    text = (disk.path / "metrics.jsonl").read_text()
    assert text.endswith("}\n") and [json.loads(line)["step"] for line in text.splitlines()] == list(
        range(text.count("\n"))
    )
    missing = 200 - text.count("\n")
    assert trouble == f"{log.path}: No space left on device; its last lines are missing, {missing} in all"
    capsys.readouterr()


def test_a_folder_on_a_full_disk_is_told_by_its_knob(disk, run_at):
    run = run_at(disk.path.parent, f"out={disk.path / 'run'}")
    disk.fill()
    with pytest.raises(UserError, match=r"out=.*: cannot be written to \(No space left on device\)"):
        rundir.save(run, Path(run.out))


def test_an_index_that_finds_no_room_in_the_cache_is_made_all_the_same(disk, tmp_path, monkeypatch):
    path = tmp_path / "shard"
    path.write_bytes(shards.encode_record(b"record") * 5000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk.path))
    disk.fill(2 * PAGE)
    assert len(indexes.index([str(path)])) == 5000
    assert not list(disk.path.rglob("*.npz"))
    disk.free()
    assert len(indexes.index([str(path)])) == 5000 and len(list(disk.path.rglob("*.npz"))) == 1


def test_a_disk_that_fails_in_another_way_is_no_full_one(tmp_path, monkeypatch):
    """The log survives any OSError of a write."""
    log, write = metrics.MetricsFile(tmp_path / "log"), os.write

    def failing(_file, _data):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "write", failing)
    log.append("one")
    assert log.error == "Input/output error"
    monkeypatch.setattr(os, "write", write)
    log.append("two")
    assert log.close() is None and (tmp_path / "log").read_text() == "one\ntwo\n"
