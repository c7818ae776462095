"""Which cores or cards of this machine each job of a sweep has: never two jobs on one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet import UserError
from resnet.config import topology
from resnet.config.cluster import Device
from resnet.config.run import Run
from resnet.config.sweep import Sweep, Where
from resnet.distributed import gaudi

VISIBLE = {Device.gpu: "CUDA_VISIBLE_DEVICES", Device.hpu: "HABANA_VISIBLE_MODULES"}
MANY = 10_000
NVIDIA = Path("/proc/driver/nvidia/gpus")  # tests look elsewhere


@dataclass(frozen=True)
class Place:
    """What one job has: cores by Linux's numbers, or cards as the variable of VISIBLE names them. None: all there are."""

    device: Device
    units: tuple[str, ...] | None = None

    @property
    def cores(self) -> frozenset[int] | None:
        """Those that its processes may use; None for all."""
        return frozenset(map(int, self.units)) if self.device is Device.cpu and self.units is not None else None

    @property
    def environment(self) -> dict[str, str]:
        cards = self.units is not None and self.device in VISIBLE
        return {VISIBLE[self.device]: ",".join(self.units or ())} if cards else {}


class Places:
    """The cores and cards of this machine, and those that are free."""

    def __init__(self, settings: Sweep) -> None:
        self.units = {device: units_of(device) for device in Device}
        self.free = {device: list(units) for device, units in self.units.items()}
        self.running = 0
        self.settings, self.elsewhere = settings, settings.on is Where.slurm
        cores, cards = len(self.units[Device.cpu]), max(len(self.units[device]) for device in VISIBLE)
        self.automatic = settings.jobs == "auto"
        self.jobs = max(1, cards or cores // (settings.cores_each or 1)) if self.automatic else int(settings.jobs)
        if self.elsewhere:  # Slurm has the cores; a search still waits for results
            self.jobs = (
                settings.trials
                if self.automatic and settings.sampler
                else MANY
                if self.automatic or settings.sampler is None
                else self.jobs
            )
        self.cores_each = settings.cores_each or (1 if self.automatic else max(1, cores // self.jobs))

    def needed(self, run: Run) -> int:
        """How many cores or cards of this machine a job takes."""
        ranks = topology.ranks_per_host(run.cluster)
        return ranks * self.cores_each if run.cluster.device is Device.cpu else ranks

    def check(self, run: Run, name: str) -> None:
        """Raise UserError for a job that would never fit. One job at a time has the whole machine, as a run without a sweep."""
        if self.jobs == 1 or self.elsewhere:
            return
        device, needed = run.cluster.device, self.needed(run)
        has, what = len(self.units[device]), "cores" if device is Device.cpu else "cards"
        if run.cluster.hosts or topology.host_count(run.cluster) > 1:
            raise UserError(
                f"sweep.jobs={self.settings.jobs}: {name} is for several hosts; use sweep.jobs=1, or sweep.on=slurm"
            )
        if needed > has:
            way_out = "cluster.ranks or sweep.cores_each" if device is Device.cpu else "cluster.ranks"
            raise UserError(
                f"sweep.jobs={self.settings.jobs}: {name} takes {needed} {what}, and this machine has {has}; lower {way_out}"
            )
        if device is Device.cpu and not self.automatic and self.jobs * self.cores_each > has:
            raise UserError(
                f"sweep.jobs={self.jobs}: {self.jobs} jobs of {self.cores_each} cores each do not fit on {has}; "
                f"use sweep.jobs={max(1, has // self.cores_each)}"
            )

    def take(self, run: Run) -> Place | None:
        """A place for the job; None if there is none now."""
        device, needed = run.cluster.device, self.needed(run)
        whole = self.jobs == 1 or self.elsewhere
        if self.running >= self.jobs or (not whole and len(self.free[device]) < needed):
            return None
        self.running += 1
        if whole:
            return Place(device)
        units, self.free[device] = self.free[device][:needed], self.free[device][needed:]
        return Place(device, tuple(units))

    def give_back(self, place: Place) -> None:
        self.running -= 1
        free = {*self.free[place.device], *(place.units or ())}
        self.free[place.device] = [unit for unit in self.units[place.device] if unit in free]


def units_of(device: Device) -> Sequence[str]:
    """The cores that this process may use, or the cards that it sees, by the names of VISIBLE."""
    if device is Device.cpu:
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        return [str(core) for core in sorted(cores)]
    named = os.environ.get(VISIBLE[device])
    if named is not None:
        return [unit for unit in map(str.strip, named.split(",")) if unit and unit != "-1"]
    count = sum(1 for _ in NVIDIA.iterdir()) if device is Device.gpu and NVIDIA.is_dir() else 0
    return [str(number) for number in range(gaudi.cards() if device is Device.hpu else count)]
