"""The ranks of a run and their collective operations, through Horovod."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet import UserError
from resnet.config.cluster import Cluster

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks. With one rank every operation is local.

    Collective operations must be called by all ranks, in the same order.
    """

    rank: int = 0
    size: int = 1
    device: str = ""  # for people: "AMD EPYC 9R14, 2 threads"
    warnings: tuple[str, ...] = ()
    hvd: ModuleType | None = None  # horovod.tensorflow, with more than one rank

    @property
    def primary(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0

    def allreduce_mean(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """In a graph: the mean of each tensor over the ranks, one allreduce each; one group is slower with Gloo."""
        if self.hvd is None:
            return list(tensors)
        return [
            self.hvd.allreduce(tensor, op=self.hvd.Average, name=f"{name}.{number}")
            for number, tensor in enumerate(tensors)
        ]

    def allreduce_flag(self, flag: tf.Tensor) -> tf.Tensor:
        """In a graph: the float32 scalar `flag` summed over the ranks."""
        return flag if self.hvd is None else self.hvd.allreduce(flag, op=self.hvd.Sum, name="flag")

    def average_variables(self, variables: Sequence[tf.Variable]) -> None:
        """Assign each variable its mean over the ranks: batch norm's statistics, which each rank takes of its own images."""
        if self.hvd is not None:
            for number, variable in enumerate(variables):
                variable.assign(self.hvd.allreduce(variable, op=self.hvd.Average, name=f"variable.{number}"))

    def allreduce_sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of an array over the ranks, bit for bit the same on all of them."""
        if self.hvd is None:
            return values
        parts = self.hvd.allgather(tf.constant(values[None], tf.float64), name="sum").numpy()
        return np.asarray(np.sum(parts, axis=0))

    def allgather(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The array of each rank, [ranks, ...]."""
        return (
            values[None] if self.hvd is None else np.asarray(self.hvd.allgather(tf.constant(values[None]), name="all"))
        )

    def broadcast_object(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        received: T = value if self.hvd is None else self.hvd.broadcast_object(value, root_rank=0)
        return received

    def broadcast_variables(self, variables: Sequence[tf.Variable]) -> None:
        """Assign rank 0's values on every rank, and check that they arrived."""
        if self.hvd is not None:
            self.hvd.broadcast_variables(variables, root_rank=0)
            content = b"".join(variable.numpy().tobytes() for variable in variables)
            self.assert_same({"weights": hashlib.sha256(content).hexdigest()})

    def assert_same(self, facts: Mapping[str, object]) -> None:
        """Raise UserError on all ranks unless all have the same facts."""
        if self.hvd is None:
            return
        gathered = self.hvd.allgather_object((platform.node(), dict(facts)))
        first_host, expected = gathered[0]
        for rank, (host, values) in enumerate(gathered):
            for name, value in expected.items():
                if values[name] != value:
                    raise UserError(
                        f"rank {rank} on {host} has {name}={values[name]}, and rank 0 on {first_host} has {value}; every "
                        "host needs the same data, configuration and packages"
                    )

    def barrier(self) -> None:
        if self.hvd is not None:
            self.hvd.allgather(tf.constant([self.rank]), name="barrier")


def join(cluster: Cluster) -> tuple[ModuleType | None, int, int, int]:
    """(horovod.tensorflow or None, rank, rank on this host, ranks on this host). Raises UserError if no launcher started them."""
    if cluster.ranks == 1:
        return None, 0, 0, 1
    import horovod.tensorflow as hvd

    hvd.init()
    if hvd.size() != cluster.ranks:
        raise UserError(
            f"cluster.ranks={cluster.ranks}: {hvd.size()} ranks were started; start them with python -m resnet.train "
            f"cluster={cluster.name}, which starts its ranks itself"
        )
    return hvd, hvd.rank(), hvd.local_rank(), hvd.local_size()


def bind_cores(local_rank: int, local_size: int) -> int:
    """Bind this process to its share of the cores, unless a launcher has done so; returns the number of cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if local_size > 1 and len(cores) == os.cpu_count() and len(cores) >= local_size:
        share = len(cores) // local_size
        os.sched_setaffinity(0, cores[local_rank * share : (local_rank + 1) * share])
    return cpu_count() if len(cores) >= local_size else 1


def cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
