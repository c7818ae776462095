"""The machine: bring-up of the device and its threads. Everything else runs where this module put it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from resnet import UserError
from resnet.config import Cluster, Device, Dtype, Policy


@dataclass(frozen=True)
class World:
    """This process among the ranks, and what it computes on."""

    rank: int
    ranks: int
    device: str  # as people say it: "AMD EPYC 9R14, 2 threads"
    warnings: tuple[str, ...] = ()


def up(cluster: Cluster, dtype: Dtype) -> World:
    """Set threads and memory, check that the device is there. Call before the first TensorFlow operation.

    Raises UserError for a device this machine does not have.
    """
    if cluster.threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(cluster.threads)
    match cluster.device:
        case Device.cpu:
            tf.config.set_visible_devices([], "GPU")  # or TensorFlow would take the memory of all that are there
            name = f"{cpu_name()}, {cluster.threads or cpu_count()} threads"
        case Device.gpu:
            gpus = tf.config.list_physical_devices("GPU")
            if not gpus:
                raise UserError(
                    f"cluster={cluster.name}: TensorFlow {tf.__version__} sees no GPU here; use cluster=local, "
                    "or install the GPU build (pip install -e '.[gpu]') and check nvidia-smi"
                )
            tf.config.set_visible_devices(gpus[0], "GPU")
            tf.config.experimental.set_memory_growth(gpus[0], True)
            name = str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU"))
    slow = (
        cluster.device is Device.cpu
        and dtype.policy is Policy.mixed_bfloat16
        and not {"avx512_bf16", "amx_bf16"} & cpu_flags()
    )
    warnings = (
        f"dtype={dtype.name}: this CPU has no AVX512_BF16, so bfloat16 is emulated and slow; dtype=fp32 is faster",
    )
    return World(0, 1, name, warnings if slow else ())


def place(cluster: Cluster) -> Any:
    """Context for building and running the network on the device."""
    return tf.device(f"/{cluster.device.value}:0")


def ahead(dataset: Any, cluster: Cluster) -> Any:
    """`dataset` with its batches copied to the device before they are asked for, where there is one to copy to."""
    if cluster.device is Device.cpu or not cluster.prefetch:
        return dataset
    return dataset.apply(tf.data.experimental.prefetch_to_device(f"/{cluster.device.value}:0"))


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
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
