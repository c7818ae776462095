"""How ranks are started: the command line, the environment, and what can be refused before TensorFlow is imported.

horovodrun and mpirun reach other hosts by ssh, srun through Slurm.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import mmap
import os
import shlex
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from resnet import UserError, files, uris
from resnet.config.cluster import Cluster, Device, Starter
from resnet.config.run import Run
from resnet.config.topology import allocated_nodes, hosts, in_allocation, launcher_for, ranks_per_host, started_by
from resnet.distributed import gaudi

# Runs a module where Python 3.10 does not know PYTHONSAFEPATH: the working folder, which a sweep's file may name, is no place
# of packages.
SAFE_PATH = "import runpy, sys; sys.path[:] = filter(None, sys.path); runpy.run_module({!r}, run_name='__main__')"


def module(name: str) -> tuple[str, str]:
    """Python's words that run a module."""
    return ("-m", name) if sys.version_info >= (3, 11) else ("-c", SAFE_PATH.format(name))


PROGRAM = module("resnet.rank")  # a rank's; then come the run's folder and --rank
ROOT = files.HERE.parent

# Variables that ranks on other hosts need too, by their beginnings; mpirun forwards none by itself, Slurm and horovodrun all.
FORWARDED = (
    *("MLFLOW_", "AWS_", "GOOGLE_", "TF_", "HOROVOD_", "NCCL_", "HCCL_", "HABANA_", "HLS_", "OMP_", "KMP_", "XDG_"),
    *(uris.STORE, "GC_KERNEL_PATH", "FI_", "RDMAV_", "OPAL_PREFIX"),  # Habana's images set these
    *("PYTHON", "PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "http_proxy", "https_proxy", "no_proxy"),
)
INTERFACE = "HOROVOD_GLOO_IFACE"  # by which the user names the network interface of ranks
SSH_WORDS = "OMPI_MCA_plm_rsh_args"  # where Open MPI is given ssh's options, such as -p 3022
INSTALL = {
    Starter.mpirun: "install Open MPI (apt-get install openmpi-bin), or use cluster.starter=horovodrun",
    Starter.srun: "install Slurm's client, or use cluster.starter=horovodrun",
}
# In Horovod's extension only if it was compiled with that feature; importing the extension takes seconds.
MARKS = {"gloo": b"HOROVOD_GLOO_RENDEZVOUS_ADDR", "mpi": b"MPI_Init_thread"}


def needed(cluster: Cluster) -> bool:
    """Whether the run is trained by child processes rather than by this one."""
    return cluster.ranks > 1 or bool(cluster.hosts) or cluster.max_restarts > 0


def reachable(host: str, cluster: Cluster) -> str:
    """The name in cluster.hosts of a host that calls itself `host`: a pod knows only the first part of its own name."""
    names = hosts(cluster)
    return host if host in names else next((name for name in names if name.partition(".")[0] == host), host)


@functools.cache
def is_local(host: str) -> bool:
    """Whether `host` is this machine. A name that cannot be resolved may still be one of ssh's."""
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    with contextlib.suppress(OSError):
        return host in ("localhost", socket.gethostname()) or socket.gethostbyname(host) in own
    return False


def which(name: str) -> str | None:
    """A program beside the interpreter, else on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def command(run: Run, out: Path) -> list[str]:
    """The command line that starts all ranks of the run in `out`, or each of them if there is no launcher."""
    cluster, launcher = run.cluster, launcher_for(run.cluster)
    program = [sys.executable, *PROGRAM, str(out), "--rank"]
    named = ["-H", ",".join(cluster.hosts)] if cluster.hosts else []
    match launcher:
        case None:
            return program
        case Starter.horovodrun:
            seconds = str(math.ceil(cluster.start_s))
            interface = os.environ.get(INTERFACE)
            words = ["--gloo", "-np", str(cluster.ranks), *named]
            words += ["--gloo-timeout-seconds", seconds, "--start-timeout", seconds, "--disable-cache"]
            words += ["--network-interfaces", interface] if interface else []
            return [sys.executable, *module("resnet.launch.horovodrun"), *words, *program]
        case Starter.mpirun:
            words = ["--allow-run-as-root", "-np", str(cluster.ranks), *binding(cluster), "--merge-stderr-to-stdout"]
            words += [*named, *(word for name in forwarded(run) for word in ("-x", name))]
        case Starter.srun:
            nodes, cores = allocated_nodes(), os.environ.get("SLURM_CPUS_PER_TASK")
            even = cluster.ranks % nodes == 0
            words = [f"--ntasks={cluster.ranks}", *([f"--ntasks-per-node={cluster.ranks // nodes}"] if even else [])]
            words += [f"--cpus-per-task={cores}"] if cores else []  # since Slurm 22.05 not taken from the allocation
            words += ["--cpu-bind=cores", "--kill-on-bad-exit=1", "--export=ALL"]
    return [which(launcher.value) or launcher.value, *words, *program]


def binding(cluster: Cluster) -> list[str]:
    """mpirun's options that divide the cores of a host among its ranks; all hosts are assumed to be like this one, if named."""
    if cluster.hosts and not any(map(is_local, hosts(cluster))):
        return ["--bind-to", "none", "--map-by", "slot"]
    share = (psutil.cpu_count(logical=False) or 1) // ranks_per_host(cluster)
    if share == 0:
        return ["--oversubscribe", "--bind-to", "none"]
    return ["--bind-to", "core", "--map-by", f"socket:PE={share}"]


def device_environment(run: Run) -> dict[str, str]:
    """Variables that the device needs before TensorFlow is imported. Those that the user has set win."""
    # Of two ranks on a core each, ResNet-50 made 8 % more images/s with these than with Horovod's own 1 ms and 128 MB.
    gloo = {"HOROVOD_CYCLE_TIME": "5", "HOROVOD_FUSION_THRESHOLD": "16777216"} if run.cluster.ranks > 1 else {}
    values = {Device.cpu: gloo, Device.gpu: {}, Device.hpu: gaudi.environment(run)}[run.cluster.device]
    return {name: os.environ.get(name, value) for name, value in values.items()}


def python_environment() -> dict[str, str]:
    """The environment variables with which a child finds this package, and none in the working folder."""
    installed = ROOT.name in ("site-packages", "dist-packages")
    paths = os.pathsep.join(filter(None, ["" if installed else str(ROOT), os.environ.get("PYTHONPATH")]))
    return {"PYTHONSAFEPATH": "1", **({"PYTHONPATH": paths} if paths else {})}


def environment(run: Run) -> dict[str, str]:
    """The environment variables of ranks beside those of this process."""
    return {"PYTHONUNBUFFERED": "1", **python_environment(), **device_environment(run)}


def with_own(variables: dict[str, str], cluster: Cluster) -> dict[str, str]:
    """The environment of ranks with `variables`; horovodrun shows no secrets of rank 0, which alone tracks, on this host."""
    merged, first = {**os.environ, **variables}, next(iter(hosts(cluster)), "localhost")
    return uris.hide(merged) if launcher_for(cluster) is Starter.horovodrun and is_local(first) else merged


def forwarded(run: Run) -> list[str]:
    """Names of the environment variables that every rank needs, wherever it runs."""
    return sorted({*environment(run), *(name for name in os.environ if name.startswith(FORWARDED))})


def dry_run_text(run: Run, out: Path) -> str:
    """The command line and its environment, for a shell. Values that are set here already may be secret: names only."""
    launcher, own = launcher_for(run.cluster), environment(run)
    starter, config = launcher.value if launcher else "resnet.train itself", f"{out}/config.yaml"
    lines = [
        f"# {starter} starts {run.cluster.ranks} rank(s), which read {config}: a start without cluster.dry_run writes it"
    ]
    if names := [name for name in forwarded(run) if name not in own]:
        lines.append(f"# forwarded as they are: {' '.join(names)}")
    if needs_rendezvous(run.cluster):
        lines.append("# and HOROVOD_GLOO_RENDEZVOUS_ADDR and _PORT, of a server that a real start runs")
    if launcher is None and run.cluster.ranks > 1:
        lines.append("# and HOROVOD_RANK, HOROVOD_SIZE and the like, by which each rank knows its number")
    values = [f"{name}={shlex.quote(value)}" for name, value in own.items()]
    return "\n".join([*lines, "env " + " \\\n  ".join([*values, shlex.join(command(run, out))])])


def check(run: Run) -> None:
    """Raise UserError for what keeps the ranks from being started."""
    cluster, launcher = run.cluster, launcher_for(run.cluster)
    named_here = sum(ranks for host, ranks in hosts(cluster).items() if is_local(host))
    here = named_here if cluster.hosts else ranks_per_host(cluster)
    if cluster.device is Device.hpu and here and launcher is not Starter.srun:
        gaudi.check(cluster, run.dtype, here)
    if launcher is None and cluster.ranks == 1:
        return
    named = f"cluster.starter={launcher.value}" if launcher else f"cluster.ranks={cluster.ranks}"
    if launcher is Starter.srun and cluster.hosts:
        raise UserError(
            f"cluster.hosts={cluster.hosts}: with {named} Slurm chooses the hosts; leave one of the two out"
        )
    if launcher and launcher in INSTALL and which(launcher.value) is None:
        raise UserError(f"{named}: not found beside {sys.executable}, nor on PATH; {INSTALL[launcher]}")
    parts = horovod_features()
    if parts is None:
        raise UserError(
            f"cluster.ranks={cluster.ranks}: Horovod is not installed for TensorFlow in {sys.prefix}; "
            "bash launch/setup.sh test compiles it, cluster=local does without"
        )
    part, other = ("MPI", "horovodrun") if launcher is Starter.mpirun else ("Gloo", "mpirun")
    if launcher is not Starter.srun and part.lower() not in parts:
        way_out = f"use cluster.starter={other}, or compile it with HOROVOD_WITH_{part.upper()}=1"
        raise UserError(f"{named}: Horovod was compiled without {part}; {way_out}")
    if launcher is not Starter.mpirun:
        named_address()
    check_hosts(cluster)


def named_address() -> str | None:
    """The IPv4 address of the network interface that the user names, if any. Raises UserError if it has none."""
    if not (name := os.environ.get(INTERFACE)):
        return None
    every = psutil.net_if_addrs()
    if addresses := [entry.address for entry in every.get(name, []) if entry.family == socket.AF_INET]:
        return addresses[0]
    there = ", ".join(every)
    raise UserError(f"{INTERFACE}={name}: no interface of this host with an IPv4 address; there are: {there}")


def refuse_if_nested(cluster: Cluster) -> None:
    """Raise UserError if a launcher has started several processes like this one, or srun cannot be used."""
    if started := started_by():
        program, variable, ranks = started
        raise UserError(
            f"{variable}={ranks}: {program} has started this, and a run starts its ranks by itself; call it once, "
            f"without {program}, with cluster=cpu2, gpu8, hls1, hls1x4, slurm or cluster.ranks={ranks}"
        )
    if cluster.starter is Starter.srun and not in_allocation():
        raise UserError(
            "cluster.starter=srun: not inside a Slurm allocation; call it in one (sbatch, salloc), or use "
            "cluster.starter=horovodrun"
        )


def horovod_features() -> set[str] | None:
    """Which of gloo and mpi Horovod was compiled with; None if it is not installed for TensorFlow."""
    spec = importlib.util.find_spec("horovod")
    places = (spec and spec.submodule_search_locations) or []
    extension = next((file for place in places for file in Path(place).glob("tensorflow/mpi_lib*.so")), None)
    if extension is None:
        return None
    with extension.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return {name for name, mark in MARKS.items() if content.find(mark) >= 0}


def needs_rendezvous(cluster: Cluster) -> bool:
    """Whether the ranks find each other at a rendezvous server of ours (`rendezvous.serve`)."""
    launcher = launcher_for(cluster)
    return cluster.ranks > 1 if launcher is None else launcher is Starter.srun and "gloo" in (horovod_features() or {})


def ssh(host: str, words: list[str], cluster: Cluster, timeout_s: float) -> list[str]:
    """The command that runs `words` on another host, with the options that mpirun was given for it."""
    extra = os.environ.get(SSH_WORDS, "") if launcher_for(cluster) is Starter.mpirun else ""
    limits = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, math.ceil(timeout_s))}"]
    return ["ssh", *limits, *shlex.split(extra), "--", host, shlex.join(words)]


