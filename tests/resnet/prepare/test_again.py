"""Killed, interrupted, out of disk, called twice: what stood stands, and the same command finishes to the same bytes."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from resnet import UserError, files
from resnet.data import indexes, manifest, shards
from resnet.prepare import __main__ as prepare
from resnet.prepare import state, target, writer

SHARDS = 12


def run(*words):
    """The command, in this process; raises what it tells the user."""
    prepare.do(prepare.parse(words))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def slow(tmp_path_factory, photo, encoded):
    """A tree that takes some seconds to prepare; the words for it, and what comes of them."""
    folder = tmp_path_factory.mktemp("slow")
    data = [encoded(photo(number, 1200, 900), quality=95) for number in range(4)]
    for name in ("cat", "dog"):
        (folder / "tree" / name).mkdir(parents=True)
        for image in range(30):
            (folder / "tree" / name / f"{image}.jpg").write_bytes(data[image % 4])
    words = ["source=folder", f"dir={folder / 'tree'}", f"train_shards={SHARDS}", "resize=800"]
    run(*words, f"out={folder / 'whole'}", "processes=2")
    return words, contents(folder / "whole")


@pytest.fixture
def quick(tree, tmp_path):
    """Words to prepare a small tree in this process, into tmp_path / "x"."""
    root = tree({"cat": 6, "dog": 6})
    return ["source=folder", f"dir={root}", f"out={tmp_path / 'x'}", "processes=1", "train_shards=5", "val_shards=2"]


def started(words, out, processes=2):
    command = [sys.executable, "-m", "resnet.prepare", *words, f"out={out}", f"processes={processes}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_shards(out, count, process):
    """Until so many are finished, and some are not."""
    until = time.monotonic() + 60
    while len(list(out.glob("img_*/*"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    return len(list(out.glob("img_*/*")))


def recorded(out):
    """The shards that a later call does not write again."""
    with state.claim(target.of(str(out))) as claimed:
        return claimed.finished()


def assert_whole_shards_only(out):
    """Half a shard never has a shard's name."""
    for path in [*out.glob("img_train/*"), *out.glob("img_val/*")]:
        assert re.fullmatch(r"img_(train|val)-\d{5}-of-\d{5}", path.name)
        index = indexes.index([str(path)])
        for number in range(len(index)):
            shards.read(index, number)
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGTERM))],
    ids=str,
)
def test_ended_halfway_and_called_again(slow, tmp_path, number):
    words, whole = slow
    out = tmp_path / "out"
    process = started(words, out)
    done = wait_for_shards(out, 7, process)  # two workers have six jobs at most: the first has been recorded
    assert done < SHARDS
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    if number != signal.SIGKILL:
        stopped = "stopped by a signal" if number == signal.SIGTERM else "interrupted"
        assert told == f"{stopped}; what is finished stays, and the same command resumes\n"
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "workers outlive the process that started them"
    assert_whole_shards_only(out)
    before = {name: (out / name).stat().st_mtime_ns for name in recorded(out)}
    assert before

    again = started(words, out)
    said, told = again.communicate(timeout=60)
    assert again.returncode == 0, told
    assert re.search(r"resuming: \d+ of 60 images are done", said)
    found = contents(out)
    assert {name: data for name, data in found.items() if name != "manifest.json"} == {
        name: data for name, data in whole.items() if name != "manifest.json"
    }
    assert json.loads(found["manifest.json"]) == json.loads(whole["manifest.json"])
    for name, at in before.items():
        assert (out / name).stat().st_mtime_ns == at, "a finished shard was made again"


def test_a_worker_that_dies_is_told(slow, tmp_path):
    words, _ = slow
    process = started(words, tmp_path / "out")
    wait_for_shards(tmp_path / "out", 2, process)
    for worker in psutil.Process(process.pid).children():
        if "resource_tracker" not in " ".join(worker.cmdline()):
            worker.kill()
            break
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert told.startswith("error: a worker process was killed")
    assert told.count("\n") == 1
    assert_whole_shards_only(tmp_path / "out")


def test_two_at_once_in_one_folder_are_one_too_many(quick, tmp_path):
    with (
        state.claim(target.of(str(tmp_path / "x"))),
        pytest.raises(UserError, match=f"^out={tmp_path}/x: another prepare is at work"),
    ):
        run(*quick)
    run(*quick)


# ----------------------------------------------------------------------------------------------------------------- disk full
def test_a_full_disk_is_told_and_the_same_command_goes_on(quick, tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=f"^out={tmp_path / 'x'}: the disk is full; what is finished stays: make room, and"
    ):
        run(*quick)
    assert not list((tmp_path / "x").rglob("*.part"))
    assert_whole_shards_only(tmp_path / "x")
    assert 0 < len(recorded(tmp_path / "x")) < 7
    monkeypatch.setattr(os, "fsync", fsync)
    run(*quick)
    again = [word for word in quick if not word.startswith("out=")]
    run(*again, f"out={tmp_path / 'y'}")
    assert contents(tmp_path / "x") == contents(tmp_path / "y")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.slow
