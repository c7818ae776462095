"""The machine: conf/cluster/."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from resnet.config.checks import MISSING, Settings


class Device(Enum):
    cpu = "CPU"
    gpu = "GPU"
    hpu = "HPU"  # Habana Gaudi


class Starter(Enum):
    horovodrun = "horovodrun"  # Gloo; ssh to other hosts
    mpirun = "mpirun"  # Open MPI
    srun = "srun"  # Slurm, inside an allocation


# A name or IPv4 address, with a user before it if need be: what ssh and mpirun would take for an option is none.
HOST = re.compile(r"(\w[\w.-]*@)?\w[\w.-]*", re.ASCII)


@dataclass
class Cluster(Settings):
    GROUP = "cluster."
    name: str = MISSING
    device: Device = Device.cpu
    ranks: int = 1
    hosts: list[str] = field(default_factory=list)  # [a:2,b:2]: two ranks on each of a and b; none: all on this machine
    starter: Starter | None = (
        None  # null: srun in a Slurm allocation, mpirun for Gaudi, horovodrun for hosts, else none
    )
    dry_run: bool = False  # print the command and environment that would start the ranks, and stop
    start_s: float = 120.0  # timeout for hosts to answer and all ranks to find each other
    stall_s: float = 600.0  # without a step for so long, ranks print their stacks and exit
    max_restarts: int = 0  # how often ranks that died are started again, from the newest checkpoint
    sync_batch_norm: bool = False  # batch-norm statistics over all ranks, not each rank's own
    gradient_accumulation: int = 1  # an update from so many smaller steps, whose images make up `batch`
    prefetch: bool = True  # batches go to the device ahead of their step; a CPU has none to go to
    threads: int | None = None  # of one rank, for one operation; null: all cores shared out over the ranks

    def __post_init__(self) -> None:
        self.check_above(0, "ranks", "gradient_accumulation", "start_s", "stall_s")
        self.check_at_least(0, "max_restarts")
        self.check_at_most(10_000, "ranks", "threads")
        split = [host.rpartition(":") for host in self.hosts]
        valid = all(HOST.fullmatch(host) and slots.isdecimal() for host, _, slots in split)
        self.check("hosts", valid and len(set(self.hosts)) == len(self.hosts), "must be like [a:2,b:2]")
        places = sum(int(slots) for _, _, slots in split)
        self.check("ranks", not split or places == self.ranks, f"cluster.hosts={self.hosts} has places for {places}")
        self.check("threads", self.threads is None or self.threads > 0, "must be above 0, or null")
