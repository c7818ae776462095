"""Blocks on the local disk: what is read of them, what goes, and what kills, full disks and damage leave."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import far
import numpy as np
import pytest
import small_disk
from far import COUNT, index_at

from resnet import UserError, retries
from resnet.config.data import Cache, Records
from resnet.data import blocks, digits, diskcache, pipeline, shards, source
from resnet.data.diskcache import DiskCache
from resnet.data.fetch import Fetcher


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return far.write_records(tmp_path_factory.mktemp("far"))


@pytest.fixture(scope="module")
def server(folder):
    with far.Server(folder) as running:
        yield running


@pytest.fixture
def far_away(server):
    """The index of the server's shards, and the records as they are on the disk."""
    index = index_at(server.address)
    server.requests.clear()
    local = index_at(server.folder)
    return index, [shards.read(local, number) for number in range(COUNT)]


def taken(index, cache, streams=4, epoch=0):
    """All records, in the order of an epoch, and that order."""
    starts = blocks.cut(index, 0.1)
    fetcher = Fetcher(index, starts, 1e6, cache)
    order = blocks.mixed(starts, 1, epoch, streams, 2)
    fetcher.plan(order, np.arange(COUNT) % streams)
    records = [fetcher.take(int(number)) for number in order]
    fetcher.close()
    return records, order


def all_right(index, cache, data, **words):
    records, order = taken(index, cache, **words)
    return records == [data[number] for number in order]


def stored(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


# ----------------------------------------------------------------------------------------------------------------- blocks
def test_what_was_fetched_once_is_read_from_the_disk_by_every_later_run(server, far_away, tmp_path):
    index, data = far_away
    assert all_right(index, DiskCache(tmp_path, 1e9), data)
    blocks_of = len(blocks.cut(index, 0.1)) - 1
    assert (
        len(stored(tmp_path)) == blocks_of <= len(server.requests) <= blocks_of + 3
    )  # two streams may fetch one at once
    server.requests.clear()
    for streams, epoch in ((4, 0), (3, 1), (7, 5)):  # other blocks are cut where a stream ends
        assert all_right(index, DiskCache(tmp_path, 1e9), data, streams=streams, epoch=epoch)
    assert not server.requests


def test_shards_that_have_changed_have_other_blocks(server, far_away, tmp_path):
    index, data = far_away
    assert all_right(index, DiskCache(tmp_path, 1e9), data)
    shard = server.folder / "img_train" / f"img_train-{2:05d}-of-{far.SHARDS:05d}"
    os.utime(shard, (1_000_000_000, 1_000_000_000))  # another one of its size has its name
    changed = index_at(server.address)
    server.requests.clear()
    assert all_right(changed, DiskCache(tmp_path, 1e9), data)
    assert {path for _, path, _ in server.requests} == {f"/img_train/{shard.name}"}


def emptied(path):
    path.unlink()
    path.mkdir()


def linked(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),  # as a power cut leaves it
        lambda path: path.write_bytes(path.read_bytes()[:-9] + b"?" + path.read_bytes()[-8:]),
        linked,
        emptied,
        lambda path: shutil.rmtree(path.parents[1]),
    ],
    ids=["cut", "empty", "zeros", "byte", "link", "folder", "removed"],
)
def test_a_damaged_block_is_fetched_again(server, far_away, tmp_path, harm):
    index, data = far_away
    cache = DiskCache(tmp_path / "cache", 1e9)
    assert all_right(index, cache, data)
    victim = stored(tmp_path)[3]
    harm(victim)
    server.requests.clear()
    assert all_right(index, cache, data)
    assert server.requests
    server.requests.clear()
    assert all_right(index, cache, data)
    assert not server.requests or harm is emptied


