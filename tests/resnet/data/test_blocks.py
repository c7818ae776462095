"""The order by blocks against a plain one of lists and sorted(), its share of every rank, and how well it mixes."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from resnet import UserError
from resnet.config.data import Order, Records
from resnet.data import blocks, pipeline, shards, source

SEED, EPOCH, STREAMS, WINDOW = 5, 3, 12, 3.0


def index(counts, size=110_000):
    """An index of shards of so many records of about `size` bytes."""
    random = np.random.default_rng(0)
    lengths = [random.integers(size // 2, size * 3 // 2, count) for count in counts]
    offsets = [np.cumsum(part + shards.FRAME) - part - 4 for part in lengths]
    file = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return shards.Index(tuple(map(str, counts)), file, np.concatenate(offsets), np.concatenate(lengths))


@pytest.fixture(scope="module")
def records():
    return index([300, 0, 1, 411, 37, 250])


def plain(starts, seed, epoch, streams, window):
    """The same order, in words of Python."""
    count = starts[-1]
    jitter = iter(np.random.Philox(key=np.array([seed, 2**62 + epoch], np.uint64)).random_raw(count).tolist())
    sequence = []
    for block in shards.permutation(seed, epoch, len(starts) - 1).tolist():
        sequence += range(starts[block], starts[block + 1])
    queues = []
    for stream in range(streams):
        length = len(range(stream, count, streams))
        mine, sequence = sequence[:length], sequence[length:]
        width = window * count / (len(starts) - 1)
        keys = [place + (next(jitter) >> 11) / 2**53 * width for place in range(length)]
        queues.append([mine[place] for place in sorted(range(length), key=keys.__getitem__)])
    return [queues[position % streams][position // streams] for position in range(count)]


# ----------------------------------------------------------------------------------------------------------------- order
def test_a_block_is_of_one_shard_and_about_the_size_that_is_wanted(records):
    starts = blocks.cut(records, 1.0)
    assert (starts[0], starts[-1]) == (0, len(records))
    sizes = []
    for first, end in itertools.pairwise(starts):
        assert len(set(records.file[first:end])) == 1
        last = records.offset[end - 1] + records.length[end - 1]
        sizes.append(int(last - records.offset[first]))
    assert max(sizes) < 1_000_000 + 165_000  # and a record that begins in it
    assert len(starts) - 1 == pytest.approx(records.length.sum() / 1e6 + 3, abs=3)


@pytest.mark.parametrize("streams", [1, 5, 12, 48, 2000])
@pytest.mark.parametrize("window", [0.0, 1.0, 4.5])
def test_the_order_is_that_of_the_plain_one(records, streams, window):
    starts = blocks.cut(records, 1.0)
    order = blocks.mixed(starts, SEED, EPOCH, streams, window)
    assert order.tolist() == plain(starts.tolist(), SEED, EPOCH, streams, window)
    assert sorted(order) == list(range(len(records)))


def test_the_order_never_changes_between_releases():
    """Or a run begun before would go on with images it has seen."""
    starts = np.array([0, 3, 6, 8, 12])
    assert blocks.mixed(starts, 1, 0, 3, 2).tolist() == [9, 6, 3, 8, 0, 2, 10, 7, 4, 11, 1, 5]
    assert blocks.mixed(starts, 1, 1, 3, 2).tolist() == [0, 9, 7, 2, 10, 4, 8, 6, 3, 1, 11, 5]


def test_every_epoch_and_seed_has_its_own_order(records):
    starts = blocks.cut(records, 1.0)
    orders = {blocks.mixed(starts, seed, epoch, 12, 3).tobytes() for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_an_image_is_anywhere_in_an_epoch_with_the_same_chance(records):
    starts = blocks.cut(records, 0.5)
    places = np.argsort([blocks.mixed(starts, 1, epoch, 12, 3) for epoch in range(300)], axis=1)
    deviation = np.sqrt((len(records) ** 2 - 1) / 12 / 300)
    assert np.abs(places.mean(0) - (len(records) - 1) / 2).max() < 5 * deviation


# ----------------------------------------------------------------------------------------------------------------- share
@pytest.mark.parametrize("order", ["images", "blocks"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_step_is_the_same_images_for_every_number_of_ranks(order, ranks):
    settings = Records(classes=10, dir="x", order=blocks.Order[order])
    count, batch = 1003, 24
    parts = [blocks.positions(settings, count, batch, rank, ranks) for rank in range(ranks)]
    steps = np.concatenate([part.reshape(-1, batch // ranks) for part in parts], axis=1)
    np.testing.assert_array_equal(np.sort(steps, axis=1), np.arange(41 * 24).reshape(41, 24))
    for rank, part in enumerate(parts):
        later = blocks.positions(settings, count, batch, rank, ranks, 7)
        np.testing.assert_array_equal(later, part[7 * batch // ranks :])


@pytest.mark.parametrize("ranks", [2, 3, 4, 12])
def test_a_rank_reads_blocks_of_its_own(records, ranks):
    """But for those that are cut where a stream ends, of which each reads its part."""
    settings = Records(classes=10, dir="x", order=blocks.Order.blocks, streams=STREAMS, window=WINDOW, block_mb=0.5)
    starts = blocks.cut(records, 0.5)
    order = blocks.order(records, settings, SEED, EPOCH)
    of_ranks = []
    for rank in range(ranks):
        images = order[blocks.positions(settings, len(records), ranks, rank, ranks)]
        of_ranks.append(set(np.searchsorted(starts, images, "right") - 1))
    shared = sum(map(len, of_ranks)) - len(set.union(*of_ranks))
    assert shared <= STREAMS - 1


def test_resuming_reads_again_at_most_a_window_of_each_stream(records):
    starts = blocks.cut(records, 0.5)
    order = blocks.mixed(starts, SEED, EPOCH, STREAMS, WINDOW)
    window = WINDOW * len(records) / (len(starts) - 1)
    apart = blocks.mixed(starts, SEED, EPOCH, STREAMS, 0)  # the same streams before they are mixed
    for stream in range(STREAMS):
        before, after = apart[stream::STREAMS], order[stream::STREAMS]
        assert sorted(before) == sorted(after)
        place = {image: number for number, image in enumerate(before)}
        assert max(abs(place[image] - number) for number, image in enumerate(after)) <= window


def images_of(data, step, rank=0, ranks=1, steps=3, batch=48):
    """The pixels of the images of so many steps, a list of bytes a step."""
    batches = pipeline.train(data, batch, 1, step, rank, ranks).take(steps).as_numpy_iterator()
    return [[image.tobytes() for image in images] for images, _, _ in batches]


def test_batches_are_the_same_for_1_2_and_4_ranks_and_after_resuming(tmp_path, run_of):
    words = ["data.order=blocks", "data.streams=12", "data.block_mb=0.01"]
    data = source.open_source(run_of("data=digits", f"data.dir={tmp_path}/digits", *words).data)
    whole = images_of(data, 27, steps=6)  # of 29 steps, so into the next epoch
    for ranks in (2, 4):
        parts = [images_of(data, 27, rank, ranks, steps=6) for rank in range(ranks)]
        for step, batch in enumerate(whole):
            assert sorted(batch) == sorted(image for part in parts for image in part[step])
    assert images_of(data, 28, steps=5) == whole[1:]
    plain = source.open_source(run_of("data=digits", f"data.dir={tmp_path}/digits").data)
    assert images_of(plain, 28, steps=1)[0] != whole[1]


# ---------------------------------------------------------------------------------------------------------------- mixing
def test_neighbours_are_batches_apart_and_classes_nearly_even():
    """The figures of docs/data.md, for shards that are sorted by class, which is the worst that there is."""
    data = index([1250] * 64)
    labels = np.arange(len(data)) * 200 // len(data)
    blocked = blocks.mixing(blocks.mixed(blocks.cut(data, 1.0), 1, 0, 48, 4), labels, 256)
    full = blocks.mixing(shards.permutation(1, 0, len(data)), labels, 256)
    assert full.class_variance == pytest.approx(1, abs=0.03)
    assert full.neighbours_apart == pytest.approx(0.293 * len(data), rel=0.02)
    assert blocked.class_variance == pytest.approx(1.9, abs=0.1)
    assert blocked.neighbours_apart == pytest.approx(620, rel=0.1)
    assert blocked.neighbours_in_batch < 0.12
    as_prepared = np.random.default_rng(0).permutation(labels)
    order = blocks.mixed(blocks.cut(data, 1.0), 1, 0, 48, 4)
    assert blocks.mixing(order, as_prepared, 256).class_variance == pytest.approx(1, abs=0.03)


def test_the_measure_of_mixing_is_that_of_its_words():
    labels = np.array([0, 0, 1, 1])
    mixed = blocks.mixing(np.array([0, 1, 2, 3]), labels, 2)
    assert (mixed.neighbours_apart, mixed.neighbours_in_batch) == (1.0, 2 / 3)
    assert mixed.class_variance == pytest.approx(1 / (2 * 0.25 * 2 / 3))


def test_the_size_of_imagenet_costs_little():
    data = index([1252] * 1024)
    tracemalloc.start()
    start = time.process_time()
    blocks.mixed(blocks.cut(data, 1.0), 1, 0, 48, 4)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 2  # 0.3 alone on a core
    assert peak < 120e6


# ----------------------------------------------------------------------------------------------------------------- knobs
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.streams=12"], "data.order=images: has no streams, blocks or window; use data.order=blocks"),
        (["data.order=blocks", "data.block_mb=0"], "data.block_mb=0.0: must be above 0"),
        (["data.order=blocks", "data.streams=0"], "data.streams=0: must be above 0"),
        (
            ["data.order=blocks", "cluster.ranks=5", "batch=40"],
            "data.streams=48: does not divide over 5 ranks; use 45",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(run_of, words, line):
    with pytest.raises(UserError) as caught:
        run_of("data=digits", *words)
    assert str(caught.value) == line


@pytest.mark.parametrize("order", Order)
def test_strided_positions_are_every_nth_of_a_batch_in_both_orders(order):
    settings = Records(dir="shards", classes=10, order=order)
    whole = blocks.positions(settings, 103, 24, 0, 1, 1, strided=True).reshape(-1, 24)
    np.testing.assert_array_equal(whole[0], np.arange(24, 48))
    for rank in range(3):
        own = blocks.positions(settings, 103, 24, rank, 3, 1, strided=True)
        np.testing.assert_array_equal(own.reshape(-1, 8), whole[:, rank::3])
