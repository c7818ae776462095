"""What Linux says of the CPU. Does not need TensorFlow."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_info(key: str) -> str:
    """A line of /proc/cpuinfo, empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def cpu_flags() -> set[str]:
    """Instruction sets of the first core, by Linux's names."""
    return set(cpu_info("flags").split())


def cpu_name() -> str:
    return cpu_info("model name") or platform.processor() or platform.machine()
