"""The load of CPU, memory and GPUs, under the names that MLflow's UI shows as system metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil


def system_metrics() -> Iterator[tuple[str, float]]:
    yield "system/cpu_utilization_percentage", psutil.cpu_percent()
    memory = psutil.virtual_memory()
    yield "system/system_memory_usage_megabytes", memory.used / 1e6
    yield "system/system_memory_usage_percentage", memory.percent
    yield "system/process_memory_megabytes", psutil.Process().memory_info().rss / 1e6
    with contextlib.suppress(Exception):  # no GPU, no driver, or no NVML for Python
        import pynvml

        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            card = pynvml.nvmlDeviceGetHandleByIndex(number)
            yield f"system/gpu_{number}_utilization_percentage", pynvml.nvmlDeviceGetUtilizationRates(card).gpu
            yield f"system/gpu_{number}_memory_usage_megabytes", pynvml.nvmlDeviceGetMemoryInfo(card).used / 1e6
