"""How ranks are started: the command, the environment, and what can be refused before TensorFlow is imported.

horovodrun and mpirun reach other hosts by ssh, srun through Slurm. Under srun a Horovod with Gloo finds its ranks at a
rendezvous server, which the process that called srun keeps (`Rendezvous`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import mmap
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from resnet import UserError
from resnet.config.cluster import Cluster, Device, Starter
from resnet.config.run import Run
from resnet.distributed import gaudi

PROGRAM = ("-m", "resnet.rank")  # what a rank's Python runs; then come the run's folder and --rank
ROOT = Path(__file__).resolve().parents[1]

# Variables that ranks on other hosts need too, by their beginnings; mpirun forwards none by itself, Slurm and horovodrun all.
FORWARDED = (
    *("MLFLOW_", "AWS_", "GOOGLE_", "TF_", "HOROVOD_", "NCCL_", "HCCL_", "HABANA_", "HLS_", "OMP_", "KMP_", "XDG_"),
    *("GC_KERNEL_PATH", "FI_", "RDMAV_", "OPAL_PREFIX"),  # Habana's images set these
    *("PYTHON", "PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "http_proxy", "https_proxy", "no_proxy"),
)
SSH_WORDS = "OMPI_MCA_plm_rsh_args"  # where Open MPI is given ssh's options, such as -p 3022
INSIDE = {"OMPI_COMM_WORLD_SIZE": "mpirun", "HOROVOD_SIZE": "horovodrun", "PMI_SIZE": "mpirun"}
# Found in Horovod's extension only if it was compiled with that; asking the extension itself takes seconds of importing.
MARKS = {"gloo": b"HOROVOD_GLOO_RENDEZVOUS_ADDR", "mpi": b"MPI_Init_thread"}


# ------------------------------------------------------------------------------------------------------------- what starts
def needed(cluster: Cluster) -> bool:
    """Whether the run is trained by processes that this one starts and watches, rather than by this one."""
    return cluster.ranks > 1 or bool(cluster.hosts) or cluster.max_restarts > 0


def launcher_for(cluster: Cluster) -> Starter | None:
    """The program that starts the ranks; None for one rank on this host, which needs none."""
    if cluster.ranks == 1 and not cluster.hosts:
        return None
    if cluster.starter is None and "SLURM_JOB_ID" in os.environ and not cluster.hosts:
        return Starter.srun
    return cluster.starter or (Starter.mpirun if cluster.device is Device.hpu else Starter.horovodrun)


def hosts(cluster: Cluster) -> dict[str, int]:
    """Ranks on each host that cluster.hosts names."""
    return {name: int(ranks) for name, _, ranks in (host.rpartition(":") for host in cluster.hosts)}


def reachable(host: str, cluster: Cluster) -> str:
    """The name that cluster.hosts has for a host that calls itself `host`: a pod knows only the first part of its own."""
    named = hosts(cluster)
    return host if host in named else next((name for name in named if name.partition(".")[0] == host), host)


@functools.cache
def local(host: str) -> bool:
    """Whether `host` is this machine; a name that nobody knows may still be one of ssh's."""
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    with contextlib.suppress(OSError):
        return host in ("localhost", socket.gethostname()) or socket.gethostbyname(host) in own
    return False