def check_hosts(cluster: Cluster) -> None:
    """Raise UserError unless every host answers within cluster.start_s, all at once, and has this Python."""
    others = [host for host in hosts(cluster) if not is_local(host)]
    if others and shutil.which("ssh") is None:
        raise UserError(f"cluster.hosts={cluster.hosts}: ssh is not installed here; apt-get install openssh-client")
    with ThreadPoolExecutor(max(1, len(others))) as pool:
        errors = list(filter(None, pool.map(lambda host: host_error(host, cluster), others)))
    if errors:
        raise UserError(f"cluster.hosts={cluster.hosts}: {'; '.join(errors)}; or name other hosts")


def host_error(host: str, cluster: Cluster) -> str | None:
    """What keeps ranks from being started on another host."""
    words = ssh(host, ["test", "-x", sys.executable], cluster, cluster.start_s)
    try:
        call = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=cluster.start_s)
    except subprocess.TimeoutExpired:
        return f"{host} does not answer within cluster.start_s={cluster.start_s:g}"
    if call.returncode == 255:  # ssh's own
        last = (call.stderr.strip().splitlines() or ["ssh says nothing"])[-1]
        return f"{host} cannot be reached ({last}): `ssh {host} true` must work without a question"
    if call.returncode:
        return f"{host} has no {sys.executable}: every host needs this environment at the same place"
    return None
