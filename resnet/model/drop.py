"""What is dropped at random in training: residual branches (stochastic depth) and features before the head (dropout).

The masks are functions of (seed, step, position in the global batch): the same for any number of ranks and after resuming.
Keras's own layer draws from a stream of the process, which is neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

STREAMS = 2048  # above the number of layers that draw: four stages of at most 256 blocks, and the head
HEAD_STREAM = STREAMS - 1


@dataclass(frozen=True)
class Draws:
    """The random numbers of a part of a training step."""

    seed: int
    step: tf.Tensor  # int32 scalar
    batch: int  # images of the step over all ranks
    positions: tf.Tensor  # int [B], where in that batch the images of this part are

    def uniform(self, stream: int, width: int) -> tf.Tensor:
        """float32 [B, width] in [0, 1); every layer has a stream of its own."""
        # The input pipeline's keys begin with the seed itself, which is not negative. This operation takes int32: a Gaudi
        # computes no int64, which tf.random.stateless_uniform makes of it.
        key = tf.stack([tf.constant(~self.seed), self.step * STREAMS + stream])
        numbers = tf.raw_ops.StatelessRandomUniform(shape=[self.batch, width], seed=key)
        return tf.gather(numbers, self.positions)


CURRENT: ContextVar[Draws] = ContextVar("draws")  # of the step that is being traced


@contextlib.contextmanager
def drawing(draws: Draws) -> Iterator[None]:
    """The layers of networks that are called within use these numbers, if they train."""
    token = CURRENT.set(draws)
    try:
        yield
    finally:
        CURRENT.reset(token)


class Drop(tf.keras.layers.Layer):
    """Zeros with probability `rate` in training, and what remains times 1 / (1 - rate): [B, ..., C] of the same shape.

    A whole image's entry of the batch at a time (timm's DropPath), or with `each` every channel by itself. Training it
    outside of drawing() raises LookupError.
    """

    def __init__(self, rate: float, stream: int, each: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.stream, self.each = rate, stream, each

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not training:
            return inputs
        width = inputs.shape[-1] if self.each else 1
        stays = CURRENT.get().uniform(self.stream, width) >= self.rate
        scales = tf.cast(stays, inputs.dtype) / (1 - self.rate)
        return inputs * tf.reshape(scales, [-1, *[1] * (len(inputs.shape) - 2), width])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "stream": self.stream, "each": self.each}


def depth_rates(last: float, blocks: int) -> list[float]:
    """The rate of each of so many blocks, linear from 0 to that of the last (arXiv:1603.09382 sec. 3, timm's rule)."""
    return [last * number / max(1, blocks - 1) for number in range(blocks)]