def which(name: str) -> str | None:
    """A program beside the interpreter, else on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def command(run: Run, out: Path) -> list[str]:
    """What starts all ranks of the run in `out`."""
    cluster = run.cluster
    program = [sys.executable, *PROGRAM, str(out), "--rank"]
    starter = launcher_for(cluster)
    match starter:
        case None:
            return program
        case Starter.horovodrun:
            seconds = str(math.ceil(cluster.start_s))
            words = ["--gloo", "-np", str(cluster.ranks), *(["-H", ",".join(cluster.hosts)] if cluster.hosts else [])]
            words += ["--gloo-timeout-seconds", seconds, "--start-timeout", seconds, "--disable-cache"]
        case Starter.mpirun:
            words = ["--allow-run-as-root", "-np", str(cluster.ranks), *binding(cluster), "--merge-stderr-to-stdout"]
            words += ["-H", ",".join(cluster.hosts)] if cluster.hosts else []
            words += [word for name in forwarded(run) for word in ("-x", name)]
        case Starter.srun:
            nodes, cores = int(os.environ.get("SLURM_JOB_NUM_NODES", "1")), os.environ.get("SLURM_CPUS_PER_TASK")
            even = cluster.ranks % nodes == 0
            words = [f"--ntasks={cluster.ranks}", *([f"--ntasks-per-node={cluster.ranks // nodes}"] if even else [])]
            words += [f"--cpus-per-task={cores}"] if cores else []  # since Slurm 22.05 not taken from the allocation
            words += ["--cpu-bind=cores", "--kill-on-bad-exit=1", "--export=ALL"]
    return [which(starter.value) or starter.value, *words, *program]


def binding(cluster: Cluster) -> list[str]:
    """mpirun's options that share the cores of a host out over its ranks; all hosts are taken to be like this one, if named."""
    if cluster.hosts and not any(map(local, hosts(cluster))):
        return ["--bind-to", "none", "--map-by", "slot"]
    ranks = max(hosts(cluster).values(), default=cluster.ranks)
    share = (psutil.cpu_count(logical=False) or 1) // ranks
    if share == 0:
        return ["--oversubscribe", "--bind-to", "none"]
    return ["--bind-to", "core", "--map-by", f"socket:PE={share}"]


# --------------------------------------------------------------------------------------------------------- the environment
def device_environment(run: Run) -> dict[str, str]:
    """What the device needs before TensorFlow is imported; what the user has set wins."""
    # Of two ranks on a core each, ResNet-50 made 8 % more images/s with these than with Horovod's own 1 ms and 128 MB.
    gloo = {"HOROVOD_CYCLE_TIME": "5", "HOROVOD_FUSION_THRESHOLD": "16777216"} if run.cluster.ranks > 1 else {}
    wanted = {Device.cpu: gloo, Device.gpu: {}, Device.hpu: gaudi.environment(run)}[run.cluster.device]
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def environment(run: Run) -> dict[str, str]:
    """What ranks have in their environment beside what is in this process's."""
    installed = ROOT.name in ("site-packages", "dist-packages")
    paths = [*([] if installed else [str(ROOT)]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONUNBUFFERED": "1",
        **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {}),
        **device_environment(run),
    }


def forwarded(run: Run) -> list[str]:
    """Names of the variables that every rank must have, wherever it runs."""
    return sorted({*environment(run), *(name for name in os.environ if name.startswith(FORWARDED))})


def dry_run_text(run: Run, out: Path) -> str:
    """The command and its environment, as a shell takes them. Values that this shell has already may be secret: names only."""
    words = command(run, out)
    values = [f"{name}={shlex.quote(value)}" for name, value in environment(run).items()]
    names = [name for name in forwarded(run) if name not in environment(run)]
    served = launcher_for(run.cluster) is Starter.srun and "gloo" in (horovod_features() or {})
    notes = [
        f"# {launcher_for(run.cluster).value if launcher_for(run.cluster) else 'one process'} starts {run.cluster.ranks} rank(s), "  # type: ignore[union-attr]
        f"which read {out}/config.yaml: a start without cluster.dry_run writes it",
        *([f"# forwarded as they are: {' '.join(names)}"] if names else []),
        *(["# and HOROVOD_GLOO_RENDEZVOUS_ADDR and _PORT, of a server that a real start keeps"] if served else []),
    ]
    return "\n".join([*notes, "env " + " \\\n  ".join([*values, shlex.join(words)])])


