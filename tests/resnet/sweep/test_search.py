"""Searches as they are typed: what runs, what is refused, what a resume does; a stand-in for the jobs' processes."""

import pytest
from sweep_runs import rows

from resnet import cli
from resnet.sweep import study

pytest.importorskip("optuna")
SEARCH = "sweep=lr_search model=tiny track=off"
TOP1S = dict(enumerate([0.2, 0.5, 0.3, 0.6, 0.9, 0.1]))


def rates(machine):
    """The learning rates that were tried, and none of them any more."""
    tried = [run.optim.lr for run in machine.started]
    machine.started = []
    return tried


def test_a_search_tries_rates_between_its_bounds_and_ends_in_one_table(sweep, machine):
    machine.top1 = TOP1S
    code, out, err = sweep(f"{SEARCH} out=mine")
    assert (code, err) == (0, "")  # Optuna is quiet
    assert {(run.recipe, run.seed, run.eval) for run in machine.started} == {("quickstart", 1, True)}
    tried = rates(machine)
    assert len(set(tried)) == 6 and all(0.001 <= lr <= 1 for lr in tried)
    assert out.count("| job ") == 1
    assert [(row[0], row[1]) for row in rows(out)] == [(str(n), f"optim.lr={tried[n]}") for n in (4, 3, 1, 2, 0, 5)]


def test_a_search_goes_by_the_top1_and_takes_a_failed_job_for_the_worst(sweep, machine):

    def tried(out, top1=0.9, end=0):
        machine.top1 = {0: top1, **{n: 0.5 + n / 100 for n in range(1, 6)}}
        machine.ends = {0: end}
        code = sweep(f"{SEARCH} out={out}")[0]
        return code, rates(machine)

    code, first = tried("first")
    assert code == 0
    code, failing = tried("failing", end=1)
    assert code == 1 and len(failing) == 6  # to its end all the same
    code, worst = tried("worst", top1=0.0)
    assert worst == failing != first
    assert failing[:3] == first[:3]  # at random


def test_a_search_that_was_stopped_goes_on_with_the_job_that_it_left(sweep, machine):
    machine.top1 = {n: 0.5 + n / 100 for n in range(6)}
    machine.ends = {1: 1, 4: KeyboardInterrupt}
    assert sweep(f"{SEARCH} out=parts")[0] == cli.INTERRUPTED
    first = rates(machine)
    machine.ends = {}
    code, out, err = sweep("sweep.resume=parts")
    assert code == 1 and "job 1 (" in err and "had failed, and those after it were chosen by that" in err
    left, new = rates(machine)
    assert left == first[4] and new not in first
    assert [row[4] for row in sorted(rows(out))] == ["finished", "failed", *["finished"] * 4]


def test_jobs_that_the_search_itself_has_stopped_are_run_again(sweep, machine):
    machine.top1, machine.ends = TOP1S, {2: cli.STOPPED, 3: cli.PRUNED}
    sweep(f"{SEARCH} out=mine")
    before = rates(machine)
    machine.ends = {}
    code, out, err = sweep("sweep.resume=mine")
    assert (code, err, rates(machine)) == (0, "", [before[2]])
    assert {row[0]: row[4] for row in rows(out)} == {n: "pruned" if n == "3" else "finished" for n in "012345"}


def test_values_that_do_not_go_together_are_a_failed_job_and_the_search_goes_on(sweep, machine):
    machine.top1 = TOP1S
    line = "-m model=tiny track=off sweep.sampler=random sweep.trials=8 schedule=constant,cosine epochs=8,3 out=mine"
    for command in (line.replace("out=", "schedule.warmup_epochs=5 out="), "sweep.resume=mine"):
        code, out, err = sweep(command)
        assert code == 1 and err.startswith("error: 1 of the sweep's jobs failed: job ") and err.count("\n") == 1
        assert "epochs=3.0: the curve would end within its warm-up" in err
        assert len(machine.started) == len(rows(out)) == 3


@pytest.mark.parametrize("word", ["eval=false", "lr_find=true"])
def test_a_search_without_a_top1_is_refused(sweep, machine, home, word):
    code, _, err = sweep(f"{SEARCH} {word}")
    assert (code, machine.started, list(home.iterdir())) == (1, [], [])
    assert err == f"error: {word}: a search goes by the top-1 of its jobs, and there would be none; leave it out\n"


@pytest.mark.parametrize(
    ("word", "error"),
    [
        (
            "hydra.sweeper.storage=postgres://x/y",
            "hydra.sweeper.storage=postgres://x/y: sweeps have words of their own now; use ",
        ),
        ("hydra/sweeper=optuna", "hydra/sweeper=optuna: sweeps have words of their own now; use sweep.sampler=tpe, "),
        (
            "hydra.sweeper.n_trials=12",
            "hydra.sweeper.n_trials=12: sweeps have words of their own now; use sweep.trials=",
        ),
        ("sweep.trials=0", "sweep.trials=0: must be above 0"),
        ("sweep.sampler=qmc", "sweep.startup=3: sweep.sampler=qmc has no start at random; use sweep.startup=null"),
        ("sweep.sampler=cmaes", "sweep.sampler=cmaes: searches two knobs or more; use sweep.sampler=tpe or gp for one"),
        ("sweep.pruner=median", "sweep.pruner=median: jobs are evaluated only at their end, when nothing is left to "),
        ("sweep.prune_from=2", "sweep.prune_from=2: add sweep.pruner=halving"),
        ("sweep.reduction_factor=2", "sweep.reduction_factor=2: is of sweep.pruner=halving and hyperband"),
        ("sweep.reduction_factor=1", "sweep.reduction_factor=1: must be at least 2"),
        ("sweep.goals=[-final/seconds]", "sweep.goals=[-final/seconds]: must be some of final/top1, best/top1, "),
        ("model=resnet18,resnet5", "job 0 (optim.lr=0.001 model=resnet5): model=resnet5: no such option; "),
        ("batch=32,0", "job 0 (optim.lr=0.001 batch=0): batch=0: must be above 0"),
        ("sweep.goals=[top1]", "sweep.goals=[top1]: must be some of final/top1, best/top1, "),
        ("optim.lr=interval(1,0.1)", "optim.lr=interval(1,0.1): no values to search (`low <= high` must hold"),
        ("sweep.sampler=best", "sweep.sampler=best: must be one of tpe, gp, cmaes, nsga2, qmc, random"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_a_line(sweep, machine, home, word, error):
    code, out, err = sweep([*SEARCH.split(), word])
    assert (code, out, machine.started, list(home.iterdir())) == (1, "", [], [])
    assert err.startswith(f"error: {error}") and err.count("\n") == 1


def test_a_search_without_optuna_says_how_to_get_it(sweep, home, monkeypatch):
    find = study.importlib.util.find_spec
    monkeypatch.setattr(
        study.importlib.util, "find_spec", lambda name, *more: None if name == "optuna" else find(name, *more)
    )
    code, _, err = sweep(SEARCH)
    assert code == 1 and list(home.iterdir()) == []
    assert err == "error: sweep.sampler=tpe: needs optuna, which is not installed; pip install -e '.[optuna]'\n"
