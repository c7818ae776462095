"""The device of a run: threads, memory, placement, and what this machine's CPU is good at."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import tensorflow as tf

from resnet import UserError
from resnet.config import topology
from resnet.config.cluster import Cluster, Device
from resnet.config.model import Dtype, Policy
from resnet.distributed import gaudi
from resnet.distributed.cpu import cpu_flags, cpu_name
from resnet.distributed.ranks import Ranks, bind_cores, join


def init(cluster: Cluster, dtype: Dtype) -> Ranks:
    """Configure threads and memory, check the device, and join the other ranks. Call before the first TensorFlow operation.

    Raises UserError for a device that this machine does not have, ranks without a launcher, or a TensorFlow without Keras 2.
    """
    if keras := getattr(tf.keras, "__version__", None):  # Keras 2 has none
        raise UserError(
            f"TF_USE_LEGACY_KERAS={os.environ.get('TF_USE_LEGACY_KERAS', '')}: TensorFlow {tf.__version__} uses Keras {keras}, "
            f"and Keras 2 is needed; pip install 'tf-keras=={tf.__version__.rpartition('.')[0]}.*', and leave the variable unset"
        )
    if cluster.device is Device.hpu:
        gaudi.check(cluster, dtype)
        card = gaudi.load()
    hvd, rank, local, locals_ = join(cluster)
    threads = cluster.threads or bind_cores(local, locals_)
    if cluster.threads is not None or locals_ > 1:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    if cluster.device is not Device.gpu:
        tf.config.set_visible_devices([], "GPU")  # or TensorFlow would allocate the memory of all of them
    match cluster.device:
        case Device.cpu:
            name = f"{cpu_name()}, {threads} threads"
        case Device.gpu:
            gpus = tf.config.list_physical_devices("GPU")
            if len(gpus) == 1 and topology.srun_local_rank():
                local, locals_ = 0, 1  # srun --gpus-per-task=1 shows each rank its own
            if len(gpus) < locals_:
                raise UserError(
                    f"cluster={cluster.name}: TensorFlow {tf.__version__} sees {len(gpus) or 'no'} GPU here, and "
                    f"{locals_} must be there; use cluster=local, or install the GPU build (pip install -e '.[gpu]') and "
                    "check nvidia-smi"
                )
            tf.config.set_visible_devices(gpus[local], "GPU")
            tf.config.experimental.set_memory_growth(gpus[local], True)
            details = tf.config.experimental.get_device_details(gpus[local])
            name = str(details.get("device_name", "GPU"))
            note = check_capability(cluster, name, details.get("compute_capability"))
            if note and rank == 0:
                print(note, flush=True)  # at once: the first operation is what takes so long
        case Device.hpu:
            assert_placement(cluster)
            name = card
    return Ranks(rank, cluster.ranks, name, slowness(cluster, dtype), hvd)


def check_capability(cluster: Cluster, name: str, capability: tuple[int, int] | None) -> str | None:
    """A line about a GPU of a newer generation than TensorFlow was compiled for; None for the others.

    Raises UserError from Blackwell (10.0) on: official wheels up to 2.21 fail at the first operation there (tensorflow#89272).
    """
    kernels = tf.sysconfig.get_build_info().get("cuda_compute_capabilities", ())  # sm_80: binary; compute_80: and PTX
    built = [divmod(int(entry.rpartition("_")[2]), 10) for entry in kernels]
    newest = max(built, default=(8, 0) if tf.__version__.startswith("2.15.") else (9, 0))
    if capability is None or capability[0] <= newest[0]:
        return None
    has = f"{name} has compute capability {capability[0]}.{capability[1]}, and TensorFlow {tf.__version__} is compiled for"
    if capability[0] >= 10:
        raise UserError(
            f"cluster={cluster.name}: {has} {newest[0]}.{newest[1]} at most: it would fail at the first operation. No official "
            "wheel up to 2.21 serves Blackwell; use NVIDIA's image nvcr.io/nvidia/tensorflow:25.02-tf2-py3, conda-forge's "
            "TensorFlow for CUDA 12.9, another GPU, or cluster=local"
        )
    return (
        f"{has} {newest[0]}.{newest[1]} at most: its kernels are compiled first, which can take half an hour. "
        "CUDA_CACHE_MAXSIZE=4294967296 keeps them for the next start; TensorFlow 2.18 and later need no compilation"
    )


def slowness(cluster: Cluster, dtype: Dtype) -> tuple[str, ...]:
    """Warnings about arithmetic that is slow on this machine."""
    if cluster.device is Device.cpu and dtype.policy is Policy.mixed_float16:
        return (f"dtype={dtype.name}: a CPU's float16 is slow; dtype=fp32 and dtype=bf16 are faster",)
    native = {"avx512_bf16", "amx_bf16"} & cpu_flags()
    if cluster.device is Device.cpu and dtype.policy is Policy.mixed_bfloat16 and not native:
        return (
            f"dtype={dtype.name}: this CPU has no AVX512_BF16, so bfloat16 is emulated and slow; dtype=fp32 is faster",
        )
    return ()


def placed_on(kind: str) -> str:
    """The device that computes an operation placed on the first of that kind; another one if TensorFlow falls back."""
    with tf.device(f"/device:{kind}:0"):
        return str((tf.ones([2, 2]) @ tf.ones([2, 2])).device)


def assert_placement(cluster: Cluster) -> None:
    """Raise UserError unless operations run on the cluster's device: TensorFlow falls back to the CPU silently."""
    kind = cluster.device.value
    if not tf.config.list_physical_devices(kind):
        raise UserError(
            f"cluster={cluster.name}: TensorFlow has loaded Habana's plug-in and sees no card; is another process "
            "on it (hl-smi)?"
        )
    if not (place := placed_on(kind)).endswith(f"{kind}:0"):
        raise UserError(
            f"cluster={cluster.name}: operations end up on {place}, not on the {kind}; see what hl-smi says"
        )


def uses_amx(cluster: Cluster, dtype: Dtype) -> bool:
    """Whether convolutions use conv.convolve() and conv.pack_groups().

    Measured (docs/performance.md): half the time for filters with AMX in bfloat16; slower with AVX512_BF16 alone, and in float32.
    """
    return cluster.device is Device.cpu and dtype.policy is Policy.mixed_bfloat16 and "amx_bf16" in cpu_flags()


def device_scope(cluster: Cluster) -> AbstractContextManager[None]:
    """Context for building and running the network on the device."""
    scope: AbstractContextManager[None] = tf.device(f"/device:{cluster.device.value}:0")
    return scope


def prefetch_to_device(dataset: tf.data.Dataset, cluster: Cluster) -> tf.data.Dataset:
    """`dataset` with its batches copied to the device ahead of their step; as it is on a CPU."""
    if cluster.device is Device.cpu or not cluster.prefetch:
        return dataset
    return dataset.apply(tf.data.experimental.prefetch_to_device(f"/device:{cluster.device.value}:0"))
