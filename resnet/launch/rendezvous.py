"""Where ranks of Gloo find each other: Horovod's rendezvous server, in the process that starts the ranks or calls srun.

It answers whoever reaches its port, without a password. So it listens on one address only: of the loopback interface if all
ranks are on this host, else of the interface that HOROVOD_GLOO_IFACE names or that leads to the other hosts.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import psutil

from resnet.config.cluster import Cluster
from resnet.config.topology import allocated_nodes, launcher_for, tasks_per_node
from resnet.launch import launchers
from resnet.launch.launchers import INTERFACE

LOOPBACK = "127.0.0.1"
NAMES = ("HOSTNAME", "RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")


@contextlib.contextmanager
def serve(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Variables for the environment of all ranks, or of srun: those of a rendezvous server, which runs in this context.

    None are needed for one rank, if the launcher runs a server, or if Horovod has MPI alone, as Gaudi's has. With MPI srun must
    support the PMI that Open MPI was built for (SLURM_MPI_TYPE=pmix), and many an installation does not.
    """
    if not launchers.needs_rendezvous(cluster):
        yield {}
        return
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    address = own_address(cluster)
    server = RendezvousHTTPServer((address, 0), RendezvousHandler, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(server.server_port),
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(math.ceil(cluster.start_s)),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def own_address(cluster: Cluster) -> str:
    """The IPv4 address of this host at which all ranks reach it. Raises UserError if the named interface has none."""
    if address := launchers.named_address():
        return address
    if launcher_for(cluster) is None or allocated_nodes() == 1:
        return LOOPBACK
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


def place(address: str, *values: object) -> dict[str, str]:
    """Horovod's variables of one rank: `values` in the order of NAMES, and the interface with this address for its sockets."""
    interfaces = {entry.address: name for name, entries in psutil.net_if_addrs().items() for entry in entries}
    variables = {f"HOROVOD_{name}": str(value) for name, value in zip(NAMES, values, strict=True)}
    return {**variables, INTERFACE: os.environ.get(INTERFACE) or interfaces.get(address, "")}


def on_this_host(cluster: Cluster) -> list[dict[str, str]]:
    """Variables of each rank beside those of `serve`, if the supervisor starts them: by horovodrun's example."""
    if cluster.ranks == 1:
        return [{}]
    size, address = cluster.ranks, own_address(cluster)
    ranks = [place(address, "localhost", rank, size, rank, size, 0, 1) for rank in range(size)]
    return [{"NCCL_SOCKET_IFNAME": os.environ.get("NCCL_SOCKET_IFNAME", rank[INTERFACE]), **rank} for rank in ranks]


def export_horovod_env() -> None:
    """In a rank that srun has started for Gloo: set the variables that horovodrun would have set."""
    env = os.environ
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in env or "HOROVOD_RANK" in env or "SLURM_PROCID" not in env:
        return
    counts = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE") or env["SLURM_TASKS_PER_NODE"])
    node, here = int(env["SLURM_NODEID"]), int(env["SLURM_LOCALID"])
    peers = [number for number, count in enumerate(counts) if count > here]  # nodes that have this local rank
    host = env.get("SLURMD_NODENAME") or socket.gethostname()
    towards = address_towards(env["HOROVOD_GLOO_RENDEZVOUS_ADDR"])
    rank = env["SLURM_PROCID"]
    env.update(place(towards, host, rank, sum(counts), here, counts[node], peers.index(node), len(peers)))
