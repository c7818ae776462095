"""What a machine has: the facts, each looked at once, and a reason for each that cannot be known."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from resnet import __version__, files
from resnet.config.data import FASHION_DIR
from resnet.distributed import cpu
from resnet.doctor import bounded
from resnet.doctor.bounded import Failure
from resnet.track import provenance

PACKAGES = (
    *("tensorflow", "tensorflow-cpu", "tf-keras", "keras", "horovod", "habana-tensorflow", "hydra-core", "omegaconf"),
    *("optuna", "cmaes", "mlflow", "numpy", "protobuf", "pillow", "scikit-learn", "safetensors"),
)
PROGRAMS = ("horovodrun", "mpirun", "srun", "ssh", "nvidia-smi", "hl-smi", "cmake", "g++", "make", "git")
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
LIMITS = {"memory": "/sys/fs/cgroup/memory.max", "cpu": "/sys/fs/cgroup/cpu.max"}  # of a container (cgroup 2)
ROOT = Path("/")  # tests look elsewhere


@dataclass
class Facts:
    """Answers of the probes by name, or the reasons why there is none; and what this process sees itself."""

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    programs: dict[str, bool] = field(default_factory=dict)
    cards: list[str] = field(default_factory=list)  # that nvidia-smi lists
    flags: set[str] = field(default_factory=set)  # of the CPU
    fashion: bool = False  # whether the package of data=fashion is installed


def collect(out: str, uri: str, limit_s: float) -> Facts:
    """Look at everything, at once, each for at most `limit_s` seconds."""
    facts = Facts(packages=dict(filter(None, map(package, PACKAGES))), flags=cpu.cpu_flags())
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    facts.programs = {name: shutil.which(name, path=path) is not None for name in PROGRAMS}
    facts.fashion = Path(FASHION_DIR).is_dir()
    probes: dict[str, Callable[[], Any]] = {
        name: lambda name=name, words=words: bounded.ask(name, *words, limit_s=limit_s)  # type: ignore[misc]
        for name, words in {
            "tensorflow": (),
            "horovod": (),
            "habana": (),
            "semaphores": (),
            "disk": (out,),
            "store": (uri,),
        }.items()
    }
    if facts.programs["nvidia-smi"]:
        probes["nvidia"] = lambda: {"cards": bounded.output(QUERY, limit_s).strip().splitlines()}
    with ThreadPoolExecutor(len(probes)) as pool:
        running = {name: pool.submit(probe) for name, probe in probes.items()}
        for name, future in running.items():
            try:
                facts.answers[name] = future.result()
            except Failure as reason:
                facts.reasons[name] = str(reason)
            except Exception as error:
                facts.reasons[name] = f"{type(error).__name__}: {error}"
    facts.cards = facts.answers.get("nvidia", {}).get("cards", [])
    return facts


def package(name: str) -> tuple[str, str] | None:
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------------- what is read in here
def suite() -> str:
    commit = provenance.source_tags(files.HERE)
    if not commit:
        return f"{__version__}, not in a checkout of git"
    changed = "with" if commit["git.dirty"] == "true" else "without"
    return f"{__version__}, commit {commit['mlflow.source.git.commit'][:12]} {changed} uncommitted changes"


def python() -> str:
    setup = files.HERE.parent / "setup.cfg"
    text = setup.read_text() if setup.is_file() else ""
    needs = re.search(r"python_requires = (.+)", text)
    with contextlib.suppress(metadata.PackageNotFoundError):
        needs = needs or re.search(r"(.+)", metadata.metadata("resnet-experiments")["Requires-Python"] or "")
    place = "a virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    return f"{platform.python_version()} (the suite needs {needs[1] if needs else '?'}), {place}, {platform.platform()}"


def processor() -> str:
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    has = " ".join(name for name in wanted if name in cpu.cpu_flags()) or "none of " + " ".join(wanted)
    quota = limit("cpu").split()
    bounds = f", a container's limit of {int(quota[0]) / int(quota[1]):.3g}" if quota and quota[0].isdigit() else ""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu.cpu_name()}, {usable} cores of {os.cpu_count()}{bounds}, {has}"


def memory() -> str:
    text = (ROOT / "proc/meminfo").read_text()
    total, free = (int(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    bound = limit("memory")
    return f"{size(total)}, {size(free)} free" + (
        f", a container's limit of {size(int(bound))}" if bound.isdigit() else ""
    )


def limit(kind: str) -> str:
    """A container's limit as the kernel writes it; empty if there is none to read."""
    with contextlib.suppress(OSError):
        return (ROOT / LIMITS[kind][1:]).read_text().strip()
    return ""


def size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
