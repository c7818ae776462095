"""Shards written to an address: the same bytes as in a folder, whole or refused, whatever ends the command halfway."""

import json

import fsspec
import pytest

from resnet import UserError, addresses, home, remote
from resnet.config.data import Records
from resnet.data import source
from resnet.prepare import __main__ as prepare
from resnet.prepare import writer

OUT = "memory://bucket/shards"
MARK = f"/bucket/shards/{remote.INCOMPLETE}"


def run(*words):
    prepare.do(prepare.parse(words))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store in this process's memory, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield memory
    memory.store.clear()


@pytest.fixture
def words(tree):
    return ["source=folder", f"dir={tree({'cat': 6, 'dog': 6})}", "processes=1", "train_shards=5", "val_shards=2"]


def objects(store):
    return {name.removeprefix("/bucket/shards/"): store.cat_file(name) for name in store.find("/bucket/shards")}


def in_folder(words, folder):
    run(*words, f"out={folder}")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sources_of(out):
    return source.open_source(Records(classes=2, dir=out))


@pytest.fixture
def ended_at(monkeypatch):
    """Has the upload of a file end the command."""

    def end(name):
        upload = addresses.upload

        def ending(path, address, stop=None):
            if address.endswith(name):
                raise KeyboardInterrupt
            upload(path, address, stop)

        monkeypatch.setattr(addresses, "upload", ending)
        return lambda: monkeypatch.setattr(addresses, "upload", upload)

    return end


# ----------------------------------------------------------------------------------------------------------------- whole
def test_an_address_gets_the_bytes_of_a_folder(store, words, tmp_path, capsys):
    whole = in_folder(words, tmp_path / "x")
    run(*words, f"out={OUT}/")
    assert objects(store) == whole
    assert not list((home.cache() / "uploads").iterdir())
    assert f"data.dir={OUT}" in capsys.readouterr().out
    run(*words, f"out={OUT}")
    assert "prepared already" in capsys.readouterr().out
    assert sources_of(OUT).train_images == 10
    run(f"check={OUT}", "processes=1", "deep=true")
    assert prepare.classes_and_kind(OUT) == (["cat", "dog"], "folder")
    with pytest.raises(
        UserError, match=r"out=memory://bucket/shards: finished with other options \(seed was 1 and is 2"
    ):
        run(*words, f"out={OUT}", "seed=2")


def test_damage_at_an_address_is_named(store, words, capsys):
    run(*words, f"out={OUT}")
    name = "/bucket/shards/img_val/img_val-00001-of-00002"
    store.pipe_file(name, store.cat_file(name)[:-1] + b"x")
    store.pipe_file("/bucket/shards/img_val/img_val-00007-of-00009", b"x")
    store.rm_file("/bucket/shards/img_train/img_train-00000-of-00005")
    with pytest.raises(UserError, match="3 faults in 7 shards"):
        run(f"check={OUT}", "processes=1")
    printed = capsys.readouterr().out
    assert f"{OUT}/img_val/img_val-00001-of-00002: byte 0: corrupt record" in printed
    assert f"{OUT}/img_train/img_train-00000-of-00005: byte 0: cannot be read (No such file" in printed
    assert f"{OUT}/img_val/img_val-00007-of-00009: not a shard of manifest.json" in printed


def test_the_digits_are_written_there_too(store, tmp_path):
    whole = in_folder(["source=digits"], tmp_path / "x")
    for _ in range(2):
        run("source=digits", f"out={OUT}")
        assert objects(store) == whole


# -------------------------------------------------------------------------------------------------------- halfway
@pytest.mark.parametrize("last", ["img_train-00002-of-00005", "classes.txt", "index.bin", "manifest.json"])
def test_ended_halfway_and_called_again(store, words, tmp_path, ended_at, last, monkeypatch):
    whole = in_folder(words, tmp_path / "x")
    again = ended_at(last)
    with pytest.raises(KeyboardInterrupt):
        run(*words, f"out={OUT}")
    assert store.exists(MARK) and not store.exists("/bucket/shards/manifest.json")
    line = f"{OUT}: incomplete .*goes on when it is called again"
    with pytest.raises(UserError, match=f"data.dir={line}"):
        sources_of(OUT)
    with pytest.raises(UserError, match=f"check={line}"):
        run(f"check={OUT}")
    again()
    jobs, make = [], writer.make
    monkeypatch.setattr(writer, "make", lambda job: (jobs.append(job.file), make(job))[1])
    run(*words, f"out={OUT}")
    assert objects(store) == whole
    assert len(jobs) == (0 if "img" not in last else 5)  # of 7; what was uploaded later was not recorded
    assert not list((home.cache() / "uploads").iterdir())