# ------------------------------------------------------------------------------------------------------------------ checks
def check(run: Run) -> None:
    """Raise UserError for what keeps the ranks from being started."""
    cluster, starter = run.cluster, launcher_for(run.cluster)
    here = sum(ranks for host, ranks in hosts(cluster).items() if local(host)) if cluster.hosts else cluster.ranks
    if cluster.device is Device.hpu and here and starter is not Starter.srun:
        gaudi.check(cluster, run.dtype, here)
    if starter is None:
        return
    named = f"cluster.starter={starter.value}"
    if starter is Starter.srun and cluster.hosts:
        raise UserError(
            f"cluster.hosts={cluster.hosts}: with {named} Slurm chooses the hosts; leave one of the two out"
        )
    if which(starter.value) is None:
        ways = {
            Starter.horovodrun: "install Horovod (bash launch/setup.sh test), or use cluster=local",
            Starter.mpirun: "install Open MPI (apt-get install openmpi-bin), or use cluster.starter=horovodrun",
            Starter.srun: "install Slurm's client, or use cluster.starter=horovodrun",
        }
        raise UserError(f"{named}: not found beside {sys.executable}, nor on PATH; {ways[starter]}")
    parts = horovod_features()
    if parts is None:
        raise UserError(
            f"cluster.ranks={cluster.ranks}: Horovod is not installed for TensorFlow in {sys.prefix}; "
            "bash launch/setup.sh test compiles it, cluster=local does without"
        )
    if starter is Starter.horovodrun and "gloo" not in parts:
        raise UserError(
            f"{named}: Horovod was compiled without Gloo; use cluster.starter=mpirun, or compile it with HOROVOD_WITH_GLOO=1"
        )
    if starter is Starter.mpirun and "mpi" not in parts:
        raise UserError(
            f"{named}: Horovod was compiled without MPI; use cluster.starter=horovodrun, or compile it with HOROVOD_WITH_MPI=1"
        )
    check_hosts(cluster)


def refuse_if_nested(cluster: Cluster) -> None:
    """Raise UserError if something has started this process many times over, or srun cannot be used."""
    size = {name: int(os.environ[name]) for name in INSIDE if os.environ.get(name, "").isdigit()}
    told = next(((INSIDE[name], name, ranks) for name, ranks in size.items() if ranks > 1), None)
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if told is None and os.environ.get("SLURM_STEP_ID", "").isdigit() and tasks.isdigit() and int(tasks) > 1:
        told = ("srun", "SLURM_STEP_NUM_TASKS", int(tasks))
    if told:
        raise UserError(
            f"{told[1]}={told[2]}: {told[0]} has started this, and a run starts its ranks by itself; call it once, without "
            f"{told[0]}, with cluster=cpu2, gpu8, hls1, hls1x4, slurm or cluster.ranks={told[2]}"
        )
    if cluster.starter is Starter.srun and "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            "cluster.starter=srun: not inside a Slurm allocation; call it in one (sbatch, salloc), or use "
            "cluster.starter=horovodrun"
        )


def horovod_features() -> set[str] | None:
    """What Horovod was compiled with, of gloo and mpi; None where it is not there for TensorFlow."""
    spec = importlib.util.find_spec("horovod")
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    extension = next((file for folder in folders for file in (folder / "tensorflow").glob("mpi_lib*.so")), None)
    if extension is None:
        return None
    with extension.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return {name for name, mark in MARKS.items() if content.find(mark) >= 0}


def ssh(host: str, words: list[str], cluster: Cluster, timeout_s: float) -> list[str]:
    """The command that runs `words` on another host, with the options that mpirun was given for it."""
    extra = os.environ.get(SSH_WORDS, "") if launcher_for(cluster) is Starter.mpirun else ""
    limits = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, math.ceil(timeout_s))}"]
    return ["ssh", *limits, *shlex.split(extra), host, shlex.join(words)]


