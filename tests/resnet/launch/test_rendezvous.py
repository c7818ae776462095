"""Where ranks find each other: the server's address, and what each rank is told of its place."""

import os
import socket
from types import SimpleNamespace

import psutil
import pytest

from resnet.config import topology
from resnet.config.cluster import Cluster, Device, Starter
from resnet.launch import launchers, rendezvous

pytestmark = pytest.mark.usefixtures("bare")


# ---------------------------------------------------------------------------------------------------------------- Slurm
@pytest.mark.parametrize(
    ("text", "counts"), [("4", [4]), ("2(x3)", [2, 2, 2]), ("2(x2),1", [2, 2, 1]), ("1,2(x2)", [1, 2, 2])]
)
def test_slurms_tasks_per_node(text, counts):
    assert topology.tasks_per_node(text) == counts


def test_a_task_of_slurm_becomes_a_rank_of_gloo(monkeypatch):
    given = {
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
        "SLURM_PROCID": "4",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURMD_NODENAME": "node3",
    }
    environment = dict(given)
    monkeypatch.setattr(os, "environ", environment)
    rendezvous.export_horovod_env()
    assert {name: value for name, value in environment.items() if name not in given} == {
        "HOROVOD_HOSTNAME": "node3",
        "HOROVOD_RANK": "4",
        "HOROVOD_SIZE": "5",
        "HOROVOD_LOCAL_RANK": "0",
        "HOROVOD_LOCAL_SIZE": "1",
        "HOROVOD_CROSS_RANK": "2",
        "HOROVOD_CROSS_SIZE": "3",
        "HOROVOD_GLOO_IFACE": "lo",
    }


def test_a_rank_that_others_started_is_left_alone(monkeypatch):
    environment = {"SLURM_PROCID": "0", "HOROVOD_RANK": "1", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1"}
    monkeypatch.setattr(os, "environ", dict(environment))
    rendezvous.export_horovod_env()
    assert os.environ == environment


def listeners():
    """(address, port) of every socket at which this process listens."""
    return {tuple(c.laddr) for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize(
    "cluster",
    [Cluster("x"), Cluster("x", ranks=2, starter=Starter.horovodrun), Cluster("x", device=Device.hpu, ranks=2)],
)
def test_no_rendezvous_for_one_rank_nor_beside_a_launcher(cluster):
    with rendezvous.serve(cluster) as variables:
        assert variables == {} and not listeners()


@pytest.mark.parametrize("starter", [None, Starter.srun])
def test_the_rendezvous_listens_at_one_address_while_it_is_needed(monkeypatch, starter):
    if starter:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setattr(launchers, "horovod_features", lambda: {"mpi"})
        with rendezvous.serve(Cluster("x", ranks=2)) as variables:
            assert variables == {}
    # srun may not speak the PMI that this MPI wants
    monkeypatch.setattr(launchers, "horovod_features", lambda: {"gloo", "mpi"})
    cluster = Cluster("x", ranks=2, starter=starter)
    with rendezvous.serve(cluster) as variables:
        assert variables["HOROVOD_CONTROLLER"] == "gloo"
        address, port = (variables[f"HOROVOD_GLOO_RENDEZVOUS_{name}"] for name in ("ADDR", "PORT"))
        assert listeners() == {("127.0.0.1", int(port))} and address == "127.0.0.1"
    assert not listeners()
    six, four = SimpleNamespace(address="::1", family=10), SimpleNamespace(address="127.0.0.2", family=socket.AF_INET)
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"own": [six, four]})
    monkeypatch.setenv("HOROVOD_GLOO_IFACE", "own")
    with rendezvous.serve(cluster):
        assert {address for address, _ in listeners()} == {"127.0.0.2"}


def test_ranks_of_this_host_are_numbered_as_horovodrun_does_and_stay_on_loopback(monkeypatch):
    zero, one = rendezvous.on_this_host(Cluster("x", ranks=2))
    assert zero == {
        "HOROVOD_HOSTNAME": "localhost",
        "HOROVOD_RANK": "0",
        "HOROVOD_SIZE": "2",
        "HOROVOD_LOCAL_RANK": "0",
        "HOROVOD_LOCAL_SIZE": "2",
        "HOROVOD_CROSS_RANK": "0",
        "HOROVOD_CROSS_SIZE": "1",
        "HOROVOD_GLOO_IFACE": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    assert one == {**zero, "HOROVOD_RANK": "1", "HOROVOD_LOCAL_RANK": "1"}
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")
    assert rendezvous.on_this_host(Cluster("x", ranks=2))[0]["NCCL_SOCKET_IFNAME"] == "eth0"
