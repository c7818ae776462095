"""The machine: bring-up of the device, its threads and the ranks; and what ranks tell each other. Only here is Horovod known."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet import UserError, gaudi
from resnet.normalization import RowNorm
from resnet.settings.cluster import Cluster, Device
from resnet.settings.dtype import Dtype, Policy


@dataclass(frozen=True)
class World:
    """This process among the ranks, and what it computes on. With one rank nothing is sent.

    What ranks do together they must do in the same order, all of them.
    """

    rank: int = 0
    ranks: int = 1
    device: str = ""  # as people say it: "AMD EPYC 9R14, 2 threads"
    warnings: tuple[str, ...] = ()
    hvd: Any = None  # the module horovod.tensorflow, where there is more than one rank

    def average(self, tensors: Sequence[Any], what: str) -> list[Any]:
        """In a graph: each tensor's mean over the ranks, one allreduce a tensor (in one group Gloo is slower: performance.md)."""
        if self.ranks == 1:
            return list(tensors)
        return [
            self.hvd.allreduce(tensor, op=self.hvd.Average, name=f"{what}.{number}")
            for number, tensor in enumerate(tensors)
        ]

    def any(self, flag: Any) -> Any:
        """In a graph: the float32 scalar `flag` summed over the ranks."""
        return self.hvd.allreduce(flag, op=self.hvd.Sum, name="flag") if self.ranks > 1 else flag

    def level(self, variables: Sequence[Any]) -> None:
        """Set variables to their mean over the ranks: batch norm's statistics, which each rank takes of its own images."""
        if self.ranks > 1:
            for number, variable in enumerate(variables):
                variable.assign(self.hvd.allreduce(variable, op=self.hvd.Average, name=f"level.{number}"))

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of an array over the ranks, to the bit the same on all of them."""
        if self.ranks == 1:
            return values
        parts = self.hvd.allgather(tf.constant(values[None], tf.float64), name="sum").numpy()
        return np.asarray(np.sum(parts, axis=0))

    def told(self, thing: Any) -> Any:
        """What rank 0 says, on every rank."""
        return self.hvd.broadcast_object(thing, root_rank=0) if self.ranks > 1 else thing

    def share(self, variables: Sequence[Any]) -> None:
        """Give every rank the values of rank 0, and make sure that it has them."""
        if self.ranks > 1:
            self.hvd.broadcast_variables(variables, root_rank=0)
            found = hashlib.sha256(b"".join(variable.numpy().tobytes() for variable in variables)).hexdigest()
            self.check_alike({"weights": found})

    def check_alike(self, facts: dict[str, Any]) -> None:
        """Raise UserError, on all ranks, unless all have the same facts."""
        if self.ranks == 1:
            return
        everywhere = self.hvd.allgather_object((platform.node(), facts))
        for rank, (host, theirs) in enumerate(everywhere):
            for name, value in everywhere[0][1].items():
                if theirs[name] != value:
                    raise UserError(
                        f"rank {rank} on {host} has {name}={theirs[name]}, and rank 0 on {everywhere[0][0]} has {value}; every "
                        "host needs the same data, configuration and packages"
                    )

    def wait(self) -> None:
        """Until every rank is here."""
        if self.ranks > 1:
            self.hvd.allgather(tf.constant([self.rank]), name="wait")


def up(cluster: Cluster, dtype: Dtype) -> World:
    """Set threads and memory, check that the device is there, find the other ranks. Call before the first TensorFlow operation.

    Raises UserError for a device this machine does not have, or ranks that nobody started.
    """
    if cluster.device is Device.hpu:
        gaudi.check(cluster, dtype)
        card = gaudi.load()
    hvd, rank, local, locals_ = ranks_of(cluster)
    threads = cluster.threads or bound_cores(local, locals_)
    if cluster.threads is not None or locals_ > 1:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    if cluster.device is not Device.gpu:
        tf.config.set_visible_devices([], "GPU")  # or TensorFlow would take the memory of all that are there
    match cluster.device:
        case Device.cpu:
            name = f"{cpu_name()}, {threads} threads"
        case Device.gpu:
            gpus = tf.config.list_physical_devices("GPU")
            if len(gpus) == 1 and "SLURM_PROCID" in os.environ:
                local, locals_ = 0, 1  # srun --gpus-per-task=1 shows each rank its own
            if len(gpus) < locals_:
                raise UserError(
                    f"cluster={cluster.name}: TensorFlow {tf.__version__} sees {len(gpus) or 'no'} GPU here, and "
                    f"{locals_} must be there; use cluster=local, or install the GPU build (pip install -e '.[gpu]') and "
                    "check nvidia-smi"
                )
            tf.config.set_visible_devices(gpus[local], "GPU")
            tf.config.experimental.set_memory_growth(gpus[local], True)
            name = str(tf.config.experimental.get_device_details(gpus[local]).get("device_name", "GPU"))
        case Device.hpu:
            check_landing(cluster)
            name = card
    return World(rank, cluster.ranks, name, slowness(cluster, dtype), hvd)


def slowness(cluster: Cluster, dtype: Dtype) -> tuple[str, ...]:
    """What makes this machine slow at this arithmetic, in words."""
    if cluster.device is Device.cpu and dtype.policy is Policy.mixed_float16:
        return (f"dtype={dtype.name}: a CPU's float16 is slow; dtype=fp32 and dtype=bf16 are faster",)
    native = {"avx512_bf16", "amx_bf16"} & cpu_flags()
    if cluster.device is Device.cpu and dtype.policy is Policy.mixed_bfloat16 and not native:
        return (
            f"dtype={dtype.name}: this CPU has no AVX512_BF16, so bfloat16 is emulated and slow; dtype=fp32 is faster",
        )
    return ()


def ranks_of(cluster: Cluster) -> tuple[Any, int, int, int]:
    """(horovod.tensorflow or None, this rank, its number on this host, ranks on this host)."""
    if cluster.ranks == 1:
        return None, 0, 0, 1
    import horovod.tensorflow as hvd

    hvd.init()
    if hvd.size() != cluster.ranks:
        raise UserError(
            f"cluster.ranks={cluster.ranks}: {hvd.size()} ranks were started; start them by python -m resnet.train "
            f"cluster={cluster.name}, which does it by itself"
        )
    return hvd, hvd.rank(), hvd.local_rank(), hvd.local_size()


def bound_cores(local: int, locals_: int) -> int:
    """Keep to this rank's share of the cores, unless the starter has bound it already; how many they are."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if locals_ > 1 and len(cores) == os.cpu_count() and len(cores) >= locals_:
        share = len(cores) // locals_
        os.sched_setaffinity(0, cores[local * share : (local + 1) * share])
    return cpu_count() if len(cores) >= locals_ else 1