def test_what_the_server_has_damaged_is_not_stored(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    index = index_at(tmp_path / "copy")
    with Path(index.files[index.file[11]]).open("r+b") as shard:
        shard.seek(index.offset[11] + 5)
        shard.write(b"?")
    with far.Server(tmp_path / "copy") as hurt:
        there = index_at(hurt.address)
        starts = blocks.cut(there, 0.1)
        fetcher = Fetcher(there, starts, 1e6, DiskCache(tmp_path / "cache", 1e9))
        fetcher.plan(np.arange(COUNT))
        for number in range(COUNT):
            if number == 11:
                with pytest.raises(shards.Damaged, match="corrupt record"):
                    fetcher.take(number)
            else:
                fetcher.take(number)
        fetcher.close()
    assert len(stored(tmp_path / "cache")) == len(starts) - 2


# ------------------------------------------------------------------------------------------------------------------- room
def test_the_least_recently_used_goes_and_nothing_of_others(tmp_path):
    size = 8192  # a whole number of a file system's pages
    cache = DiskCache(tmp_path, 80_000)
    names = [diskcache.name_of("s3://x", "", number, size) for number in range(12)]
    for age, name in enumerate(names[:9]):
        cache.store(name, bytes(size))
        os.utime(cache.path(name), (1000 + age, 1000 + age))
    strangers = [tmp_path / "photo.jpg", tmp_path / "00" / "photo.jpg"]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(90_000))
    assert cache.read(names[0], size, 5, 25) == bytes(20)  # and so it is used
    cache.store(names[9], bytes(size))
    cache.store(names[10], bytes(size))
    there = [number for number, name in enumerate(names) if cache.path(name).exists()]
    assert there == [0, *range(3, 11)]  # down to 7/8 of the limit at once
    assert all(path.exists() for path in strangers)
    cache.store(names[11], bytes(200_000))  # larger than all the room
    assert not cache.path(names[11]).exists()


