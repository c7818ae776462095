"""Where the ranks of a run are, and which of them this process is: the only reader of the environment variables of launchers.

Slurm describes its allocation; srun, Open MPI (OMPI_*), other MPIs (PMI_*) and horovodrun (HOROVOD_*) describe each process that
they start.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import socket
from pathlib import Path

from resnet.config.cluster import Cluster, Device, Starter

# The innermost launcher first, because Slurm describes the shell of a batch job too.
RANK = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
HOST = ("HOROVOD_HOSTNAME", "SLURMD_NODENAME")  # by the name that its launcher has for it
# Launcher, and its variables of the number of processes, of all and on this host.
STARTED = (
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("horovodrun", "HOROVOD_SIZE", "HOROVOD_LOCAL_SIZE"),
    ("mpirun", "PMI_SIZE", "MPI_LOCALNRANKS"),
)
# Files of Open MPI 4 and 5 with the hosts of an mpirun without -H; Kubernetes' MPI operator sets them.
HOSTFILES = ("OMPI_MCA_orte_default_hostfile", "PRTE_MCA_prte_default_hostfile")


# ----------------------------------------------------------------------------------------------------------------- a run
def launcher_for(cluster: Cluster) -> Starter | None:
    """The program that starts the ranks; None if the run's own process does, which it can on this host."""
    if cluster.ranks == 1 and not cluster.hosts:
        return None
    if cluster.starter is None and in_allocation() and not cluster.hosts:
        return Starter.srun
    if cluster.starter or cluster.device is Device.hpu:
        return cluster.starter or Starter.mpirun
    return Starter.horovodrun if cluster.hosts else None


def hosts(cluster: Cluster) -> dict[str, int]:
    """Ranks on each host that cluster.hosts names."""
    return {name: int(ranks) for name, _, ranks in (host.rpartition(":") for host in cluster.hosts)}


def host_count(cluster: Cluster) -> int:
    """How many hosts the ranks of a run are spread over."""
    if cluster.hosts:
        return len(cluster.hosts)
    for _, everywhere, here in STARTED:  # by somebody else: this process is one of the ranks
        if number(everywhere) == cluster.ranks > 1 and number(here):
            return math.ceil(cluster.ranks / number(here))
    match launcher_for(cluster):
        case Starter.srun:
            return min(allocated_nodes(), cluster.ranks)
        case Starter.mpirun:  # fills one host after the other
            ends = itertools.accumulate(mpirun_slots())
            return 1 + sum(end < cluster.ranks for end in ends) if cluster.ranks <= sum(mpirun_slots()) else 1
    return 1


def ranks_per_host(cluster: Cluster) -> int:
    """The most ranks that one host has."""
    return max(hosts(cluster).values(), default=math.ceil(cluster.ranks / host_count(cluster)))


# ----------------------------------------------------------------------------------------------------- Slurm's allocation
def in_allocation() -> bool:
    return "SLURM_JOB_ID" in os.environ


def allocated_nodes() -> int:
    return number("SLURM_JOB_NUM_NODES", "SLURM_NNODES") or 1


def allocated_tasks() -> int:
    """Tasks that were asked for; releases before 20.11 set SLURM_NTASKS for --ntasks alone."""
    return number("SLURM_NTASKS", "SLURM_NPROCS") or number("SLURM_NTASKS_PER_NODE") * allocated_nodes() or 1


def tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in parts for _ in range(int(times or 1))]


def mpirun_slots() -> list[int]:
    """How many ranks each host takes under an mpirun without -H: by Slurm's allocation or a default host file."""
    if in_allocation():
        return tasks_per_node(os.environ.get("SLURM_TASKS_PER_NODE", ""))
    for name in HOSTFILES:
        with contextlib.suppress(KeyError, OSError, UnicodeDecodeError):
            lines = [line for line in Path(os.environ[name]).read_text().splitlines() if not line.startswith("#")]
            return [int((re.findall(r"slots\s*=\s*(\d+)", line) or [1])[0]) for line in lines if line.strip()]
    return []


# ------------------------------------------------------------------------------------------------------------ this process
def process_rank() -> int:
    """This process's rank; 0 without a launcher."""
    return next((int(os.environ[name]) for name in RANK if name in os.environ), 0)


def process_host() -> str:
    """This host, by its launcher's name for it."""
    names = (os.environ.get(name, "localhost") for name in HOST)
    return next((name for name in names if name != "localhost"), socket.gethostname())


def started_by() -> tuple[str, str, int] | None:
    """(program, its variable, processes) of the launcher that has started several processes like this one."""
    step = [("srun", "SLURM_STEP_NUM_TASKS", "")] if os.environ.get("SLURM_STEP_ID", "").isdigit() else []
    for program, variable, _ in (*STARTED, *step):
        if number(variable) > 1:
            return program, variable, number(variable)
    return None


def srun_local_rank() -> str | None:
    """Rank on this host of a process that srun has started, not a launcher inside of it."""
    return None if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ else os.environ.get("SLURM_LOCALID")


def number(*names: str) -> int:
    """The first of these environment variables that is a whole number; 0 without one."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)
