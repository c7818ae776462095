"""Starting ranks: commands and environments to the letter, and everything that is refused before TensorFlow is imported."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from resnet import UserError
from resnet.config.cluster import Cluster, Device
from resnet.launch import launchers

PYTHON = sys.executable
OUT = Path("/runs/x y")
RANK = [PYTHON, "-m", "resnet.rank", "/runs/x y", "--rank"]
TINY = ("model=tiny", "track=off", "eval=false", "steps=2")


pytestmark = pytest.mark.usefixtures("bare")


@pytest.fixture
def program(tmp_path):
    """`program("ssh", "exit 1")`: a program of that name on PATH."""

    def make(name, script):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    return make


# ------------------------------------------------------------------------------------------------------------ commands
HOROVODRUN = [PYTHON, "-m", "resnet.launch.horovodrun", "--gloo"]


def test_two_ranks_of_this_machine(run_of, monkeypatch):
    assert launchers.command(run_of("cluster=cpu2", *TINY), OUT) == RANK
    named = run_of("cluster=cpu2", "cluster.starter=horovodrun", *TINY)
    words = ["-np", "2", "--gloo-timeout-seconds", "120", "--start-timeout", "120", "--disable-cache"]
    assert launchers.command(named, OUT) == [*HOROVODRUN, *words, *RANK]
    monkeypatch.setenv("HOROVOD_GLOO_IFACE", "eth7")
    assert launchers.command(named, OUT) == [*HOROVODRUN, *words, "--network-interfaces", "eth7", *RANK]


def test_ranks_on_named_hosts(run_of):
    run = run_of("cluster.ranks=4", "cluster.hosts=[a:3,b:1]", "cluster.start_s=7.5", "batch=32", *TINY)
    assert launchers.command(run, OUT) == [
        *(*HOROVODRUN, "-np", "4", "-H", "a:3,b:1"),
        *("--gloo-timeout-seconds", "8", "--start-timeout", "8", "--disable-cache", *RANK),
    ]


def test_a_gaudi_server(run_of, monkeypatch):
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 96 if logical else 56)
    forwarded = "HOROVOD_FUSION_THRESHOLD PATH PYTHONPATH PYTHONSAFEPATH PYTHONUNBUFFERED"
    forwarded += " TF_ALLOW_CONTROL_EDGES_IN_HABANA_OPS TF_DISABLE_MKL TF_RECIPE_CACHE_PATH"
    assert launchers.command(run_of("cluster=hls1", *TINY), OUT) == [
        *("/opt/mpirun", "--allow-run-as-root", "-np", "8", "--bind-to", "core", "--map-by", "socket:PE=7"),
        *("--merge-stderr-to-stdout", *(word for name in forwarded.split() for word in ("-x", name)), *RANK),
    ]


def test_gaudi_servers(run_of, monkeypatch):
    monkeypatch.setenv("HCCL_SOCKET_IFNAME", "eth0")
    monkeypatch.setenv("GC_KERNEL_PATH", "/usr/lib/habanalabs/libtpc_kernels.so")
    words = launchers.command(run_of("cluster=hls1x4", *TINY), OUT)
    assert words[:4] == ["/opt/mpirun", "--allow-run-as-root", "-np", "32"]
    assert words[4:8] == ["--bind-to", "none", "--map-by", "slot"]  # this machine is none of them
    assert words[words.index("-H") + 1] == "hls-1:8,hls-2:8,hls-3:8,hls-4:8"
    assert all(words[words.index(name) - 1] == "-x" for name in ("HCCL_SOCKET_IFNAME", "GC_KERNEL_PATH"))


def test_the_share_of_cores_is_that_of_the_fullest_host(run_of, monkeypatch):
    monkeypatch.setattr(launchers, "is_local", lambda host: host == "b")
    run = run_of("cluster.ranks=3", "cluster.hosts=[a:2,b:1]", "cluster.starter=mpirun", "batch=33", *TINY)
    assert "socket:PE=2" in launchers.command(run, OUT)
    run = run_of("cluster.ranks=8", "cluster.hosts=[a:4,b:4]", "cluster.starter=mpirun", *TINY)
    assert "socket:PE=1" in launchers.command(run, OUT)
    run = run_of("cluster.ranks=16", "cluster.hosts=[a:8,b:8]", "cluster.starter=mpirun", *TINY)
    assert launchers.command(run, OUT)[4:7] == ["--oversubscribe", "--bind-to", "none"]  # of four cores


def test_inside_a_slurm_allocation(run_of, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "8"}.items():
        monkeypatch.setenv(name, value)
    expected = ["--cpu-bind=cores", "--kill-on-bad-exit=1", "--export=ALL", *RANK]
    command = ["/opt/srun", "--ntasks=8", "--ntasks-per-node=4", *expected]
    assert launchers.command(run_of("cluster=slurm", *TINY), OUT) == command
    assert launchers.command(run_of("cluster=gpu8", *TINY), OUT) == command  # without being asked to
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    run = run_of("cluster=slurm", "cluster.ranks=7", "batch=35", *TINY)
    assert launchers.command(run, OUT) == ["/opt/srun", "--ntasks=7", "--cpus-per-task=6", *expected]
    named = run_of("cluster.ranks=2", "cluster.hosts=[a:2]", *TINY)
    assert launchers.command(named, OUT)[:4] == HOROVODRUN


def test_one_rank_is_started_as_it_is(run_of, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert launchers.command(run_of("cluster.max_restarts=1", *TINY), OUT) == RANK
    words = launchers.command(run_of("cluster.hosts=[a:1]", *TINY), OUT)
    assert words[:8] == [*HOROVODRUN, "-np", "1", "-H", "a:1"]


@pytest.mark.parametrize(
    ("words", "needed"),
    [("", False), ("cluster=cpu2", True), ("cluster.max_restarts=1", True), ("cluster.hosts=[a:1]", True)],
)
def test_one_rank_that_stays_dead_needs_no_process_of_its_own(run_of, words, needed):
    assert launchers.needed(run_of(*words.split(), *TINY).cluster) is needed


# --------------------------------------------------------------------------------------------------------- environments
def test_the_environment_of_a_cpu(run_of, monkeypatch):
    root = str(Path(launchers.__file__).parents[2])
    always = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": root}
    assert launchers.environment(run_of("cluster=local", *TINY)) == always
    gloo = {"HOROVOD_CYCLE_TIME": "5", "HOROVOD_FUSION_THRESHOLD": "16777216"}
    assert launchers.environment(run_of("cluster=cpu2", *TINY)) == {**always, **gloo}
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert launchers.environment(run_of("cluster=cpu2", *TINY))["PYTHONPATH"] == f"{root}:/mine"
    monkeypatch.setattr(launchers, "ROOT", Path("/usr/lib/python3/site-packages"))
    assert launchers.environment(run_of("cluster=cpu2", *TINY))["PYTHONPATH"] == "/mine"


def test_the_environment_of_a_gaudi_and_what_the_user_set_wins(run_of, monkeypatch):
    monkeypatch.setenv("TF_RECIPE_CACHE_PATH", "/disk")
    monkeypatch.setenv("HOROVOD_FUSION_THRESHOLD", "1024")
    expected = {
        "TF_RECIPE_CACHE_PATH": "/disk",
        "TF_ALLOW_CONTROL_EDGES_IN_HABANA_OPS": "1",
        "TF_DISABLE_MKL": "1",
        "HOROVOD_FUSION_THRESHOLD": "1024",
    }
    assert launchers.device_environment(run_of("cluster=hls1", *TINY)) == expected
    resnext = run_of("cluster=hls1", *TINY, "model=resnext50")
    assert launchers.device_environment(resnext) == {**expected, "TF_ENABLE_DYNAMIC_SHAPES": "false"}
    monkeypatch.delenv("TF_RECIPE_CACHE_PATH")
    assert launchers.device_environment(resnext)["TF_RECIPE_CACHE_PATH"].startswith("/tmp/resnet-recipes-")


def test_what_ranks_elsewhere_need_is_forwarded(run_of, monkeypatch):
    for name in ("MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "LS_COLORS"):
        monkeypatch.setenv(name, "secret")
    names = launchers.forwarded(run_of("cluster=cpu2", "cluster.starter=mpirun", *TINY))
    assert names == [
        *("AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "HOROVOD_CYCLE_TIME", "HOROVOD_FUSION_THRESHOLD"),
        "MLFLOW_TRACKING_TOKEN",
        *("PATH", "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED"),
    ]


def test_what_is_shown_can_be_pasted_and_tells_no_secret(run_of, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    monkeypatch.setattr(launchers.sys, "executable", "/usr/bin/echo")
    text = launchers.dry_run_text(run_of("cluster=cpu2", *TINY), OUT)
    assert "secret" not in text and "# forwarded as they are: MLFLOW_TRACKING_TOKEN PATH" in text
    assert "# resnet.train itself starts 2 rank(s)" in text and "# and HOROVOD_RANK, " in text
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "-m resnet.rank /runs/x y --rank\n"


@pytest.mark.parametrize(
    "cluster", ["hls1x4", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cpu2", "gpu8", "hls1", "slurm"))]
)
def test_a_dry_run_shows_the_command_for_machines_that_do_not_exist(cluster, tmp_path):
    environment = {**os.environ, "SLURM_NTASKS": "16"} | ({"SLURM_JOB_ID": "1"} if cluster == "slurm" else {})
    words = f"cluster={cluster} cluster.dry_run=true data=imagenet data.dir=none out=x".split()
    done = subprocess.run(
        [PYTHON, "-X", "importtime", "-m", "resnet.train", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "tensorflow" not in done.stderr
    assert done.stdout.endswith(f"{shlex.quote(PYTHON)} -m resnet.rank {tmp_path}/x --rank\n")
    assert not (tmp_path / "x").exists()


def test_a_dry_run_of_a_sweep_shows_every_job_and_leaves_nothing(tmp_path):
    words = ["-m", "cluster=cpu2", "model=tiny", "optim.lr=0.01,0.02", "cluster.dry_run=true", "out=x"]
    done = subprocess.run([PYTHON, "-m", "resnet.train", *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [f"resnet.rank {tmp_path}/x/{job} --rank\n" in done.stdout for job in (0, 1)] == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


# --------------------------------------------------------------------------------------------------------------- checks
def refused(run):
    with pytest.raises(UserError) as told:
        (launchers.refuse_if_nested(run.cluster), launchers.check(run))
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE=8: mpirun has started this"),
        ("HOROVOD_SIZE", "HOROVOD_SIZE=8: horovodrun has started this"),
        ("PMI_SIZE", "PMI_SIZE=8: mpirun has started this"),
    ],
)
@pytest.mark.parametrize("cluster", ["local", "cpu2"])
def test_inside_a_launcher(run_of, monkeypatch, name, told, cluster):
    monkeypatch.setenv(name, "1")
    launchers.refuse_if_nested(run_of(f"cluster={cluster}", *TINY).cluster)
    monkeypatch.setenv(name, "8")
    said = refused(run_of(f"cluster={cluster}", *TINY))
    assert said.startswith(told) and "cluster=cpu2, gpu8, hls1" in said and "cluster.ranks=8" in said


def test_a_batch_script_is_not_inside_a_step_but_a_task_is(run_of, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}.items():
        monkeypatch.setenv(name, value)
    run = run_of("cluster=slurm", *TINY)
    launchers.refuse_if_nested(run.cluster)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # an interactive shell of salloc
    launchers.refuse_if_nested(run.cluster)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert refused(run).startswith("SLURM_STEP_NUM_TASKS=4: srun has started this")


def test_srun_outside_an_allocation(run_of):
    said = refused(run_of("cluster=slurm", *TINY))
    assert said.startswith("cluster.starter=srun: not inside a Slurm allocation") and "sbatch" in said


def test_srun_and_hosts(run_of, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run = run_of("cluster.ranks=2", "cluster.hosts=[a:2]", "cluster.starter=srun", *TINY)
    assert refused(run).startswith("cluster.hosts=['a:2']: with cluster.starter=srun Slurm chooses the hosts")


@pytest.mark.parametrize("name", ["mpirun", "srun"])
def test_a_starter_that_is_not_there(run_of, monkeypatch, name):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(launchers, "which", lambda _name: None)
    said = refused(run_of("cluster=cpu2", f"cluster.starter={name}", *TINY))
    assert said.startswith(f"cluster.starter={name}: not found beside {PYTHON}, nor on PATH; install")


@pytest.mark.parametrize(
    ("parts", "by", "told"),
    [
        (None, "null", "cluster.ranks=2: Horovod is not installed"),
        ({"mpi"}, "null", "cluster.ranks=2: Horovod was compiled without Gloo; use cluster.starter=mpirun"),
        ({"mpi"}, "horovodrun", "Horovod was compiled without Gloo; use cluster.starter=mpirun"),
        ({"gloo"}, "mpirun", "Horovod was compiled without MPI; use cluster.starter=horovodrun"),
    ],
)
def test_horovod_without_what_the_starter_needs(run_of, monkeypatch, parts, by, told):
    monkeypatch.setattr(launchers, "horovod_features", lambda: parts)
    assert told in refused(run_of("cluster=cpu2", f"cluster.starter={by}", *TINY))


def test_what_horovod_was_compiled_with_is_read_without_importing_it(tmp_path, monkeypatch):
    assert "gloo" in launchers.horovod_features()  # setup.sh compiled it
    assert "horovod.tensorflow" not in sys.modules
    (tmp_path / "horovod" / "tensorflow").mkdir(parents=True)
    (tmp_path / "horovod" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "horovod", raising=False)
    assert launchers.horovod_features() is None
    library = tmp_path / "horovod" / "tensorflow" / "mpi_lib.cpython-310-x86_64-linux-gnu.so"
    library.write_bytes(b"\0MPI_Init_thread\0")
    assert launchers.horovod_features() == {"mpi"}


# ---------------------------------------------------------------------------------------------------------------- hosts
def on_hosts(run_of, *words):
    return run_of("cluster.ranks=3", "cluster.hosts=[localhost:1,b:1,c:1]", "batch=33", *words, *TINY)


def test_hosts_that_answer(run_of, program, tmp_path):
    program("ssh", f'echo "$@" >>{tmp_path}/calls; shift 6; exec sh -c "$*"')
    launchers.check(on_hosts(run_of))
    options = "-o BatchMode=yes -o ConnectTimeout=120"
    calls = sorted((tmp_path / "calls").read_text().splitlines())
    assert calls == [f"{options} -- {host} test -x {shlex.quote(PYTHON)}" for host in "bc"]  # not on this machine


def test_hosts_that_cannot_be_reached_are_all_named_with_what_ssh_says(run_of, program):
    program("ssh", 'echo hello >&2; echo "ssh: Could not resolve hostname $6: Name or service not known" >&2; exit 255')
    said = refused(on_hosts(run_of))
    assert said == (
        "cluster.hosts=['localhost:1', 'b:1', 'c:1']: "
        "b cannot be reached (ssh: Could not resolve hostname b: Name or service not known): `ssh b true` must work "
        "without a question; c cannot be reached (ssh: Could not resolve hostname c: Name or service not known): `ssh c true` "
        "must work without a question; or name other hosts"
    )


def test_hosts_that_never_answer_cost_start_s_together(run_of, program, tmp_path):
    both = "kill -0 $(<b) && kill -0 $(<c)"  # as long as one waits for the other, both of them run
    program(
        "ssh", f"cd '{tmp_path}'; echo $$ >$6; until {both}; do sleep 0.02; done 2>/dev/null; touch both; exec sleep 60"
    )
    began = time.monotonic()
    said = refused(on_hosts(run_of, "cluster.start_s=2"))
    assert 2 <= time.monotonic() - began < 30 and (tmp_path / "both").exists()
    assert "b does not answer within cluster.start_s=2; c does not answer" in said


def test_a_host_without_this_python(run_of, program):
    program("ssh", "exit 1")
    assert f"b has no {PYTHON}: every host needs this environment" in refused(on_hosts(run_of))


def test_a_host_is_reached_by_the_name_that_it_was_given():
    cluster = Cluster("x", ranks=4, hosts=["a-0.job.ns.svc:1", "10.0.0.1:1", "10.0.0.2:1", "b:1"])
    names = {name: launchers.reachable(name, cluster) for name in ("a-0", "a", "10.0.0.2", "b", "c")}
    assert names == {"a-0": "a-0.job.ns.svc", "a": "a", "10.0.0.2": "10.0.0.2", "b": "b", "c": "c"}


def test_no_ssh_at_all(run_of, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "ssh is not installed here" in refused(on_hosts(run_of))


def test_ssh_takes_the_options_that_mpirun_was_given_for_it(monkeypatch):
    monkeypatch.setenv("OMPI_MCA_plm_rsh_args", "-p 3022")
    cluster = Cluster("x", device=Device.hpu, ranks=2, hosts=["a:1", "b:1"])
    assert launchers.ssh("b", ["echo", "a b"], cluster, 0.5) == (
        ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=1", "-p", "3022", "--", "b", "echo 'a b'"]
    )
    gloo = Cluster("x", ranks=2, hosts=["a:1", "b:1"])
    assert "-p" not in launchers.ssh("b", ["true"], gloo, 0.5)


def test_an_interface_that_is_not_there_is_refused(run_of, monkeypatch):
    monkeypatch.setenv("HOROVOD_GLOO_IFACE", "eth77")
    there = ", ".join(psutil.net_if_addrs())
    expected = f"HOROVOD_GLOO_IFACE=eth77: no interface of this host with an IPv4 address; there are: {there}"
    assert refused(run_of("cluster=cpu2", *TINY)) == expected
