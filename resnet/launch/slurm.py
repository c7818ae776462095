"""srun with Gloo: ranks find each other at a rendezvous server, which the process that called srun runs."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
from collections.abc import Iterator

import psutil

from resnet.config.cluster import Cluster
from resnet.config.topology import allocated_nodes, tasks_per_node
from resnet.launch import launchers


@contextlib.contextmanager
def rendezvous(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Variables for the environment of srun: those of a rendezvous server, which runs in this context.

    None are needed if Horovod has MPI alone, as Gaudi's has. With MPI srun must support the PMI that Open MPI was built for
    (SLURM_MPI_TYPE=pmix), and many an installation does not.
    """
    if not launchers.needs_rendezvous(cluster):
        yield {}
        return
    from horovod.runner.http.http_server import RendezvousServer

    server = RendezvousServer()
    port = server.start()
    try:
        server.init([])
        yield {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": own_address(),
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(math.ceil(cluster.start_s)),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }
    finally:
        server.stop()
        server._httpd.server_close()  # stop() leaves the port taken


def own_address() -> str:
    """The address of this host at which the other nodes of the Slurm allocation reach it."""
    if allocated_nodes() == 1:
        return "127.0.0.1"
    words = ["scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        nodes = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout.split()
        for node in nodes:
            if not launchers.is_local(node):
                return address_towards(node)
    return socket.gethostbyname(socket.gethostname())


def address_towards(host: str) -> str:
    """This host's address on the network that leads to `host`. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def export_horovod_env() -> None:
    """In a rank that srun has started for Gloo: set the variables that horovodrun would have set."""
    env = os.environ
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in env or "HOROVOD_RANK" in env or "SLURM_PROCID" not in env:
        return
    counts = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE") or env["SLURM_TASKS_PER_NODE"])
    node, here = int(env["SLURM_NODEID"]), int(env["SLURM_LOCALID"])
    peers = [number for number, count in enumerate(counts) if count > here]  # nodes that have this local rank
    address = address_towards(env["HOROVOD_GLOO_RENDEZVOUS_ADDR"])
    interfaces = {entry.address: name for name, entries in psutil.net_if_addrs().items() for entry in entries}
    env.update(
        HOROVOD_HOSTNAME=env.get("SLURMD_NODENAME") or socket.gethostname(),
        HOROVOD_RANK=env["SLURM_PROCID"],
        HOROVOD_SIZE=str(sum(counts)),
        HOROVOD_LOCAL_RANK=str(here),
        HOROVOD_LOCAL_SIZE=str(counts[node]),
        HOROVOD_CROSS_RANK=str(peers.index(node)),
        HOROVOD_CROSS_SIZE=str(len(peers)),
        HOROVOD_GLOO_IFACE=interfaces.get(address, ""),
    )
