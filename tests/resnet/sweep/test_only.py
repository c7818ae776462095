"""sweep.only=: one job of a grid, trained in this process, as an indexed Job of Kubernetes or a job array starts it."""

import pytest
from sweep_runs import PAIR, TINY, rows

from resnet import train
from resnet.rundir import result


@pytest.fixture
def trained(monkeypatch):
    """The runs that were trained in this process, each of which ends well."""
    runs = []

    def train_here(run, out):
        runs.append(run)
        content = {
            "status": "finished",
            "final/top1": 0.5,
            "final/images_per_s": 1.0,
            "fingerprint": train.fingerprint(run),
        }
        out.mkdir(parents=True, exist_ok=True)
        result.write(out, content)
        return content

    monkeypatch.setattr(train, "train_here", train_here)
    return runs


def test_one_job_of_the_grid_is_a_run_in_its_folder_and_the_sweeps_is_not_claimed(sweep, trained, machine, home):
    for number, seed in enumerate((1, 2)):
        sweep(f"{PAIR} sweep.only={number}")
        run = trained.pop()
        assert (run.seed, run.out) == (seed, f"{home}/mine/{number}")
    assert machine.started == [] and not trained
    assert sorted(path.name for path in (home / "mine").iterdir()) == ["0", "1"]
    code, out, _ = sweep(PAIR)  # without the word: the table of what is there
    assert code == 0 and machine.started == [] and [row[4] for row in rows(out)] == ["finished"] * 2


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (f"{PAIR} sweep.only=2", "sweep.only=2: the sweep has 2 jobs, from 0 to 1"),
        (f"{PAIR} sweep.only=-1", "sweep.only=-1: must be at least 0"),
        (f"-m {TINY} seed=1,2 sweep.only=1", "sweep.only=1: give out=, the folder that all jobs of the sweep share"),
        (
            f"{PAIR} sweep.only=1 sweep.jobs=2",
            "sweep.jobs=2: sweep.only= trains one job; leave one of the two out",
        ),
        (
            f"-m {TINY} optim.lr=interval(0.1,1) sweep.sampler=tpe out=mine sweep.only=0",
            "sweep.only=0: a search has no list",
        ),
        (f"{TINY} out=mine sweep.only=1", "sweep.only=1: is of sweeps, and this is one run; add -m"),
        (f"{TINY} out=mine sweep.jobs=2", "sweep.jobs=2: is of sweeps, and this is one run; add -m"),
    ],
)
def test_what_it_cannot_be_is_refused(sweep, trained, home, line, error):
    code, out, err = sweep(line)
    assert (code, out, err.count("\n"), trained) == (1, "", 1, [])
    assert err.startswith(f"error: {error}") and not (home / "mine").exists()
