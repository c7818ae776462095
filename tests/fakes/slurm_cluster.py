"""A cluster of stand-ins for Slurm's commands, which really runs job.sh, and a stand-in for the training."""

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from sweep_runs import TINY

from resnet.config.cluster import Cluster
from resnet.sweep.job import Job

PYTHON = sys.executable
LINE = f"-m {TINY} sweep.on=slurm out=mine"
WARNED = "if first; then kill -USR1 $PPID; work; fi"

# A training that does what $DEEDS/<job> says; SIGTERM has it save, unless it was pruned, and end.
TRAINING = """#!/bin/bash
out=${@: -1}
echo "$$ $PPID" >>"$out/starts"
save() { mkdir -p "$out/checkpoints/step-0000000$(wc -l <"$out/starts")"; }
stop() { [[ ! -e $out/prune ]] || exit 144; save; exit 143; }
trap stop TERM
first() { (($(wc -l <"$out/starts") == 1)); }
work() { for ((i = 0; i < 400; i++)); do sleep 0.02; done; exit 9; }
source "$DEEDS/${out##*/}" 2>/dev/null
echo '{"status": "finished", "final/top1": 0.5}' >"$out/result.json"
"""


class Slurm:
    """In `home` the switches of slurm_program.py; `bin` is for PATH, `training` for sys.executable, `deeds` for $DEEDS."""

    def __init__(self, folder):
        self.home, self.bin, self.deeds = (folder / name for name in ("jobs", "bin", "deeds"))
        self.training = folder / "training"
        for path in (self.home, self.bin, self.deeds):
            path.mkdir(parents=True)
        program = Path(__file__).with_name("slurm_program.py").read_text()
        # By way of sh: an interpreter whose path has a space in it cannot stand in the first line.
        start = f"""#!/bin/sh\n'''exec' {shlex.quote(PYTHON)} -ES "$0" "$@"\n' '''\n"""
        for path, text in ((self.bin / "slurmd", start + program), (self.training, TRAINING)):
            path.write_text(text)
            path.chmod(0o755)
        for name in ("sbatch", "squeue", "scancel", "scontrol"):
            (self.bin / name).symlink_to("slurmd")

    def deed(self, number, text):
        """What the training of this job does before it ends well."""
        (self.deeds / str(number)).write_text(text)

    def calls(self, *names):
        """The command lines of these commands so far."""
        lines = (self.home / "log").read_text().splitlines() if (self.home / "log").exists() else []
        return [words for words in map(json.loads, lines) if words[0] in names]

    def submitted(self):
        """The numbers of the sweep's jobs in the order of sbatch's calls."""
        return [int(Path(words[-1]).name) for words in self.calls("sbatch")]

    def states(self):
        return [path.read_text() for path in sorted(self.home.glob("*/state"))]

    def close(self):
        for path in self.home.glob("*/pid"):
            os.killpg(int(path.read_text()), signal.SIGKILL)


def job(number=3, out="/runs/a sweep", **cluster):
    run = SimpleNamespace(cluster=Cluster(name="slurm", **cluster), out=f"{out}/{number}")
    return Job(number, run, [f"seed={number}"])


def starts(out):
    """How often the training in `out` was started."""
    return len((out / "starts").read_text().splitlines()) if (out / "starts").exists() else 0


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