def test_a_disk_that_is_really_full(tree, tmp_path, photo, encoded):
    root, disk = tree({"cat": 3, "dog": 3}), tmp_path / "disk"
    for number in range(30):  # PNG, so that nobody can foretell the size
        (root / "cat" / f"x{number}.png").write_bytes(encoded(photo(number, 800, 600), "PNG"))
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no mount here")
    words = ["source=folder", f"dir={root}", f"out={disk / 'x'}", "train_shards=10", "processes=2"]
    try:
        process = started(words[:2] + words[3:4], disk / "x")
        _, told = process.communicate(timeout=60)
        assert process.returncode == 1
        assert (
            told
            == f"error: out={disk / 'x'}: the disk is full; what is finished stays: make room, and the same command resumes\n"
        )
        assert_whole_shards_only(disk / "x")
        subprocess.run(["mount", "-o", "remount,size=50M", str(disk)], check=True)
        run(*words)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_too_small_a_disk_is_told_before_anything_is_written(quick, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"about 1\d\.?\d* kB more are needed there and 1 kB are free; make room"):
        run(*quick)
    assert not list((tmp_path / "x").glob("img_*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(quick, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        run(*quick)


# ------------------------------------------------------------------------------------------------------------- called again
def test_a_finished_folder_is_left_alone(quick, tmp_path, capsys):
    run(*quick)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")}
    capsys.readouterr()
    run(*quick, "max_rejected=0.5")
    assert (
        "prepared already, with these options: 10 training and 2 validation images of 2 classes"
        in capsys.readouterr().out
    )
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")} == before


def test_what_a_call_left_that_was_killed_in_its_last_moment_is_cleared_away(quick, tmp_path):
    run(*quick)
    (tmp_path / "x" / ".prepare").mkdir()
    (tmp_path / "x" / ".prepare" / "state.sqlite3").write_text("")
    run(*quick)
    assert not (tmp_path / "x" / ".prepare").exists()


@pytest.mark.parametrize("half", [False, True])
def test_other_options_are_refused(quick, tmp_path, half, monkeypatch):
    if half:
        monkeypatch.setattr(files, "write_classes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(*quick)
    else:
        run(*quick)
    before = contents(tmp_path / "x")
    for word, said in {
        "resize=16": "resize was null and is 16",
        "seed=9": "seed was 1 and is 9",
        "layout=flat": "layout was img_train",
    }.items():
        with pytest.raises(
            UserError,
            match=rf"x: {'half done' if half else 'finished'} with other options \({said}.*; give another out=",
        ):
            run(*quick, word)
    assert contents(tmp_path / "x") == before


def test_a_source_that_changed_meanwhile_is_refused(quick, tmp_path, monkeypatch, photo, encoded):
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_classes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(*quick)
    (tmp_path / "tree" / "cat" / "new.jpg").write_bytes(encoded(photo(99)))
    with pytest.raises(UserError, match="half done, and the source has changed since; delete that folder"):
        run(*quick)


def test_other_versions_are_refused_to_go_on(quick, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_classes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(*quick)
    versions = manifest.versions()
    monkeypatch.setattr(manifest, "versions", lambda: {**versions, "pillow": "99.0"})
    with pytest.raises(UserError, match=rf"half done with .*pillow {versions['pillow']}.*delete that folder"):
        run(*quick)


@pytest.mark.parametrize("there", ["notes.txt", "img_train/img_train-00000-of-00001", "manifest.json"])
def test_a_folder_of_something_else_is_refused_and_untouched(quick, tmp_path, there):
    (tmp_path / "x" / there).parent.mkdir(parents=True)
    (tmp_path / "x" / there).write_text("mine")
    with pytest.raises(UserError, match=r"it holds something else; give a new folder|manifest\.json: cannot be read"):
        run(*quick)
    assert contents(tmp_path / "x") == {there: b"mine"}


def test_a_shard_that_was_lost_or_cut_is_made_again(quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_classes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(*quick)
    shards = sorted((tmp_path / "x" / "img_train").iterdir())
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    with state.claim(target.of(str(tmp_path / "x"))) as claimed, claimed.db:
        claimed.forget(f"img_train/{shards[2].name}")
    made, make = [], writer.make
    monkeypatch.setattr(writer, "make", lambda job: (made.append(Path(job.file).name), make(job))[1])
    run(*quick)
    assert made == [path.name for path in shards[:3]]
    run(f"check={tmp_path / 'x'}", "processes=1")


def test_what_could_not_be_read_is_tried_again_and_what_is_broken_is_not(quick, tmp_path, monkeypatch):
    from resnet.prepare import archive

    (tmp_path / "tree" / "cat" / "broken.jpg").write_text("no image")
    read = archive.read

    def failing(entry):
        if entry.name.endswith("dog/003.jpg"):
            raise archive.Unreadable("cannot be read: Input/output error")
        return read(entry)

    monkeypatch.setattr(archive, "read", failing)
    with pytest.raises(UserError, match="2 of 13 images were rejected"):
        run(*quick)
    assert "dog/003.jpg\tcannot be read: Input/output error\n" in (tmp_path / "x" / "rejected.tsv").read_text()
    monkeypatch.setattr(archive, "read", read)
    made, make = [], writer.make
    monkeypatch.setattr(writer, "make", lambda job: (made.append(job), make(job))[1])
    run(*quick, "max_rejected=0.1")
    assert len(made) == 1
    assert (
        tmp_path / "x" / "rejected.tsv"
    ).read_text() == "cat/broken.jpg\tnot a JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or HEIC image\n"


def test_a_shard_with_no_image_left_is_told(quick, tmp_path):
    for path in (tmp_path / "tree").glob("*/*.jpg"):
        path.write_text("no image")
    with pytest.raises(UserError, match="none of the 12 images can be read"):
        run(*quick, "max_rejected=1")
