"""The machine: conf/cluster/."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from resnet.config.checks import MISSING, check, check_range


class Device(Enum):
    """What the ranks compute on."""

    cpu = "CPU"
    gpu = "GPU"
    hpu = "HPU"  # Habana Gaudi


class Starter(Enum):
    """The program that starts the ranks."""

    horovodrun = "horovodrun"  # Gloo; ssh to other hosts
    mpirun = "mpirun"  # Open MPI
    srun = "srun"  # Slurm, inside an allocation


@dataclass
class Cluster:
    """The machine: what computes, and how many ranks of it."""

    name: str = MISSING
    device: Device = Device.cpu
    ranks: int = 1
    hosts: list[str] = field(default_factory=list)  # [a:2,b:2]: two ranks on each of a and b; none: all on this machine
    starter: Starter | None = None  # null: srun inside a Slurm allocation, mpirun for Gaudi, else horovodrun
    dry_run: bool = False  # print the command and environment that would start the ranks, and stop
    start_s: float = 120.0  # for hosts to answer and all ranks to find each other
    stall_s: float = 600.0  # without a step for so long, ranks write where they stand and end
    max_restarts: int = 0  # start ranks that died again from the newest checkpoint, so often
    sync_batch_norm: bool = False  # batch-norm statistics over all ranks, not each rank's own
    gradient_accumulation: int = 1  # an update from so many smaller steps, whose images make up `batch`
    prefetch: bool = True  # batches go to the device ahead of their step; a CPU has none to go to
    threads: int | None = None  # of one rank, for one operation; null: all cores shared out over the ranks

    def __post_init__(self) -> None:
        for knob in ("ranks", "gradient_accumulation"):
            check(getattr(self, knob) > 0, f"cluster.{knob}", getattr(self, knob), "must be above 0")
        for knob in ("start_s", "stall_s"):
            check_range(f"cluster.{knob}", getattr(self, knob), 0, math.inf, open_low=True)
        check(self.max_restarts >= 0, "cluster.max_restarts", self.max_restarts, "must be at least 0")
        slots = [host.rpartition(":")[2] for host in self.hosts]
        well = all(host.rpartition(":")[0] and slot.isdigit() for host, slot in zip(self.hosts, slots, strict=True))
        check(well and len(set(self.hosts)) == len(self.hosts), "cluster.hosts", self.hosts, "must be like [a:2,b:2]")
        check(
            not self.hosts or sum(map(int, slots)) == self.ranks,
            "cluster.ranks",
            self.ranks,
            f"cluster.hosts={self.hosts} has places for {sum(map(int, slots))}",
        )
        check(self.threads is None or self.threads > 0, "cluster.threads", self.threads, "must be above 0, or null")
