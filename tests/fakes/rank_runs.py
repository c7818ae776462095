"""Runs of several ranks for the tests of resnet.launch.

The ranks do as they are told instead of training (STUB), and a launcher does what mpirun and horovodrun do (STARTER).
"""

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path

import forked
import psutil

from resnet.config.cluster import Cluster
from resnet.launch import rank_status, rendezvous, supervisor

STUB = """
import json, os, signal, socket, sys, time
from pathlib import Path
from types import SimpleNamespace
import resnet.training
from resnet import UserError, cli, rank
from resnet.config import fingerprint, topology
from resnet.launch import rank_status
from resnet.rundir import result

class HorovodInternalError(RuntimeError):
    pass

def others_end(out):  # by their own word, or killed
    while True:
        time.sleep(0.05)
        for record in rank_status.read_all(out):
            if record.rank != topology.process_rank() and (not record.running or not Path(f"/proc/{record.pid}").exists()):
                return

def body(run, out, on_stall):
    number = topology.process_rank()
    deed, *words = json.loads(os.environ["DEED"])[number].split("|")
    def starts_of(other):
        file = out / f"starts-{other}"
        return int(file.read_text() or 0) if file.exists() else 0

    starts = starts_of(number) + 1
    (out / f"starts-{number}").write_text(str(starts))
    if deed.startswith("once "):
        deed = deed.removeprefix("once ") if starts == 1 else "done"
    print(f"this is rank {number}", flush=True)
    while any(starts_of(other) < starts for other in range(run.cluster.ranks)):
        time.sleep(0.02)  # until all are here
    match deed:
        case "raise":
            raise RuntimeError(f"boom in rank {number}")
        case "user":
            raise UserError("optim.lr=9: the loss is nan; lower it")
        case "peer":
            signal.signal(signal.SIGTERM, lambda *_: None)  # the launcher's, which a training does not die of either
            others_end(out)
            raise HorovodInternalError("Horovod has been shut down. This was caused by an exception on one of the ranks")
        case "kill":
            os.kill(os.getpid(), 9)
        case "late kill":
            while not result.read(out):
                time.sleep(0.02)
            os.kill(os.getpid(), 9)
        case "abort":
            os.abort()
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleep":
            time.sleep(600)
        case "stall":
            time.sleep(0.5)
            print("Current thread (most recent call first)", file=sys.stderr, flush=True)
            on_stall(f"rank {number}: no step finished for 5 s (cluster.stall_s)")
            os._exit(75)
        case "stop":  # and take words[0] seconds to save
            signals = []
            signal.signal(signal.SIGTERM, lambda name, _frame: signals.append(name))
            (out / f"ready-{number}").touch()
            while not signals:
                time.sleep(0.02)
            time.sleep(float(words[0]))
            (out / f"heard-{number}").write_text(json.dumps(signals))
            raise cli.Stopped(f"saved step-9; resume with: python -m resnet.train resume={out}")
    if number == 0:
        result.write(out, {"fingerprint": fingerprint.fingerprint(run), "steps": starts})
    else:
        print("a warning", file=sys.stderr)

if os.environ.get("ELSEWHERE"):
    socket.gethostname = lambda: "elsewhere"
sys.modules["resnet.training.loop"] = resnet.training.loop = SimpleNamespace(train=body)  # without TensorFlow
if __name__ == "__main__":
    sys.exit(rank.main())
"""
# The first that ends badly has the others ended, by SIGKILL after 1 s (horovodrun: 5 s); SIGTERM does it to all.
STARTER = """
import os, signal, subprocess, sys, time
words = sys.argv[sys.argv.index("-np") + 1:]
size = int(words[0])
program = words[words.index(sys.executable):]
print("I start", size, flush=True)
ranks = [
    subprocess.Popen(program, env={**os.environ, "HOROVOD_RANK": str(n), "HOROVOD_SIZE": str(size),
                                   "HOROVOD_HOSTNAME": os.environ.get("ELSEWHERE", "localhost")})
    for n in range(size)
]
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
codes = {}
while len(codes) < size and not asked and not any(codes.values()):
    for n, rank in enumerate(ranks):
        if n not in codes and rank.poll() is not None:
            codes[n] = rank.returncode
            if rank.returncode:
                code = rank.returncode if rank.returncode > 0 else 128 - rank.returncode
                print(f"Process {n} exit with status code {code}.", flush=True)
                break
    time.sleep(0.02)
for rank in ranks:
    rank.terminate() if rank.poll() is None else None
deadline = time.monotonic() + 1
while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
    time.sleep(0.02)
for rank in ranks:
    rank.kill()
    rank.wait()
sys.exit(1 if asked or any(codes.values()) else 0)
"""


PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background would have it ignored
from pathlib import Path
from resnet import rundir
from resnet.launch import launchers, supervisor
launchers.PROGRAM = (sys.argv[1],)
supervisor.run(rundir.load(Path(sys.argv[2])), Path(sys.argv[2]))
"""


def work(run):
    """(result or exception, seconds)"""
    began = time.monotonic()
    try:
        came = supervisor.run(run, Path(run.out))
    except (Exception, KeyboardInterrupt) as error:
        came = error
    for record in rank_status.read_all(Path(run.out)):
        assert not psutil.pid_exists(record.pid), f"rank {record.rank} lives on"
    return came, time.monotonic() - began


def logged(run, number):
    return rank_status.log(Path(run.out), number).read_text()


def soon(condition, limit_s=60):
    """Wait for it."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def later(condition, deed):
    """Do it from another thread, once that is so."""
    thread = threading.Thread(target=lambda: (soon(condition), deed()), daemon=True)
    thread.start()
    return thread


def run_program(number, program, *words):
    """Execute a program as so many ranks of this host, with nothing in between."""
    cluster = Cluster("x", ranks=number)
    with tempfile.TemporaryDirectory() as folder, rendezvous.serve(cluster) as variables:
        own = rendezvous.on_this_host(cluster)
        # As launchers.device_environment() does: with Horovod's own 1 ms a rank that waits needs a core.
        variables["HOROVOD_CYCLE_TIME"] = "5"
        ranks = [
            forked.Process(None, words, Path.cwd(), {**os.environ, **variables, **rank}, program, [f"{folder}/{n}"] * 2)
            for n, rank in enumerate(own)
        ]
        assert [rank.wait(600) for rank in ranks] == [0] * number, [rank.stdout for rank in ranks]


def listeners(pid):
    """Addresses at which a process and its children listen."""
    addresses = set()
    with contextlib.suppress(psutil.Error):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                connections = process.net_connections("inet")
                addresses |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return addresses
