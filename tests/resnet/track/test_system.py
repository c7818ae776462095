"""What the machine is doing."""

import sys
from types import SimpleNamespace

from resnet.track import system


def test_gpus_are_sampled_under_the_names_mlflow_uses(monkeypatch):
    made = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetUtilizationRates=lambda card: SimpleNamespace(gpu=50 + card),
        nvmlDeviceGetMemoryInfo=lambda card: SimpleNamespace(used=(1 + card) * 10**9),
    )
    monkeypatch.setitem(sys.modules, "pynvml", made)
    assert {
        "system/gpu_0_utilization_percentage": 50,
        "system/gpu_1_utilization_percentage": 51,
        "system/gpu_0_memory_usage_megabytes": 1000.0,
        "system/gpu_1_memory_usage_megabytes": 2000.0,
    }.items() <= dict(system.system_metrics()).items()
