"""Sweeps for the tests of resnet.launch: stand-ins for the jobs' processes, and what is read of a sweep's end."""

from resnet import rundir
from resnet.config import fingerprint
from resnet.config.track import Mlflow
from resnet.rundir import result
from resnet.track import store, tracker

TINY = "model=tiny steps=2 eval=false track=off"
GRID = f"-m {TINY} batch=32,64 optim.lr=0.05,0.1"
PAIR = f"-m {TINY} seed=1,2 out=mine"


def rows(text):
    """The cells of a summary's jobs."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| job ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def family(client, out):
    """(parent run, its children by name) of the sweep in `out`."""
    parent = client.get_run(store.run_id(out, client.tracking_uri))
    runs = client.search_runs([parent.info.experiment_id])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, {run.info.run_name.partition("[")[2].rstrip("]"): run for run in children}


class Ended:
    """A process that has ended with this exit status; a signal ends one without a status."""

    def __init__(self, code):
        self.code, self.signals = code, []

    def poll(self):
        return self.code

    def send(self, number):
        self.signals.append(number)
        self.code = 128 + number if self.code is None else self.code


class Machine:
    """Stands in for the processes of jobs: records what was started, and ends each as `ends` says."""

    def __init__(self):
        self.started = []  # run of every job, in order, as its process would load it
        self.places = []  # of every job
        self.ends = {}  # job number -> exit status, or what to raise
        self.top1 = {}

    def start(self, job, place, *, quiet):  # noqa: ARG002
        self.places.append(place)
        return Ended(self.train(job.out))

    def train(self, out):
        run = rundir.load(out)
        self.started.append(run)
        number = int(out.name)
        code = self.ends.get(number, 0)
        if isinstance(run.track, Mlflow):
            log = tracker.Tracker(out, run.track, fingerprint.flat(run), {})
            log.log(1, {"train/loss": 1.0})
            log.close("FINISHED" if code == 0 else "RUNNING")
        if isinstance(code, type):
            raise code
        if code == 0:
            made = {"status": "finished", "final/top1": self.top1.get(number), "final/images_per_s": 1000.0 + number}
            made["fingerprint"] = fingerprint.fingerprint(run)
            result.write(out, made)
        return code
