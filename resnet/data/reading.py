"""The time in which batches are read: how it ends, and which image stopped it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import tensorflow as tf

from resnet import UserError, cli
from resnet.config.data import Records
from resnet.data import blocks, pipeline
from resnet.data.source import Source

READS_END_S = 5.0  # for the reads in flight, at the end of a run


class Position(Protocol):
    """Where a run is."""

    step: int


@contextlib.contextmanager
def reading(source: Source, seed: int, batch: int, state: Position | None = None, repeats: int = 1) -> Iterator[None]:
    """Context in which the batches of `source` are read; at its exit no thread reads any more.

    TensorFlow's error for an image that cannot be read or decoded becomes a UserError that names the image. It is searched for
    from the step of `state` on, where each image comes `repeats` times in a row; without `state` among the evaluation images.
    Reads that do not end, of a network disk that has gone away for example, are left to cli.leave(), which ends the process
    with them.
    """
    try:
        yield
    except tf.errors.OpError:
        step, steps = (state.step, 64) if state else (0, 0)
        if error := source.error or undecodable(source, seed, step, batch, steps, repeats):
            raise error from None
        raise
    finally:
        for reader in filter(None, (source.train_reader, source.val_reader)):
            reader.close()
        if not source.reads.close(READS_END_S) and isinstance(source.settings, Records):
            line = f"data.dir={source.settings.dir}: a read has not ended within {READS_END_S:g} s"
            cli.unfinished.append((lambda: source.reads.count > 0, line))


def undecodable(source: Source, seed: int, step: int, batch: int, steps: int, repeats: int = 1) -> UserError | None:
    """The error for the image that stopped the decoder: searched for in training from `step` on, then in evaluation."""
    for reader in (source.train_reader, source.val_reader):
        if reader is None:
            return None
        numbers: Iterable[int] = range(len(reader.records))
        if reader is source.train_reader:
            epoch, first = divmod(step, max(1, len(reader.records) // batch))
            different = batch // repeats  # images of a step
            order = blocks.order(reader.records, reader.settings, seed, epoch)
            numbers = order[first * different : (first + steps) * different]
        for number in map(int, numbers):
            try:
                example = tf.io.parse_single_example(reader(number), pipeline.FEATURES)
                pipeline.jpeg_shape(example["image/encoded"])
                tf.io.decode_jpeg(example["image/encoded"], channels=3)
            except (UserError, tf.errors.OpError) as error:
                fault = f"no JPEG that can be decoded ({str(error).splitlines()[0]}); prepare again"
                return UserError(f"{reader.records.place(number)}: {fault}")
    return None