def landed(kind: str) -> str:
    """The device that an operation placed on the first of that kind computes on; elsewhere, if that one is not to be had."""
    with tf.device(f"/device:{kind}:0"):
        return str((tf.ones([2, 2]) @ tf.ones([2, 2])).device)


def check_landing(cluster: Cluster) -> None:
    """Raise UserError unless operations are computed where the cluster says: TensorFlow falls back to the CPU in silence."""
    kind = cluster.device.value
    if not tf.config.list_physical_devices(kind):
        raise UserError(f"cluster={cluster.name}: TensorFlow has loaded Habana's plug-in and sees no card; is another process "
                        "on it (hl-smi)?")  # fmt: skip
    if not (place := landed(kind)).endswith(f"{kind}:0"):
        raise UserError(
            f"cluster={cluster.name}: operations end up on {place}, not on the {kind}; see what hl-smi says"
        )


def norm(cluster: Cluster, ranks: int) -> Any:
    """What makes a layer of batch norm: Keras's, in rows on a CPU, or Horovod's with statistics over all ranks.

    Horovod's moving variance is that of the batch; Keras's fused kernel has it times N / (N - 1). With one rank, too, a run that
    asks for the first gets the first.
    """
    if not cluster.sync_batch_norm:
        return RowNorm if cluster.device is Device.cpu else tf.keras.layers.BatchNormalization
    if ranks == 1:
        return functools.partial(tf.keras.layers.BatchNormalization, fused=False)
    import horovod.tensorflow as hvd

    return hvd.SyncBatchNormalization


def amx(cluster: Cluster, dtype: Dtype) -> bool:
    """Whether convolutions are computed as `convolution.convolve` and `convolution.packed` do.

    Measured (docs/performance.md): half the time for filters with AMX in bfloat16; slower with AVX512_BF16 alone, and in float32.
    """
    return cluster.device is Device.cpu and dtype.policy is Policy.mixed_bfloat16 and "amx_bf16" in cpu_flags()


class Whole(random.Random):
    """tf-keras 2.18 draws its seeds from 1 to 1e9, which is no whole number to Python 3.12."""

    def randint(self, a: float, b: float) -> int:
        """A number from a to b, both among them."""
        return super().randint(int(a), int(b))


def seed(number: int) -> None:
    """Start every stream of random numbers that weights are drawn from."""
    tf.keras.utils.set_random_seed(number)
    if importlib.util.find_spec("tf_keras"):
        from tf_keras.src import backend

        backend._SEED_GENERATOR.generator = Whole(number)


def place(cluster: Cluster) -> Any:
    """Context for building and running the network on the device."""
    return tf.device(f"/device:{cluster.device.value}:0")


def ahead(dataset: Any, cluster: Cluster) -> Any:
    """`dataset` with its batches copied to the device before they are asked for, where there is one to copy to."""
    if cluster.device is Device.cpu or not cluster.prefetch:
        return dataset
    return dataset.apply(tf.data.experimental.prefetch_to_device(f"/device:{cluster.device.value}:0"))


def cpu_info(key: str) -> str:
    """A line of /proc/cpuinfo, empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def cpu_flags() -> set[str]:
    """Instruction sets of the first core, by Linux's names."""
    return set(cpu_info("flags").split())


def cpu_name() -> str:
    """The processor's name."""
    return cpu_info("model name") or platform.processor() or platform.machine()


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
