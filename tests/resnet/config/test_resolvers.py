"""What option files ask for: the rows of LARS, and the learning rate that goes with the batch."""

import dataclasses
import os

import pytest
from omegaconf import OmegaConf

from resnet import UserError, rundir
from resnet.config import fingerprint, resolvers, topology
from resnet.config.cluster import Cluster, Starter
from resnet.config.optim import LarsRow
from resnet.config.schedule import Cosine, Polynomial

# ------------------------------------------------------------------------------------------------------- optim=lars
# recipes.md: global batch -> peak lr, warm-up, decay, epochs, horizon of the polynomial. 38 where the table leaves it open.
ROWS = {
    1: (2.5, 3, 1e-4, 38, 38),
    256: (2.5, 3, 1e-4, 38, 38),
    257: (9.5, 3, 1e-4, 38, 38),
    2048: (9.5, 3, 1e-4, 38, 38),
    2049: (13, 7, 1e-4, 40, 41),
    4096: (13, 7, 1e-4, 40, 41),
    4097: (17, 5, 1e-4, 42, 43),
    8192: (17, 5, 1e-4, 42, 43),
    8193: (10, 5, 1e-4, 38, 38),
    16383: (10, 5, 1e-4, 38, 38),
    16384: (25, 5, 1e-4, 38, 38),
    32767: (25, 5, 1e-4, 38, 38),
    32768: (32, 14, 1e-4, 38, 38),
    65536: (32, 14, 1e-4, 38, 38),
}


@pytest.mark.parametrize("batch", [256, 257, 4096, 65536])
def test_lars_takes_the_row_of_its_global_batch(frozen, batch):
    run = frozen("optim=lars", f"batch={batch}")
    lr, warmup, decay, epochs, horizon = ROWS[batch]
    assert (run.optim.lr, run.optim.weight_decay, run.epochs) == (lr, decay, epochs)
    assert isinstance(run.schedule, Polynomial)
    assert run.schedule.warmup_epochs == warmup
    assert (run.schedule.horizon_epochs or run.epochs) == horizon
    assert (run.schedule.power, run.schedule.end_lr) == (2, 1e-4)
    assert (run.optim.momentum, run.optim.trust_coefficient, run.optim.epsilon) == (0.9, 0.001, 0.0)


def test_the_rows_of_lars_are_the_published_ones_up_to_the_last_image(frozen):
    rows = frozen("optim=lars").optim.rows
    for batch, (lr, warmup, decay, epochs, horizon) in ROWS.items():
        root = OmegaConf.create({"batch": batch, "optim": {"rows": [dataclasses.asdict(row) for row in rows]}})
        row = {column: resolvers.lars_row(column, _root_=root) for column in vars(rows[0])}
        assert (row["lr"], row["warmup_epochs"], row["weight_decay"], row["epochs"]) == (lr, warmup, decay, epochs), (
            batch
        )
        assert (row["horizon_epochs"] or row["epochs"]) == horizon, batch


def test_every_row_of_lars_says_where_it_is_from(frozen):
    rows = frozen("optim=lars").optim.rows
    assert all(isinstance(row, LarsRow) and row.source for row in rows)
    limits = [row.up_to for row in rows]
    assert limits[-1] is None and limits[:-1] == sorted(set(limits[:-1]))


@pytest.mark.parametrize(
    ("word", "knob", "value"),
    [
        ("optim.lr=0.5", "optim.lr", 0.5),
        ("optim.weight_decay=0", "optim.weight_decay", 0.0),
        ("optim.momentum=0.5", "optim.momentum", 0.5),
        ("epochs=12", "epochs", 12.0),
        ("schedule.warmup_epochs=1", "schedule.warmup_epochs", 1.0),
        ("schedule.power=1", "schedule.power", 1.0),
        ("schedule.end_lr=0", "schedule.end_lr", 0.0),
        ("schedule.horizon_epochs=50", "schedule.horizon_epochs", 50.0),
        ("schedule=cosine", "schedule.name", "cosine"),
    ],
)
def test_what_the_command_line_names_beats_lars(frozen, word, knob, value):
    mine = fingerprint.flat(frozen(word, "optim=lars"))
    lr, warmup, decay, epochs, _ = ROWS[256]
    row = {"optim.lr": lr, "optim.weight_decay": decay, "epochs": epochs, "schedule.warmup_epochs": warmup}
    assert {name: mine[name] for name in (*row, knob)} == {**row, knob: value}


def test_lars_with_the_cosine_keeps_lars_lr_and_warm_up(frozen):
    run = frozen("optim=lars", "schedule=cosine", "out=x")
    assert isinstance(run.schedule, Cosine)
    assert (run.optim.lr, run.schedule.warmup_epochs, run.epochs) == (2.5, 3, 38)
    assert frozen("schedule=cosine", "optim=lars", "out=x") == run


def test_a_batch_that_no_row_holds_is_refused_by_name(frozen):
    with pytest.raises(UserError, match=r"batch=257: no row of optim\.rows"):
        frozen(
            "optim=lars", "batch=257", "optim.rows=[{up_to: 256, lr: 1, warmup_epochs: 1, weight_decay: 0, epochs: 9}]"
        )


