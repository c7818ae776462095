"""Bring-up of the machine, on stand-ins for processors and GPUs that are not here."""

import os
import platform

import pytest
import tensorflow as tf

from resnet import UserError
from resnet.config.cluster import Cluster, Device
from resnet.config.model import Dtype, Policy
from resnet.distributed import cpu, device, ranks
from resnet.model.norm import RowNorm, batch_norm_class

FP32, BF16 = Dtype("fp32", Policy.float32), Dtype("bf16", Policy.mixed_bfloat16)
CPUINFO = """processor\t: 0
model name\t: AMD EPYC 9R14 96-Core Processor
flags\t\t: fpu avx2 avx512f avx512_bf16
bugs\t\t: spectre_v1

processor\t: 1
model name\t: another
flags\t\t: fpu
"""


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """What TensorFlow's threads were set to; it refuses once it has begun to work, and here it has."""
    asked = []
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", asked.append)
    return asked


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs; what was asked of them."""
    asked = []
    config = tf.config
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr(config, "set_visible_devices", lambda *args: asked.append(("visible", *args)))
    monkeypatch.setattr(config.experimental, "set_memory_growth", lambda *args: asked.append(("growth", *args)))
    monkeypatch.setattr(config.experimental, "get_device_details", lambda _gpu: {"device_name": "A100"})
    return asked


def flagged(monkeypatch, *flags):
    monkeypatch.setattr(device, "cpu_flags", lambda: {"fpu", "avx2", "avx512f", *flags})


def test_a_cpu_is_one_rank_with_all_cores_unless_told(monkeypatch, threads):
    monkeypatch.setattr(device, "cpu_name", lambda: "A CPU")
    ranks = device.init(Cluster("local"), FP32)
    assert (ranks.rank, ranks.size, ranks.warnings) == (0, 1, ())
    assert ranks.device == f"A CPU, {len(os.sched_getaffinity(0))} threads"
    assert threads == []
    assert device.init(Cluster("local", threads=3), FP32).device == "A CPU, 3 threads"
    assert threads == [3]


def test_no_gpu_is_told_with_two_ways_out(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _kind: [])
    with pytest.raises(UserError, match=r"cluster=gpu1: .*no GPU.*cluster=local.*\.\[gpu\]") as caught:
        device.init(Cluster("gpu1", Device.gpu), FP32)
    assert "\n" not in str(caught.value)


def test_the_first_gpu_is_taken_and_its_memory_grows(gpus):
    assert device.init(Cluster("gpu1", Device.gpu), FP32) == ranks.Ranks(0, 1, "A100")
    assert gpus == [("visible", "GPU:0", "GPU"), ("growth", "GPU:0", True)]


OLD = ["sm_50", "sm_60", "sm_70", "sm_75", "compute_80"]  # of the wheels of 2.15, and of 2.18 to 2.21
NEW = ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"]


@pytest.mark.parametrize(
    ("version", "kernels", "capability", "expected"),
    [
        ("2.15.1", OLD, (8, 9), ""),
        (
            "2.15.1",
            OLD,
            (9, 0),
            "compute capability 9.0, and TensorFlow 2.15.1 is compiled for 8.0 at most: its kernels",
        ),
        ("2.15.1", None, (9, 0), "half an hour"),
        ("2.20.0", NEW, (9, 0), ""),
        ("2.20.0", None, (9, 0), ""),
        ("2.20.0", NEW, (12, 0), "error: cluster=gpu1: H has compute capability 12.0"),
        ("2.15.1", None, (10, 0), "25.02-tf2-py3, conda-forge's TensorFlow"),
        ("2.20.0", [*NEW, "sm_100", "compute_120"], (12, 0), ""),  # NVIDIA's, conda-forge's or one's own
        ("2.20.0", NEW, None, ""),
    ],
)
@pytest.mark.usefixtures("gpus")
def test_a_gpu_newer_than_the_kernels_is_told_before_its_first_operation(
    monkeypatch, capsys, version, kernels, capability, expected
):
    details = {"device_name": "H"} | ({"compute_capability": capability} if capability else {})
    monkeypatch.setattr(tf, "__version__", version)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _gpu: details)
    build = {"cuda_compute_capabilities": kernels} if kernels else {}
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: build)
    try:
        device.init(Cluster("gpu1", Device.gpu), FP32)
        line = capsys.readouterr().out.strip()
    except UserError as error:
        line = f"error: {error}"
    assert expected in line and "\n" not in line and bool(line) == bool(expected)
    assert line.startswith("error: ") == (capability in ((10, 0), (12, 0)) and "sm_100" not in (kernels or ()))


def test_bf16_warns_on_a_cpu_without_it(monkeypatch):
    flagged(monkeypatch)
    (warning,) = device.init(Cluster("local"), BF16).warnings
    for part in ("dtype=bf16", "AVX512_BF16", "slow", "dtype=fp32"):
        assert part in warning
    assert device.init(Cluster("local"), FP32).warnings == ()


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_bf16_does_not_warn_on_a_cpu_that_has_it(monkeypatch, flag):
    flagged(monkeypatch, flag)
    assert device.init(Cluster("local"), BF16).warnings == ()


def test_bf16_does_not_warn_on_a_gpu(monkeypatch, gpus):
    flagged(monkeypatch)
    assert device.init(Cluster("gpu1", Device.gpu), BF16).warnings == ()
    assert gpus


def test_processors_tell_their_name_and_flags(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(cpu, "Path", lambda path: tmp_path / path.rpartition("/")[2])
    assert cpu.cpu_name() == "AMD EPYC 9R14 96-Core Processor"
    assert cpu.cpu_flags() == {"fpu", "avx2", "avx512f", "avx512_bf16"}


def test_filter_gradients_are_products_where_there_is_amx_in_bfloat16_only(monkeypatch):
    bf16, gpu = Dtype("bf16", Policy.mixed_bfloat16), Cluster("gpu1", Device.gpu)
    flagged(monkeypatch, "avx512_bf16", "amx_bf16")
    assert device.uses_amx(Cluster("local"), bf16)
    assert not device.uses_amx(Cluster("local"), FP32) and not device.uses_amx(gpu, bf16)
    flagged(monkeypatch, "avx512_bf16")
    assert not device.uses_amx(Cluster("local"), bf16)


def test_batch_norm_goes_by_rows_on_a_cpu_unless_it_is_over_all_ranks():
    assert batch_norm_class(Cluster("local")) is batch_norm_class(Cluster("cpu2")) is RowNorm
    assert batch_norm_class(Cluster("gpu1", Device.gpu)) is tf.keras.layers.BatchNormalization
    assert batch_norm_class(Cluster("hpu1", Device.hpu)) is tf.keras.layers.BatchNormalization
    over_all = batch_norm_class(Cluster("local", sync_batch_norm=True))(name="bn")
    assert type(over_all) is tf.keras.layers.BatchNormalization and not over_all.fused


def test_keras_3_is_refused_with_the_package_that_brings_keras_2(monkeypatch):
    monkeypatch.setattr(tf.keras, "__version__", "3.15.1", raising=False)
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")
    with pytest.raises(UserError) as caught:
        device.init(Cluster("local"), FP32)
    line = tf.__version__.rpartition(".")[0]
    assert str(caught.value) == (
        f"TF_USE_LEGACY_KERAS=0: TensorFlow {tf.__version__} uses Keras 3.15.1, and Keras 2 is needed; "
        f"pip install 'tf-keras=={line}.*', and leave the variable unset"
    )


def test_without_cpuinfo_the_platform_names_the_processor(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "Path", lambda _path: tmp_path / "none")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert cpu.cpu_name() == "arm"
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert cpu.cpu_name() == platform.machine()
    assert cpu.cpu_flags() == set()


def test_variables_are_made_where_the_cluster_says():
    with device.device_scope(Cluster("local")):
        assert tf.Variable([1.0]).device.endswith("device:CPU:0")
    with tf.Graph().as_default(), device.device_scope(Cluster("gpu1", Device.gpu)):
        assert tf.constant(1.0).op.device.endswith("GPU:0")
