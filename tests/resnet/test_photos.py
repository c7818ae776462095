"""`data=folder data.dir=photos`: photographs become shards once, whoever starts, and a run goes on with its own images only."""

import functools
import os
import shutil
import threading
import time
from pathlib import Path

import psutil
import pytest

from resnet import UserError, cli, photos, rundir
from resnet.config import compose
from resnet.config.fingerprint import fingerprint
from resnet.data import manifest, source
from resnet.prepare import __main__ as prepare

SMALL = ("model=tiny", "track=off", "data=folder", "data.image_size=32", "data.eval_resize=32", "batch=4")


@pytest.fixture(autouse=True)
def calls(monkeypatch, tmp_path):
    """The command lines that resnet.prepare gets; it works in this process, without the start of another one."""
    lines = []

    def run(words, _lock):
        lines.append(words)
        try:
            prepare.do(prepare.parse([*words, "processes=1"]))
        except UserError as error:
            return cli.FAILED, str(error)
        return cli.DONE, ""

    monkeypatch.setattr(photos, "run_prepare", run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    return lines


def forget():
    """As a new process, which has listed nothing yet."""
    photos.prepare.cache_clear()


@pytest.fixture
def shots(tree, tmp_path):
    """A folder of photographs."""
    return tree({"cat": 4, "dog": 4, "emu": 4}, tmp_path / "my photos", width=40, height=36)


def test_photographs_are_prepared_by_themselves_once(shots, calls, tmp_path, run_of, capsys):
    run = run_of(*SMALL, "data.dir='my photos'")
    place = Path(run.data.shards)
    assert (run.data.dir, run.data.classes) == (str(shots), 3)
    assert place.parent == tmp_path / "cache" / "resnet" / "folders" and place.name == run.data.listing
    assert photos.LISTING.fullmatch(run.data.listing) and run.data.listing.startswith("my_photos-")
    lines = capsys.readouterr().out.splitlines()
    size = sum(path.stat().st_size for path in shots.glob("*/*")) / 1e6
    assert lines[0] == (
        f"data.dir={shots}: 12 files, {size:,.1f} MB, become shards in {place}, once; data.prepared= keeps them elsewhere"
    )
    assert "held out for validation: 10.0% of each class, drawn with seed 1" in lines
    assert not [line for line in lines if line.startswith("next:")]
    opened = source.open_source(run.data)
    assert (opened.train_images, opened.eval_images) == (9, 3)
    assert source.class_names(run.data) == ["cat", "dog", "emu"]
    assert source.described(opened)["source"] == str(shots)
    forget()
    again = run_of(*SMALL, "data.dir='my photos'", "optim.lr=0.5")
    assert again.data == run.data and len(calls) == 1
    assert fingerprint(run_of(*SMALL, "data.dir='my photos'")) == fingerprint(run)


def test_what_else_is_wrong_is_refused_before(shots, calls, run_of):
    for word in ("batch=0", "data.max_rejected=3"):
        with pytest.raises(UserError, match=f"^{word}"):
            run_of(*SMALL, f"data.dir='{shots}'", word)
    assert not calls


def test_shards_may_be_kept_elsewhere_and_read_directly(shots, calls, tmp_path, run_of):
    run = run_of(*SMALL, f"data.dir='{shots}'", "data.prepared=elsewhere")
    assert Path(run.data.shards) == tmp_path / "elsewhere" / run.data.listing
    plain = run_of(*SMALL, f"data.dir='{run.data.shards}'")
    assert (plain.data.listing, plain.data.shards, plain.data.classes) == (None, run.data.shards, 3)
    for word in ("data.prepared=x", "data.links=follow"):
        with pytest.raises(
            UserError, match=rf"^{word.partition('=')[0]}=.*: is for photographs, and there are none in"
        ):
            run_of(*SMALL, f"data.dir='{run.data.shards}'", word)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data.prepared=.*/file: cannot be written to \(File exists\)"):
        run_of(*SMALL, f"data.dir='{shots}'", "data.prepared=file")
    assert len(calls) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda root: os.utime(root / "cat" / "000.jpg", (1, 1)),
        lambda root: (root / "cat" / "000.jpg").rename(root / "dog" / "new.jpg"),
    ],
    ids=["time", "class"],
)
def test_other_photographs_are_another_run(shots, run_of, tmp_path, change):
    first = run_of(*SMALL, f"data.dir='{shots}'")
    change(shots)
    forget()
    second = run_of(*SMALL, f"data.dir='{shots}'")
    assert second.data.listing != first.data.listing and fingerprint(second) != fingerprint(first)
    rundir.save(first, tmp_path / "run")
    (tmp_path / "run" / "result.json").touch()
    with pytest.raises(
        UserError, match=rf"another run is here \(data.listing was {first.data.listing} and is {second.data.listing}"
    ):
        rundir.check_folder(second, tmp_path / "run")


