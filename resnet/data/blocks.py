"""The order of an epoch in which neighbouring records are read together: blocks of them are permuted, then mixed with others.

A block is a run of neighbouring records of one shard. The blocks are permuted by (seed, epoch), and their records, one block
behind the other, are cut into streams of equal length. In a stream, record i gets the key i + U[0, W), W the records of `window`
blocks, and the stream is sorted by its keys: a record moves by less than W, and whoever reads holds at most window + 1 blocks a
stream. The epoch takes one record of each stream in turn: position p is of stream p % streams. So rank r of R, which divides
the streams and the batch, reads the positions p with p % R == r, all of streams of its own, and a step has the same images for
every R. Nothing here depends on what was read before: to resume is to take a slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet.config.data import Data, Order, Records
from resnet.data import shards
from resnet.data.shards import Index

JITTER = 1 << 62  # keys of the mixing: apart from those of the permutation, whose second word is an epoch
Numbers = NDArray[np.int64]


def order(index: Index, settings: Records, seed: int, epoch: int) -> Numbers:
    """The numbers of all records in the order of an epoch, which (seed, epoch) alone decides. int64 [n]."""
    if settings.order is Order.images:
        return shards.permutation(seed, epoch, len(index))
    return mixed(cut(index, settings.block_mb), seed, epoch, settings.streams, settings.window)


def positions(
    settings: Data, count: int, batch: int, rank: int, ranks: int, skip: int = 0, strided: bool = False
) -> Numbers:
    """Positions in an epoch's order that `rank` of `ranks` reads, from step `skip` on, step after step.

    Step s is positions s*batch .. (s+1)*batch-1 whatever the number of ranks; the incomplete last one is dropped. With
    `strided`, or data.order=blocks, a rank reads every ranks-th of them, else neighbours.
    """
    if strided or (isinstance(settings, Records) and settings.order is Order.blocks):
        return np.arange(skip * batch + rank, count // batch * batch, ranks, dtype=np.int64)
    return shards.positions_of_rank(count, batch, rank, ranks, skip)


# ----------------------------------------------------------------------------------------------------------------- blocks
def cut(index: Index, megabytes: float) -> Numbers:
    """Where the blocks begin, and where the last ends: records of one shard whose data begin in the same so many megabytes.

    int64 [blocks + 1], of numbers of records.
    """
    part = index.offset // max(1, int(megabytes * 1e6))
    first = np.flatnonzero((np.diff(index.file) != 0) | (np.diff(part) != 0)) + 1
    return np.concatenate([[0], first, [len(index)]]).astype(np.int64)


def mixed(starts: Numbers, seed: int, epoch: int, streams: int, window: float) -> Numbers:
    """The records of the blocks that cut() returns, in the order of an epoch. int64 [n]."""
    count, blocks = int(starts[-1]), len(starts) - 1
    permuted = shards.permutation(seed, epoch, blocks)
    sizes = np.diff(starts)[permuted]
    sequence = np.repeat(starts[permuted] - (np.cumsum(sizes) - sizes), sizes) + np.arange(count)
    lengths = count // streams + (np.arange(streams) < count % streams)
    stream = np.repeat(np.arange(streams), lengths)
    place = np.arange(count) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # in its stream
    bits = np.random.Philox(key=np.array([seed, JITTER + epoch], np.uint64)).random_raw(count)
    keys = place + (bits >> np.uint64(11)) * 2.0**-53 * (window * count / blocks)
    result = np.empty(count, np.int64)
    result[place * streams + stream] = sequence[np.lexsort((keys, stream))]
    return result


# ----------------------------------------------------------------------------------------------------------------- mixing
@dataclass(frozen=True)
class Mixing:
    """How well the order of an epoch mixes records that are neighbours on disk."""

    neighbours_apart: float  # median distance of neighbours in the order; a full permutation: 0.29 of all records
    neighbours_in_batch: (
        float  # the share of neighbours that are in the same batch; a full permutation: batch / records
    )
    class_variance: float  # of a class's number of images in a batch, where a full permutation has 1


def mixing(images: Numbers, labels: Numbers, batch: int) -> Mixing:
    """The mixing of an order of records, whose labels are those of record 0, 1, ..."""
    count, classes = len(images), int(labels.max()) + 1
    place = np.empty(count, np.int64)
    place[images] = np.arange(count)
    steps = count // batch
    step = np.arange(steps * batch) // batch
    cells = step * classes + labels[images[: steps * batch]]
    counts = np.bincount(cells, minlength=steps * classes).reshape(steps, classes)
    share = np.bincount(labels, minlength=classes) / count
    # Hypergeometric: a batch is drawn without putting back.
    expected = batch * share * (1 - share) * (count - batch) / max(1, count - 1)
    return Mixing(
        float(np.median(np.abs(np.diff(place)))),
        float(np.mean(place[:-1] // batch == place[1:] // batch)),
        float(np.mean((counts - batch * share) ** 2) / np.mean(expected)),
    )