# -------------------------------------------------------------------------------------------------------- optim=sgd
@pytest.fixture
def lr_of(monkeypatch):
    """`lr_of(hosts=[...])`: SGD's rate for 4096 images on such a cluster, where no launcher has set anything."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "PMI_", "PRTE_", "HOROVOD_"))]:
        monkeypatch.delenv(name)

    def rate(**cluster):
        slots = [int(host.rpartition(":")[2]) for host in cluster.get("hosts", [])]
        node = OmegaConf.structured(Cluster("x", **{"ranks": sum(slots) or 1, **cluster}))
        return resolvers.linear_lr(0.128, 0.1, _root_=OmegaConf.create({"batch": 4096, "cluster": node}))

    return rate


@pytest.mark.parametrize("batch", [1, 64, 256, 2048, 8192])
def test_sgd_has_0_128_per_256_images_on_one_server(frozen, batch):
    assert frozen(f"batch={batch}").optim.lr == pytest.approx(0.128 * batch / 256, rel=1e-12)


def test_sgd_has_0_1_per_256_images_on_several_servers(lr_of):
    assert lr_of() == lr_of(hosts=["a:8"]) == pytest.approx(2.048)
    assert lr_of(hosts=["a:4", "b:4"]) == pytest.approx(1.6)
    assert resolvers.linear_lr(0.256, _root_=OmegaConf.create({"batch": 1024, "cluster": {}})) == pytest.approx(1.024)


ALLOCATION = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "32", "SLURM_NNODES": "4", "SLURM_TASKS_PER_NODE": "8(x4)"}


@pytest.mark.parametrize(
    ("environment", "ranks", "starter", "servers"),
    [
        (ALLOCATION, 32, None, 4),
        (ALLOCATION, 32, Starter.srun, 4),
        (ALLOCATION, 2, None, 2),  # srun uses no more nodes than it has tasks
        (ALLOCATION, 1, None, 1),  # in this process
        (ALLOCATION, 32, Starter.horovodrun, 1),  # without -H on this host
        (ALLOCATION, 9, Starter.mpirun, 2),  # fills one node after the other
        (ALLOCATION, 8, Starter.mpirun, 1),
        ({**ALLOCATION, "SLURM_NNODES": "1"}, 32, None, 1),
        ({}, 32, None, 1),
        ({"OMPI_COMM_WORLD_SIZE": "32", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, 32, None, 4),
        ({"PMI_SIZE": "32", "MPI_LOCALNRANKS": "32"}, 32, None, 1),
        ({"HOROVOD_SIZE": "8", "HOROVOD_LOCAL_SIZE": "4"}, 8, None, 2),
    ],
)
def test_servers_are_counted_however_the_ranks_are_started(lr_of, monkeypatch, environment, ranks, starter, servers):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert lr_of(ranks=ranks, starter=starter) == pytest.approx(2.048 if servers == 1 else 1.6)
    assert topology.host_count(Cluster("x", ranks=ranks, starter=starter)) == servers


def test_the_hosts_of_a_default_host_file_are_counted(lr_of, monkeypatch, tmp_path):
    (tmp_path / "hosts").write_text("# the operator's\nworker-0 slots=8\nworker-1 slots=8\nworker-2 slots=8\n")
    monkeypatch.setenv("OMPI_MCA_orte_default_hostfile", str(tmp_path / "hosts"))
    assert lr_of(ranks=16, starter=Starter.mpirun) == pytest.approx(1.6)
    assert topology.ranks_per_host(Cluster("x", ranks=16, starter=Starter.mpirun)) == 8


def test_a_run_under_slurm_keeps_its_rate_where_slurm_is_not(frozen, monkeypatch, tmp_path):
    """The line of issue 17; ranks, and a run that is resumed, read config.yaml."""
    for name, value in ALLOCATION.items():
        monkeypatch.setenv(name, value)
    run = frozen("cluster=slurm", "batch=8192")
    assert run.cluster.ranks == 32 and run.optim.lr == pytest.approx(3.2)
    rundir.save(run, tmp_path)
    for name in ALLOCATION:
        monkeypatch.delenv(name)
    assert rundir.load(tmp_path).optim.lr == run.optim.lr


@pytest.mark.parametrize(
    ("environment", "tasks"),
    [({}, 1), ({"SLURM_NTASKS": "5"}, 5), ({"SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NUM_NODES": "4"}, 32)],
)
def test_cluster_slurm_has_a_rank_for_each_task(frozen, monkeypatch, environment, tasks):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert frozen("cluster=slurm", f"batch={tasks}").cluster.ranks == tasks


def test_the_lr_follows_the_batch_of_a_recipe_too(recipe):
    assert recipe("# @package _global_\nbatch: 512\n").optim.lr == pytest.approx(0.256)
    assert recipe("# @package _global_\nbatch: 512\n", "batch=1024").optim.lr == pytest.approx(0.512)
