"""Records read ahead by blocks, from a server on the loopback that is far away, fails, stalls or dies, against local reads."""

import shutil
import threading
import time
from pathlib import Path

import far
import numpy as np
import pytest
from far import COUNT, index_at

from resnet import UserError, addresses, retries
from resnet.config.data import Records
from resnet.data import blocks, digits, pipeline, shards, source
from resnet.data.fetch import Fetcher, ReadsClosed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return far.write_records(tmp_path_factory.mktemp("far"))


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setattr(retries, "PAUSE_S", 0.02)
    with far.Server(folder) as running:
        yield running


@pytest.fixture
def far_away(server):
    """The index of the server's shards, a fetcher of it, and the records as they are on the disk."""
    index, local = index_at(server.address), index_at(server.folder)
    server.requests.clear()
    fetcher = Fetcher(index, blocks.cut(index, 0.1), 1e6)
    yield index, fetcher, [shards.read(local, number) for number in range(COUNT)]
    fetcher.close()


def order_of(index, epoch=0):
    return blocks.mixed(blocks.cut(index, 0.1), 1, epoch, 4, 2)


# ----------------------------------------------------------------------------------------------------------------- ahead
def test_records_are_those_of_the_disk_by_one_read_a_block(server, far_away):
    index, fetcher, data = far_away
    order = order_of(index)
    fetcher.plan(order, np.arange(COUNT) % 4)
    assert [fetcher.take(int(number)) for number in order] == [data[number] for number in order]
    count = len(blocks.cut(index, 0.1)) - 1
    assert count <= len(server.requests) <= count + 3  # a block is cut where a stream ends
    assert not fetcher.used and not fetcher.ready and not fetcher.pending.any()


def test_several_are_read_at_once_and_memory_is_bounded(server, far_away):
    index, fetcher, _ = far_away
    server.delay_s = 0.03
    order = order_of(index)
    fetcher.limit = 1.2e6
    fetcher.plan(order, np.arange(COUNT) % 4)
    most, start = 0, time.monotonic()
    for number in order:
        fetcher.take(int(number))
        most = max(most, fetcher.used)
    assert most <= 1.2e6
    assert server.most > 3
    assert time.monotonic() - start < len(server.requests) * 0.03 / 2


def test_nothing_waits_for_ever_where_memory_is_too_small_for_the_order(far_away):
    index, fetcher, data = far_away
    fetcher.limit = 1
    order = np.random.default_rng(0).permutation(COUNT)
    fetcher.plan(order)
    for number in order[::-1]:  # the last is used first
        assert fetcher.take(int(number)) == data[number]
    assert index


def test_an_epoch_is_planned_while_the_one_before_is_used(far_away):
    index, fetcher, data = far_away
    both = np.concatenate([order_of(index, 0), order_of(index, 1)])
    fetcher.plan(both[:COUNT])
    fetcher.plan(both[COUNT:])
    assert [fetcher.take(int(number)) for number in both] == [data[number] for number in both]
    assert not fetcher.used