def test_a_cache_that_is_too_small_costs_requests_and_nothing_else(far_away, tmp_path):
    index, data = far_away
    right = []

    def run():  # as another process would
        cache = DiskCache(tmp_path, 600_000)
        right.append(all(all_right(index, cache, data, epoch=epoch) for epoch in range(2)))

    runs = [threading.Thread(target=run) for _ in range(2)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert right == [True, True]
    cache = DiskCache(tmp_path, 600_000)
    cache.make_room(0)
    assert 0 < sum(path.stat().st_size for path in stored(tmp_path)) <= 600_000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk_costs_a_line_and_the_storing(far_away, tmp_path, capfd):
    index, data = far_away
    with small_disk.mounted(tmp_path / "disk", "1m") as disk:
        cache = DiskCache(disk.path, 1e9)
        assert all_right(index, cache, data) and all_right(index, cache, data, epoch=1)
        kept = stored(disk.path)
        assert kept and not [path for path in kept if path.name.startswith(".")]
        lines = capfd.readouterr().err.splitlines()
        assert lines == [
            f"data.cache_dir={disk.path}: No space left on device; the run goes on, and what it fetches is not stored"
        ]
        disk.fill()
        assert diskcache.open_cache(settings_of(disk.path / "new"))  # a line later on, and no error
        disk.free()
        kept[0].unlink()
        cache.retry_at = 0
        assert all_right(index, cache, data)
        assert len(stored(disk.path)) >= len(kept)


KILLED = """
import os, signal, sys
from pathlib import Path
from resnet.data import diskcache
write = os.write
os.write = lambda file, data: (write(file, data[: len(data) // 2]), os.kill(os.getpid(), signal.SIGKILL))
diskcache.DiskCache(Path(sys.argv[1]), 1e9).store(diskcache.name_of("s3://x", "", 0, 1000), bytes(1000))
"""


def test_what_a_kill_leaves_goes_at_the_next_start_and_what_is_being_written_stays(tmp_path):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (part,) = stored(tmp_path)
    assert part.name.startswith(".") and part.stat().st_size == 500
    living = part.with_name(".another.part")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        name = diskcache.name_of("s3://x", "", 0, 1000)
        assert DiskCache(tmp_path, 1e9).read(name, 1000, 0, 10) is None
        assert stored(tmp_path) == [living]


# ------------------------------------------------------------------------------------------------------------------ ranks
@pytest.mark.parametrize("order", blocks.Order)
def test_ranks_that_share_a_cache_read_the_same_global_batches_from_it_alone(folder, tmp_path, monkeypatch, order):
    monkeypatch.setattr(retries, "GIVE_UP_S", 0.0)
    settings = Records(classes=10, dir="x", order=order, **({"streams": 12} if order is blocks.Order.blocks else {}))
    with far.Server(folder) as server:
        index = index_at(server.address)
        images = blocks.order(index, settings, 1, 0)
        starts = blocks.cut(index, 0.1) if order is blocks.Order.blocks else np.arange(COUNT + 1)
        whole = []
        for ranks in (1, 2, 3, 4):
            batches = [[] for _ in range(COUNT // 24)]
            for rank in range(ranks):
                fetcher = Fetcher(index, starts, 1e6, DiskCache(tmp_path, 1e9))
                positions = blocks.positions(settings, COUNT, 24, rank, ranks)
                fetcher.plan(images[positions], positions % 12)
                for place, number in enumerate(images[positions]):
                    batches[place // (24 // ranks)].append(fetcher.take(int(number)))
                fetcher.close()
            whole = whole or [sorted(batch) for batch in batches]
            assert [sorted(batch) for batch in batches] == whole
            server.dead = True


# --------------------------------------------------------------------------------------------------------------- training
SMALL = ["data=imagenet", "data.classes=10", "data.image_size=32", "data.eval_resize=32", "data.cache=disk"]


def settings_of(folder, place="file:///x"):
    return Records(classes=10, dir=place, cache=Cache.disk, cache_dir=str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("order", [[], ["data.order=images"]], ids=["blocks", "images"])
def test_ranks_that_share_a_cache_see_the_same_global_batches_with_the_server_dead(
    run_of, tmp_path, monkeypatch, order
):
    monkeypatch.setattr(retries, "GIVE_UP_S", 0.0)
    digits.write(str(tmp_path / "shards"))
    words = [*SMALL, *(order or ["data.streams=12", "data.block_mb=0.01"]), f"data.cache_dir={tmp_path / 'cache'}"]

    def batches(server, rank, ranks, dead=True):
        data = source.open_source(run_of(*words, f"data.dir={server.address}/shards").data)
        server.dead = dead
        train = list(pipeline.train(data, 48, 1, 2, rank, ranks).take(3).as_numpy_iterator())
        val = list(pipeline.evaluation(data, 100, None, rank, ranks).as_numpy_iterator())
        for reader in (data.train_reader, data.val_reader):
            reader.close()
        server.dead = False
        return train, [image for images, _, mask in val for image in images[mask > 0]]

    with far.Server(tmp_path) as server:
        whole, images = batches(server, 0, 1, dead=False)
        for ranks in (1, 2, 3, 4):
            parts = [batches(server, rank, ranks) for rank in range(ranks)]
            for step, wanted in enumerate(whole):
                together = [np.concatenate([train[step][part] for train, _ in parts]) for part in range(3)]
                order_of = np.arange(48) if order else np.arange(48).reshape(-1, ranks).T.ravel()
                for ours, theirs in zip(together, wanted, strict=True):
                    np.testing.assert_array_equal(ours, theirs[order_of])
            np.testing.assert_array_equal([image for _, val in parts for image in val], images)


def test_folders_that_cannot_be_or_gain_nothing_are_refused(run_of, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_dir=\S+/file/x: cannot be used \(Not a directory\)"):
        diskcache.open_cache(settings_of(tmp_path / "file" / "x"))
    near = run_of(*SMALL, f"data.dir={tmp_path}", "data.cache_dir=cache").data
    with pytest.raises(UserError, match=rf"data\.cache_dir={tmp_path}/cache: on the same disk as data\.dir="):
        diskcache.open_cache(near)
    assert diskcache.open_cache(settings_of("/dev/shm/" + tmp_path.name, str(tmp_path)))  # another disk
    Path("/dev/shm", tmp_path.name).rmdir()


TAKING = """
import sys
sys.path.insert(0, sys.argv[1])
import far
import numpy as np
from pathlib import Path
from resnet.data import blocks, shards
from resnet.data.diskcache import DiskCache
from resnet.data.fetch import Fetcher
index, local = far.index_at(sys.argv[2]), far.index_at(sys.argv[3])
starts = blocks.cut(index, 0.1)
for epoch in range(4):
    fetcher = Fetcher(index, starts, 1e6, DiskCache(Path(sys.argv[4]), 600_000))
    order = blocks.mixed(starts, 1, epoch, 4, 2)
    fetcher.plan(order)
    assert all(fetcher.take(int(number)) == shards.read(local, int(number)) for number in order)
    fetcher.close()
"""


@pytest.mark.slow
def test_processes_that_are_killed_on_a_shared_cache_cost_the_others_nothing(server, tmp_path):
    words = [
        sys.executable,
        "-c",
        TAKING,
        str(Path(far.__file__).parent),
        server.address,
        str(server.folder),
        str(tmp_path),
    ]
    for killed in range(6):
        pair = [subprocess.Popen(words) for _ in range(2)]
        time.sleep(1 + 0.3 * killed)
        pair[0].kill()
        assert pair[1].wait(60) == 0
    DiskCache(tmp_path, 600_000).make_room(0)
    assert not [path for path in stored(tmp_path) if path.name.startswith(".")]
    assert 0 < sum(path.stat().st_size for path in stored(tmp_path)) <= 600_000