def test_a_run_goes_on_with_its_own_images_or_not_at_all(shots, calls, run_of, tmp_path):
    first = run_of(*SMALL, f"data.dir='{shots}'")
    rundir.save(first, tmp_path / "run")
    before = manifest.read(Path(first.data.shards))
    shutil.rmtree(first.data.shards)  # the cache was emptied
    resumed = rundir.load(tmp_path / "run")
    assert resumed.data == first.data and len(calls) == 1  # a report on it prepares nothing
    source.open_source(resumed.data)
    assert manifest.read(Path(first.data.shards)) == before and len(calls) == 2
    (shots / "cat" / "000.jpg").unlink()
    assert source.open_source(resumed.data).train_images == 9  # its shards are there
    shutil.rmtree(first.data.shards)
    with pytest.raises(
        UserError, match=r"^data.dir=.*: has changed since this run began, and the shards of then are not in"
    ):
        source.open_source(resumed.data)
    assert len(calls) == 2


def test_a_stranger_s_listing_leads_nowhere(run_of):
    with pytest.raises(UserError, match=r"^data.listing=\.\./x-0123456789abcdef: is set by itself"):
        run_of(*SMALL, "data.dir=x", "data.classes=3", "data.listing=../x-0123456789abcdef")


def test_a_trained_run_is_evaluated_on_other_photographs(shots, tree, run_of, tmp_path):
    run = run_of(*SMALL, f"data.dir='{shots}'")
    other = tree({"cat": 2, "dog": 2, "emu": 2}, tmp_path / "more")
    lent = compose.for_inference([f"data.dir={other}"], run)
    assert lent.data.dir == str(other) and lent.data.listing.startswith("more-")
    assert source.open_source(lent.data).eval_images == 3
    assert compose.for_inference(["batch=2"], run).data == run.data


def test_a_table_and_links_are_handed_on(shots, calls, run_of, tmp_path):
    rows = [f"{path.name},{path.parent.name}" for path in sorted(shots.glob("*/*"))]
    for number, path in enumerate(sorted(shots.glob("*/*"))):
        path.rename(shots / f"{number}.jpg")
    rows = [f"{number},x,{row.partition(',')[2]}" for number, row in enumerate(rows)]
    (tmp_path / "train.csv").write_text("id,kind,what\n" + "\n".join(rows))
    words = (*SMALL, f"data.dir='{shots}'", "data.labels=train.csv")
    with pytest.raises(
        UserError,
        match=r"^data.labels=.*: which of its columns 'id', 'kind', 'what' has the labels\? Say it with data.label_col",
    ):
        run_of(*words)
    for path in [path for path in shots.iterdir() if path.is_dir()]:
        path.rmdir()
    forget()
    run = run_of(*words, "data.label_column=what", "data.links=follow")
    assert source.class_names(run.data) == ["cat", "dog", "emu"]
    assert {"links=follow", f"labels={tmp_path}/train.csv", "label_column=what"} < set(calls[-1])


# --------------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: [shutil.rmtree(path) for path in root.iterdir()], r"nothing is in it; give a folder of shards, or of"),
        (lambda root: [shutil.rmtree(root / name) for name in ("cat", "dog")], r"one class only \('emu'\)"),
        (lambda root: [path.write_text("no") for path in root.glob("*/*")], r"none of the 12 images can be read; .*/rejected"),
        (
            lambda root: next(root.glob("*/*")).write_text("no"),
            r"1 of 12 images were rejected, more than data.max_rejected=0.001 allows; .* with data.max_rejected=0.0834;",
        ),
        (
            lambda root: [(root / "train").mkdir(), *(shutil.move(root / name, root / "train") for name in ("cat", "dog"))],
            r"[^:]*/train: no validation images beside it; name them with val=.*; the knobs that are not data's are those of",
        ),
        (lambda root: shutil.rmtree(root), "no classes.txt here"),
    ],
    ids=["empty", "one class", "unreadable", "one unreadable", "train only", "nothing"],
)  # fmt: skip
def test_folders_that_do_not_do(shots, run_of, change, said):
    change(shots)
    with pytest.raises(UserError, match=rf"^data.dir={shots}: {said}") as caught:
        run_of(*SMALL, f"data.dir='{shots}'")
    assert "\n" not in str(caught.value)


def test_what_looks_like_shards_is_not_prepared(tmp_path, shots):
    assert photos.are_in(str(shots))
    for number, name in enumerate(
        ("img_train/img_train-00000-of-00001", "x.tfrecord", "train.tar", "train/000.tar", ".prepare", "classes.txt")
    ):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        path.touch()
        assert not photos.are_in(str(tmp_path / str(number)))
    (shots / "photos.tar").touch()  # what it was unpacked from
    (shots / "1-of-2.jpg").touch()
    (shots / "cat" / "itself.jpg").symlink_to(shots / "cat" / "itself.jpg")
    assert photos.listing_of(photos.Photos(str(shots), None, None, "follow", 0, None))[1] == 15
    assert (
        photos.are_in(str(shots)) and not photos.are_in("memory://bucket/x") and not photos.are_in(str(tmp_path / "no"))
    )