def test_several_threads_may_take(far_away):
    index, fetcher, data = far_away
    order, wrong = order_of(index), []
    fetcher.plan(order)

    def take(part):
        wrong.extend(number for number in part if fetcher.take(int(number)) != data[number])

    threads = [threading.Thread(target=take, args=(order[first::5],)) for first in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not wrong and not any(thread.is_alive() for thread in threads) and not fetcher.used


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_together_read_no_byte_twice(server, far_away, ranks):
    index, _, data = far_away
    settings = Records(classes=10, dir="x", order=blocks.Order.blocks, streams=4, block_mb=0.1)
    order = blocks.order(index, settings, 1, 0)
    for rank in range(ranks):
        positions = blocks.positions(settings, COUNT, 12, rank, ranks)
        fetcher = Fetcher(index, blocks.cut(index, 0.1), 1e6)
        fetcher.plan(order[positions], positions % 4)
        assert [fetcher.take(int(number)) for number in order[positions]] == [
            data[number] for number in order[positions]
        ]
        fetcher.close()
    pairs = [asked.removeprefix("bytes=").split("-") for _, _, asked in server.requests]
    read = sum(int(last) - int(first) + 1 for first, last in pairs)
    assert read <= int(index.length.sum()) + shards.FRAME * COUNT


def test_what_is_not_planned_or_dropped_is_read_alone(server, far_away):
    _, fetcher, data = far_away
    assert fetcher.take(7) == data[7]
    fetcher.plan(np.arange(5))
    fetcher.drop(3)
    assert [fetcher.take(number) for number in (0, 1, 2, 4, 3)] == [data[number] for number in (0, 1, 2, 4, 3)]
    assert len(server.requests) == 3
    assert not fetcher.used and not fetcher.pending.any()


def test_nobody_waits_for_a_record_that_another_took(server, far_away):
    _, fetcher, data = far_away
    server.delay_s, taken = 0.2, []
    fetcher.plan(np.arange(3))
    threads = [threading.Thread(target=lambda: taken.append(fetcher.take(1)), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert taken == [data[1]] * 3


# -------------------------------------------------------------------------------------------------------------- failures
@pytest.mark.parametrize("trouble", ["fail", "truncate", "dead", "stalled"])
def test_a_server_in_trouble_costs_time_and_nothing_else(server, far_away, monkeypatch, trouble):
    index, fetcher, data = far_away
    monkeypatch.setattr(addresses, "TIMEOUT_S", 0.5)
    order = order_of(index)
    setattr(server, trouble, 0.1 if trouble in ("fail", "truncate") else True)
    if trouble in ("dead", "stalled"):
        threading.Timer(0.7, setattr, (server, trouble, False)).start()
    fetcher.plan(order)
    assert [fetcher.take(int(number)) for number in order] == [data[number] for number in order]


@pytest.mark.parametrize(("status", "line"), [(403, r"HTTP 403, forbidden\); check the access"), (404, "No such file")])
def test_what_does_not_pass_is_an_error_of_the_record_at_once(server, far_away, status, line):
    index, fetcher, _ = far_away
    server.status = status
    fetcher.plan(order_of(index))
    with pytest.raises(UserError, match=rf"{server.address}/img_train/\S+: cannot be read at byte \d+ \(.*{line}"):
        fetcher.take(int(order_of(index)[0]))


def test_a_corrupt_record_is_an_error_of_its_own(tmp_path, folder, far_away):
    _, _, data = far_away
    shutil.copytree(folder, tmp_path / "copy")
    index = index_at(tmp_path / "copy")
    with Path(index.files[index.file[11]]).open("r+b") as shard:
        shard.seek(index.offset[11] + 5)
        shard.write(b"?")
    with far.Server(tmp_path / "copy") as hurt:
        fetcher = Fetcher(index_at(hurt.address), blocks.cut(index, 0.1), 1e6)
        fetcher.plan(np.arange(20))
        for number in range(20):
            if number != 11:
                assert fetcher.take(number) == data[number]
        with pytest.raises(UserError, match=rf"corrupt record at byte {index.offset[11] - 12};"):
            fetcher.take(11)
        fetcher.close()


def test_a_wait_ends_when_the_reading_is_closed(server, far_away):
    index, fetcher, _ = far_away
    server.stalled = True
    fetcher.plan(order_of(index))
    threading.Timer(0.2, fetcher.close).start()
    with pytest.raises(ReadsClosed):
        fetcher.take(int(order_of(index)[0]))
    fetcher.plan(np.arange(9))  # of an iterator that is no longer used
    assert not fetcher.spans or fetcher.closed.is_set()


# -------------------------------------------------------------------------------------------------------------- training
@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    digits.write(str(folder / "shards"))
    return folder


def batches(run_of, place, *words, step=28, steps=4, rank=0, ranks=1):
    """Batches of training and evaluation, as arrays; the reads are closed."""
    data = source.open_source(run_of("data=imagenet", "data.classes=10", f"data.dir={place}", *words, *SMALL).data)
    train = list(pipeline.train(data, 48, 1, step, rank, ranks).take(steps).as_numpy_iterator())
    evaluation = pipeline.evaluation(data, 100, None, rank, ranks)
    val = [*evaluation.as_numpy_iterator(), *evaluation.as_numpy_iterator()]
    for reader in (data.train_reader, data.val_reader):
        reader.close()
        assert reader(3)  # as figures of a finished run do
    return [part for batch in [*train, *val] for part in batch]


SMALL = ["data.image_size=32", "data.eval_resize=32"]
BLOCKS = ["data.order=blocks", "data.streams=12", "data.block_mb=0.01"]


@pytest.mark.parametrize("words", [["data.order=images"], [*BLOCKS, "data.cache=encoded", "data.on_corrupt=skip"]])
def test_training_and_evaluation_get_from_far_away_what_they_get_from_the_disk(written, run_of, words):
    with far.Server(written) as server:
        server.delay_s = 0.005
        theirs = batches(run_of, f"{server.address}/shards", *words)
    ours = batches(run_of, written / "shards", *words)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("listed", ["nothing", "forbidden"])
def test_shards_of_a_server_that_lists_nothing_are_those_of_the_index(written, run_of, listed):
    words = "data=imagenet", "data.classes=10", *SMALL
    with far.Server(written) as server:
        server.lists = False
        server.unlisted = 404 if listed == "nothing" else 403
        data = source.open_source(run_of(*words, f"data.dir={server.address}/shards").data)
        reads = [path for _, path, asked in server.requests if asked and "img_" in path]
    assert (len(data.train), len(data.val), reads) == (1437, 360, [])
    local = source.open_source(run_of(*words, f"data.dir={written}/shards").data)
    np.testing.assert_array_equal(data.train.offset, local.train.offset)


def test_far_shards_without_an_index_are_walked_through_once(written, run_of, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(written / "shards", tmp_path / "shards")
    (tmp_path / "shards" / "index.bin").unlink()
    with far.Server(tmp_path) as server:
        settings = run_of("data=imagenet", "data.classes=10", *SMALL, f"data.dir={server.address}/shards").data
        walked = source.open_source(settings)
        reads = [path for _, path, asked in server.requests if asked and "img_" in path]
        assert len(reads) < 50  # of 1,797 records
        server.requests.clear()
        again = source.open_source(settings)
        assert not [path for _, path, asked in server.requests if asked and "img_" in path]
    local = source.open_source(run_of("data=imagenet", "data.classes=10", *SMALL, f"data.dir={written}/shards").data)
    for one in (walked, again):
        np.testing.assert_array_equal(one.val.offset, local.val.offset)
        np.testing.assert_array_equal(one.train.length, local.train.length)


@pytest.mark.parametrize("name", ["imagenet", "folder", "digits", "fashion"])
def test_an_address_or_a_hard_disk_is_read_by_blocks_unless_the_user_says_otherwise(run_of, name):
    words = f"data={name}", "data.classes=10"
    for place, order in (("s3://bucket/x", "blocks"), ("/some/folder", "images")):
        assert run_of(*words, f"data.dir={place}").data.order.name == order
    assert run_of(*words, "data.dir=s3://bucket/x", "data.order=images").data.order is blocks.Order.images
    assert run_of(*words, "data.dir=/some/folder", "data.disk=hdd").data.order is blocks.Order.blocks


@pytest.mark.parametrize("order", [["data.order=images"], BLOCKS], ids=["images", "blocks"])
def test_a_failing_network_is_never_a_corrupt_record(written, run_of, monkeypatch, order):
    for name in ("PAUSE_S", "GIVE_UP_S"):
        monkeypatch.setattr(retries, name, 0.05)
    words = "data=imagenet", "data.classes=10", "data.on_corrupt=skip", *SMALL
    with far.Server(written) as server:
        data = source.open_source(run_of(*words, *order, f"data.dir={server.address}/shards").data)
        for server.status in (403, 503):
            for reader in (data.train_reader, data.val_reader):
                reader.fetch_ahead(by_blocks=True)(np.arange(50), np.zeros(50))
                for _ in range(2):  # ahead, then alone
                    with pytest.raises(UserError, match=f"cannot be read at byte .*{server.status}"):
                        reader(3)
                    reader.close()
        assert not data.corrupt()
        for server.status, server.dead, server.truncate in ((None, True, 0), (None, False, 1)):
            with pytest.raises(UserError, match="cannot be read at byte"):
                data.val_reader(3)
        assert not data.corrupt()


def test_ranks_evaluate_neighbours_and_no_byte_twice(written, run_of):
    ranks = 3
    words = "data=imagenet", "data.classes=10", *SMALL
    local = source.open_source(run_of(*words, f"data.dir={written}/shards").data)
    whole = [part for *parts, mask in pipeline.evaluation(local, 100) for part in parts[1][mask > 0].numpy()]
    labels = []
    with far.Server(written) as server:
        for rank in range(ranks):
            data = source.open_source(run_of(*words, *BLOCKS[:2], f"data.dir={server.address}/shards").data)
            server.requests = [one for one in server.requests if "val-" in one[1] and one[2]]
            for *parts, mask in pipeline.evaluation(data, 100, None, rank, ranks):
                labels += list(parts[1][mask > 0].numpy())
        pairs = [
            asked.removeprefix("bytes=").split("-") for _, path, asked in server.requests if "val-" in path and asked
        ]
    assert labels == whole
    assert sum(int(last) - int(first) + 1 for first, last in pairs) <= int(local.val.length.sum()) + 16 * 360