def test_a_shard_that_is_lost_meanwhile_is_written_again(store, words, tmp_path, ended_at):
    again = ended_at("manifest.json")
    with pytest.raises(KeyboardInterrupt):
        run(*words, f"out={OUT}")
    store.rm_file("/bucket/shards/img_val/img_val-00000-of-00002")
    again()
    run(*words, f"out={OUT}")
    assert objects(store) == in_folder(words, tmp_path / "x")


@pytest.mark.usefixtures("store")
def test_ended_before_the_mark_was_removed(words, monkeypatch):
    delete = addresses.delete
    monkeypatch.setattr(addresses, "delete", lambda address: None if "rejected" in address else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*words, f"out={OUT}")
    monkeypatch.setattr(addresses, "delete", delete)
    with pytest.raises(UserError, match="incomplete"):
        sources_of(OUT)
    run(*words, f"out={OUT}")
    assert sources_of(OUT).train_images == 10


def test_another_machine_does_not_write_between(store, words, ended_at, tmp_path, monkeypatch):
    again = ended_at("img_train-00002-of-00005")
    with pytest.raises(KeyboardInterrupt):
        run(*words, f"out={OUT}")
    again()
    before = objects(store)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    for other in (words, ["source=digits"]):
        with pytest.raises(
            UserError, match=r"out=memory://bucket/shards: incomplete, begun by .*the same command there"
        ):
            run(*other, f"out={OUT}")
    assert objects(store) == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run(*words, f"out={OUT}")
    assert sources_of(OUT).train_images == 10


def test_the_first_of_two_machines_has_the_address(store, words, tmp_path, monkeypatch):
    create = addresses.create

    def slower(address, data):
        monkeypatch.setattr(addresses, "create", create)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        remote.claim(OUT)  # in the moment after this one has looked
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        create(address, data)

    monkeypatch.setattr(addresses, "create", slower)
    with pytest.raises(UserError, match="incomplete, begun by"):
        run(*words, f"out={OUT}")
    assert list(objects(store)) == [remote.INCOMPLETE]


# ------------------------------------------------------------------------------------------------------------ refused
def test_a_folder_with_other_things_is_refused(store, words):
    store.pipe_file("/bucket/shards/mine.txt", b"x")
    for other in (words, ["source=digits"]):
        with pytest.raises(UserError, match="out=memory://bucket/shards: it holds something else; give a new folder"):
            run(*other, f"out={OUT}")
    store.pipe_file(MARK, json.dumps([1]).encode())
    with pytest.raises(UserError, match="begun by another program"):
        run(*words, f"out={OUT}")


def test_rejected_images_are_listed_there(store, words, tmp_path):
    (tmp_path / "tree" / "cat" / "broken.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"read memory://bucket/shards/rejected\.tsv\. To do without"):
        run(*words, f"out={OUT}")
    assert store.cat_file("/bucket/shards/rejected.tsv").startswith(b"cat/broken.jpg\t")
    run(*words, f"out={OUT}", "max_rejected=0.1")
    assert objects(store) == in_folder([*words, "max_rejected=0.1"], tmp_path / "x")


@pytest.mark.parametrize(
    ("out", "line"),
    [
        ("http://host/x", "out=http://host/x: http:// is read here, not written; give s3://"),
        ("s3://", "out=s3://: no folder; give a bucket"),
        ("https://me:hunter22@host/x", "out=https://host/x: an address with a user, password or"),
        ("nosuch://bucket/x", "out=nosuch://bucket/x: no address that can be"),
    ],
)
def test_an_address_that_cannot_be_written_to_is_refused(out, line):
    with pytest.raises(UserError) as caught:
        prepare.parse(["source=digits", f"out={out}"])
    assert str(caught.value).startswith(line) and "hunter" not in str(caught.value)


def test_a_file_address_is_a_path(tmp_path):
    run("source=digits", f"out=file://{tmp_path}/x")
    assert (tmp_path / "x" / "manifest.json").exists()
    run(f"check=file://{tmp_path}/x", "processes=1")