def check_hosts(cluster: Cluster) -> None:
    """Raise UserError unless every host answers within cluster.start_s, all at once, and has this Python."""
    others = [host for host in hosts(cluster) if not local(host)]
    if others and shutil.which("ssh") is None:
        raise UserError(f"cluster.hosts={cluster.hosts}: ssh is not installed here; apt-get install openssh-client")
    deadline = time.monotonic() + cluster.start_s
    calls = {
        host: subprocess.Popen(
            ssh(host, ["test", "-x", sys.executable], cluster, cluster.start_s),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in others
    }
    trouble = []
    for host, call in calls.items():
        try:
            _, said = call.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            call.kill()
            call.communicate()
            trouble.append(f"{host} does not answer within cluster.start_s={cluster.start_s:g}")
            continue
        if call.returncode == 255:  # ssh's own
            last = (said.strip().splitlines() or ["ssh says nothing"])[-1]
            trouble.append(f"{host} cannot be reached ({last}): `ssh {host} true` must work without a question")
        elif call.returncode:
            trouble.append(f"{host} has no {sys.executable}: every host needs this environment at the same place")
    if trouble:
        raise UserError(f"cluster.hosts={cluster.hosts}: {'; '.join(trouble)}; or name other hosts")


# --------------------------------------------------------------------------------------------------------- srun with Gloo
class Rendezvous:
    """Context: where the ranks of one start find each other under srun; nothing if Horovod has MPI alone (Gaudi's has).

    With MPI srun must speak the PMI that Open MPI was built for (SLURM_MPI_TYPE=pmix), and many a Slurm does not.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.wanted = launcher_for(cluster) is Starter.srun and "gloo" in (horovod_features() or {})
        self.seconds = math.ceil(cluster.start_s)
        self.server: Any = None

    def __enter__(self) -> dict[str, str]:
        """What goes into the environment of srun."""
        if not self.wanted:
            return {}
        from horovod.runner.http.http_server import RendezvousServer

        self.server = RendezvousServer()
        port = self.server.start()
        self.server.init([])
        return {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": own_address(),
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(self.seconds),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }

    def __exit__(self, *_error: object) -> None:
        if self.server:
            self.server.stop()
            self.server._httpd.server_close()  # stop() leaves the port taken


def own_address() -> str:
    """The address of this host at which the other nodes of the Slurm allocation reach it."""
    if os.environ.get("SLURM_JOB_NUM_NODES", "1") == "1":
        return "127.0.0.1"
    words = ["scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        nodes = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout.split()
        for node in nodes:
            if not local(node):
                return address_towards(node)
    return socket.gethostbyname(socket.gethostname())


def address_towards(host: str) -> str:
    """This host's address on the network that leads to `host`. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def export_horovod_env() -> None:
    """In a rank that srun has started for Gloo: give Horovod the variables that horovodrun would have set."""
    given = os.environ
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in given or "HOROVOD_RANK" in given or "SLURM_PROCID" not in given:
        return
    counts = tasks_per_node(given.get("SLURM_STEP_TASKS_PER_NODE") or given["SLURM_TASKS_PER_NODE"])
    node, here = int(given["SLURM_NODEID"]), int(given["SLURM_LOCALID"])
    alike = [number for number, count in enumerate(counts) if count > here]  # nodes that have such a local rank
    address = address_towards(given["HOROVOD_GLOO_RENDEZVOUS_ADDR"])
    interfaces = {entry.address: name for name, entries in psutil.net_if_addrs().items() for entry in entries}
    given.update(
        HOROVOD_HOSTNAME=given.get("SLURMD_NODENAME") or socket.gethostname(),
        HOROVOD_RANK=given["SLURM_PROCID"],
        HOROVOD_SIZE=str(sum(counts)),
        HOROVOD_LOCAL_RANK=str(here),
        HOROVOD_LOCAL_SIZE=str(counts[node]),
        HOROVOD_CROSS_RANK=str(alike.index(node)),
        HOROVOD_CROSS_SIZE=str(len(alike)),
        HOROVOD_GLOO_IFACE=interfaces.get(address, ""),
    )


def tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in parts for _ in range(int(times or 1))]