# ------------------------------------------------------------------------------------------------- several, and interrupted
def test_of_two_starts_at_once_one_prepares(shots, calls, monkeypatch, tmp_path):
    both, run = threading.Barrier(2, timeout=30), photos.run_prepare

    def slow(words, lock):
        both.wait()  # until the other one is about to ask for the lock
        return run(words, lock)

    monkeypatch.setattr(photos, "run_prepare", slow)
    known = photos.Photos(str(shots), None, None, "inside", 0.001, str(tmp_path / "x"))
    ask = functools.partial(photos.prepare.__wrapped__, known)
    names = []
    first = threading.Thread(target=lambda: names.append(ask()))
    first.start()
    second = threading.Thread(target=lambda: (both.wait(), names.append(ask())))
    second.start()
    first.join()
    second.join()
    assert len(names) == 2 and len(set(names)) == 1 and len(calls) == 1


def test_a_change_while_they_are_prepared_is_noticed(shots, calls, monkeypatch, run_of):
    run = photos.run_prepare

    def changing(words, lock):
        (shots / "cat" / "000.jpg").write_bytes((shots / "cat" / "001.jpg").read_bytes() + b" ")
        return run(words, lock)

    monkeypatch.setattr(photos, "run_prepare", changing)
    with pytest.raises(UserError, match="has changed while it was prepared; start again"):
        run_of(*SMALL, f"data.dir='{shots}'")
    monkeypatch.setattr(photos, "run_prepare", run)
    run_of(*SMALL, f"data.dir='{shots}'")
    assert len(calls) == 2


def test_a_preparation_is_a_process_whose_error_and_end_are_told(shots, monkeypatch, tmp_path, capfd):
    """The real process, which fails; in the slow test below one ends well."""
    monkeypatch.undo()
    (shots / "cat" / "000.jpg").write_text("none")
    known = photos.Photos(str(shots), None, None, "inside", 0.001, str(tmp_path / "x"))
    with pytest.raises(
        UserError, match=r"^data.dir=.*: 1 of 12 images were rejected, more than data.max_rejected=0.001"
    ):
        photos.prepare.__wrapped__(known)
    assert "3 classes, 9 training and 3 validation images to 1 + 1 shards" in capfd.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        photos.stopped(cli.INTERRUPTED)
    with pytest.raises(cli.Stopped):
        photos.stopped(cli.STOPPED)


@pytest.mark.slow
def test_a_start_that_is_killed_leaves_no_process_and_the_next_one_goes_on(
    shots, spawn, monkeypatch, tmp_path, photo, encoded
):
    for number in range(200):
        (shots / "cat" / f"large{number}.png").write_bytes(encoded(photo(number, 900, 700), "PNG"))
    start = spawn("resnet.train", *SMALL, "steps=1", f"data.dir='{shots}'", f"out={tmp_path}/run", cwd=tmp_path)

    def preparing():
        lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        return [line for line in lines if f"dir={shots}" in line]

    until = time.monotonic() + 60
    while not (preparing() and list(tmp_path.glob("cache/resnet/folders/*/.prepare/*.part"))):
        assert time.monotonic() < until
        time.sleep(0.05)
    start.kill()
    while preparing():
        assert time.monotonic() < until
        time.sleep(0.1)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    known = photos.Photos(str(shots), None, None, "inside", 0.001, None)
    listing = photos.prepare.__wrapped__(known)
    prepare.do(prepare.parse(["source=folder", f"dir={shots}", f"out={tmp_path}/whole"]))
    made, whole = (manifest.read(path) for path in (photos.place(listing, None), tmp_path / "whole"))
    assert made["splits"] == whole["splits"]


def test_the_original_s_mini_imagenet_is_a_layout_of_shards(tmp_path, prepared):
    made = prepared({"cat": 4, "dog": 4}, tmp_path / "x")
    for split in ("train", "val"):
        name = f"imagenet_{split}_subset"
        (tmp_path / "mini" / name).mkdir(parents=True)
        shutil.copy(
            made / f"img_{split}" / f"img_{split}-00000-of-00001", tmp_path / "mini" / name / f"{name}-00000-of-00001"
        )
    assert not photos.are_in(str(tmp_path / "mini"))
    opened = source.open_source(compose.one_group("data", "data=imagenet", dir=str(tmp_path / "mini"), classes=2))
    assert (opened.train_images, opened.eval_images) == (4, 4)
