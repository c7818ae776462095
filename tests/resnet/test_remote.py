"""Weights at an address: one copy in the cache until they change, whole, with the names of their classes."""

import threading

import far
import fsspec
import numpy as np
import pytest

from resnet import UserError, addresses, home, remote, retries
from resnet.model import weights

TENSORS = {"fc.bias": np.arange(3, dtype=np.float32), "fc.weight": np.eye(3, 4, dtype=np.float32)}


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "PAUSE_S", 0.01)
    monkeypatch.setattr(remote, "CHUNK", 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "there" / "model").mkdir(parents=True)
    weights.write(tmp_path / "there" / "model" / "model.safetensors", TENSORS, {})
    (tmp_path / "there" / "model" / "classes.txt").write_text("cat\ndog\nfox\n")
    with far.Server(tmp_path / "there") as running:
        yield running


def reads(server):
    return sum(command == "GET" and path.endswith("safetensors") for command, path, _ in server.requests)


def same(path):
    found = weights.of_file(path)
    return found.keys() == TENSORS.keys() and all(np.array_equal(found[name], TENSORS[name]) for name in TENSORS)


def test_they_are_read_once_and_again_when_they_change(server, tmp_path, monkeypatch):
    server.fail, server.truncate = 0.2, 0.2
    address = f"{server.address}/model/model.safetensors"
    path = remote.weights(address)
    assert path.is_relative_to(home.cache()) and same(path)
    assert (path.parent / "classes.txt").read_text() == "cat\ndog\nfox\n"
    server.fail = server.truncate = 0
    stamp = addresses.stamp
    monkeypatch.setattr(addresses, "stamp", lambda address, entry=None: (stamp(address, entry)[0], version[0]))
    version = ["1"]
    path = remote.weights(address)
    count = reads(server)
    assert remote.weights(f"{server.address}/model") == remote.weights(address) == path  # as resnet.export wrote it
    assert reads(server) == count
    version[0] = "2"
    assert remote.weights(address) != path and reads(server) > count
    (tmp_path / "there" / "model" / "classes.txt").unlink()
    assert not (remote.weights(address).parent / "classes.txt").exists()


def test_several_processes_of_a_host_download_them_once(server, monkeypatch):
    monkeypatch.setattr(addresses, "stamp", lambda _address, _entry=None: (size, "1"))
    address, size = (
        f"{server.address}/model/model.safetensors",
        (server.folder / "model/model.safetensors").stat().st_size,
    )
    threads = [threading.Thread(target=remote.weights, args=(address,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert reads(server) == -(-size // 100)


def test_a_copy_is_whole_or_not_there(server, monkeypatch):
    address = f"{server.address}/model/model.safetensors"
    stamps = iter([(remote.addresses.stamp(address)[0], "1"), (7, "2")])
    monkeypatch.setattr(addresses, "stamp", lambda _address: next(stamps))
    with pytest.raises(UserError, match="it changed while it was read; start again"):
        remote.weights(address)
    assert not [path for path in (home.cache() / "weights").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("none.safetensors", "no such file, nor model.safetensors in such a folder; give .safetensors or .npz"),
        ("model.pth", "no such file, nor model.safetensors in such a folder"),
        ("half", "incomplete"),
    ],
)
def test_what_is_no_weights_is_refused(server, name, line):
    (server.folder / "half").mkdir()
    (server.folder / "half" / remote.INCOMPLETE).write_text("{}")
    with pytest.raises(UserError) as caught:
        remote.weights(f"{server.address}/{name}", "init=")
    assert str(caught.value).startswith(f"init={server.address}/{name}: {line}")


def test_a_server_that_refuses_is_named(server):
    server.status = 403
    with pytest.raises(UserError, match=r"init=http.*model: cannot be read \(HTTP 403, forbidden\)"):
        remote.weights(f"{server.address}/model", "init=")


def test_an_upload_that_is_killed_goes_on(tmp_path, monkeypatch):
    """What loads a SavedModel comes last."""
    memory, upload, order = fsspec.filesystem("memory"), addresses.upload, []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("saved_model/variables/x", "saved_model/saved_model.pb", "classes.txt"):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text(name)

    def failing(path, address, stop=None):
        order.append(path.name)
        if len(order) == 2:
            raise KeyboardInterrupt
        upload(path, address, stop)

    monkeypatch.setattr(addresses, "upload", failing)
    with pytest.raises(KeyboardInterrupt):
        remote.upload(tmp_path / "x", "memory://killed/x")
    assert remote.is_incomplete("memory://killed/x")
    remote.upload(tmp_path / "x", "memory://killed/x")
    assert order[2:] == ["classes.txt", "x", "saved_model.pb"]
    names = {name.removeprefix("/killed/x/"): memory.cat_file(name).decode() for name in memory.find("/killed")}
    assert names == {name: name for name in ("saved_model/variables/x", "saved_model/saved_model.pb", "classes.txt")}
    memory.rm("/killed", recursive=True)
