"""Searches: what each sampler draws, what is pruned, what survives a kill; a formula stands in for training."""

import itertools
import math
import multiprocessing
import warnings

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from scipy.stats import qmc

from resnet import UserError, cli
from resnet.config.sweep import Pruner, Sampler, Sweep
from resnet.sweep import space, study

optuna = pytest.importorskip("optuna")
NUMBERS = ("a=tag(log,interval(0.001,1.0))", "b=tag(log,interval(0.00001,0.1))")
PARSER = OverridesParser.create()
FORKS = multiprocessing.get_context("fork")


def knobs(*words):
    return {override.get_key_element(): override for override in PARSER.parse_overrides(list(words))}


def values(words):
    return {name: float(value) for name, _, value in (word.partition("=") for word in words)}


def top1(words):
    """1 at a = 10^-1.5, b = 10^-3, less elsewhere."""
    point = values(words)
    return 1 - ((math.log10(point["a"]) + 1.5) ** 2 + (math.log10(point["b"]) + 3) ** 2) / 10


def search(settings, out, *, words=NUMBERS, seed=1, objective=top1):
    """[(overrides, value)] of every job of a search, one after the other."""
    out.mkdir(exist_ok=True)
    one, ran = study.Study(settings, knobs(*words), seed, out), []
    while trial := one.ask():
        value = objective(trial[1])
        one.tell(trial[0], {"final/top1": value}, pruned=False)
        ran.append((trial[1], value))
    return ran


# ------------------------------------------------------------------------------------------------------------------ samplers
@pytest.mark.parametrize("name", [name for name in Sampler if name is not Sampler.gp], ids=lambda name: name.value)
def test_every_sampler_draws_distinct_points_inside_the_space_and_the_same_for_a_seed(name, tmp_path):
    ran = [
        search(Sweep(sampler=name, trials=12), tmp_path / str(number), seed=seed)
        for number, seed in enumerate((1, 1, 2))
    ]
    assert ran[0] == ran[1] != ran[2]
    points = [values(words) for words, _ in ran[0]]
    assert len({tuple(point.items()) for point in points}) == 12
    assert all(0.001 <= point["a"] <= 1 and 0.00001 <= point["b"] <= 0.1 for point in points)


@pytest.mark.parametrize(("name", "trials"), [("tpe", 30), ("cmaes", 30), ("nsga2", 80)])
def test_a_sampler_comes_closer_to_the_best_point_than_its_first_jobs(name, trials, tmp_path):
    for seed in (1, 2, 3):
        settings = Sweep(sampler=Sampler[name], trials=trials, startup=8)
        ran = [value for _, value in search(settings, tmp_path / str(seed), seed=seed)]
        assert max(ran[8:]) > max(max(ran[:8]), 0.99)  # 0.3 decades from it
        assert name == "nsga2" or np.mean(ran[-8:]) > np.mean(ran[:8])


def test_the_points_of_qmc_are_spread_more_evenly_than_random_ones(tmp_path):
    def unevenness(name):
        ran = search(Sweep(sampler=name, trials=32), tmp_path / name.value)
        points = [
            [math.log10(point["a"]) / 3 + 1, math.log10(point["b"]) / 4 + 1.25] for point in (values(w) for w, _ in ran)
        ]
        return qmc.discrepancy(np.array(points))

    assert unevenness(Sampler.qmc) < unevenness(Sampler.random) / 3


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_a_small_space_is_tried_once_and_then_there_is_no_more(name, tmp_path):
    words = ("a=1,2,3", "b=choice(x,'y z',true)")
    settings = Sweep(sampler=Sampler[name], trials=30)
    one, ran = study.Study(settings, knobs(*words), 1, tmp_path), []
    while trial := one.ask():
        one.tell(trial[0], {"final/top1": 0.5}, pruned=False)
        ran.append(tuple(trial[1]))
    grid = {(f"a={a}", f"b={b}") for a, b in itertools.product("123", ("x", r"y\ z", "True"))}
    assert len(ran) == len(set(ran)) and set(ran) <= grid and len(ran) >= 8
    before = len(one.study.trials)
    assert one.ask() is None and len(one.study.trials) == before  # nor does it ask Optuna again


# --------------------------------------------------------------------------------------------------------------------- space
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("x=interval(0.1,2)", optuna.distributions.FloatDistribution(0.1, 2.0)),
        ("x=tag(log,interval(0.001,1))", optuna.distributions.FloatDistribution(0.001, 1.0, log=True)),
        ("x=int(interval(1,8))", optuna.distributions.IntDistribution(1, 8)),
        ("x=tag(log,int(interval(1,64)))", optuna.distributions.IntDistribution(1, 64, log=True)),
        ("x=int(interval(1.0,8.5))", optuna.distributions.IntDistribution(1, 8)),
        ("x=float(interval(1,8))", optuna.distributions.FloatDistribution(1.0, 8.0)),
        ("x=range(1,10,3)", optuna.distributions.IntDistribution(1, 7, step=3)),
        ("x=range(4)", optuna.distributions.IntDistribution(0, 3)),
        ("x=range(0.0,1.0,0.25)", optuna.distributions.FloatDistribution(0.0, 0.75, step=0.25)),
        ("x=range(5,1,-2)", optuna.distributions.CategoricalDistribution(["5", "3"])),
        ("x=choice(0.0,0.05)", optuna.distributions.CategoricalDistribution(["0.0", "0.05"])),
        ("x=0.1,null,true", optuna.distributions.CategoricalDistribution(["0.1", "null", "True"])),
        ("x=sgd,lars", optuna.distributions.CategoricalDistribution(["sgd", "lars"])),
        ("x=[1,2],[3]", optuna.distributions.CategoricalDistribution(["[1,2]", "[3]"])),
    ],
)
def test_hydras_words_are_optunas_distributions(word, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert space.distribution(knobs(word)["x"]) == expected


@pytest.mark.parametrize("word", ["x=range(0.1,0.5,0.1)", "x=range(0.0,1.0,0.1)"])
def test_steps_that_floats_cannot_hold_end_where_hydras_do(word):
    kind = space.distribution(knobs(word)["x"])
    listed = [float(value) for value in knobs(word)["x"].sweep_string_iterator()]
    assert (kind.low, kind.high) == pytest.approx((listed[0], listed[-1]))


def test_a_jobs_overrides_are_taken_by_hydra_as_they_are(tmp_path):
    words = ("a=interval(0.0000001,0.000001)", "b=choice('x y',[1,2],{a: b})", "c=int(interval(1,9))", "d=true,null")
    for trial, _ in search(Sweep(sampler=Sampler.random, trials=8), tmp_path, words=words, objective=lambda _: 0.5):
        parsed = {one.get_key_element(): one.value() for one in PARSER.parse_overrides(trial)}
        assert isinstance(parsed["a"], float) and isinstance(parsed["c"], int) and parsed["d"] in (True, None)
        assert parsed["b"] in ("x y", [1, 2], {"a": "b"})


@pytest.mark.parametrize(
    ("name", "words", "error"),
    [
        (
            "tpe",
            ["a=tag(log,interval(0.0,1.0))"],
            "a=tag(log,interval(0.0,1.0)): no values to search (`low > 0` must hold",
        ),
        ("tpe", ["a=interval(1.0,0.5)"], "a=interval(1.0,0.5): no values to search ("),
        (
            "cmaes",
            ["a=interval(0.0,1.0)"],
            "sweep.sampler=cmaes: searches two knobs or more; use sweep.sampler=tpe or gp",
        ),
        (
            "cmaes",
            ["a=interval(0.0,1.0)", "b=1,2"],
            "b=1,2: sweep.sampler=cmaes searches numbers only; give an interval ",
        ),
        (
            "qmc",
            ["b=choice(1,2)"],
            "b=choice(1,2): sweep.sampler=qmc searches numbers only; give an interval or a range",
        ),
    ],
)
def test_values_that_a_sampler_cannot_search_are_refused_by_name(name, words, error):
    with pytest.raises(UserError) as caught:
        space.check_space(knobs(*words), Sweep(sampler=Sampler[name]))
    assert str(caught.value).startswith(error)


@pytest.mark.parametrize(("name", "package"), [("gp", "torch"), ("cmaes", "cmaes"), ("tpe", "optuna")])
def test_a_package_that_is_missing_is_named_with_how_to_get_it(name, package, monkeypatch):
    monkeypatch.setattr(study.importlib.util, "find_spec", lambda one, *_: None if one == package else object())
    with pytest.raises(UserError, match=f"sweep.sampler={name}: needs {package}, which is not installed; pip install "):
        study.check_installed(Sweep(sampler=Sampler[name]))


# ------------------------------------------------------------------------------------------------------------------- pruning
def asha(curves, first, eta=4):
    """Jobs, in turns, each to its next evaluation; which go on (arXiv:1810.05934 algorithm 2, the stopping variant)."""
    rungs, alive, pruned = {}, list(range(len(curves))), {}
    for number in range(1, curves.shape[1] + 1):
        for job in list(alive):
            level = math.log(number / first, eta) if number >= first else 0.5
            if abs(level - round(level)) < 1e-9:
                rung = rungs.setdefault(round(level), [])
                rung.append(curves[job, number - 1])
                if sum(value > curves[job, number - 1] for value in rung) >= max(1, len(rung) // eta):
                    alive.remove(job)
                    pruned[job] = number
    return pruned


@pytest.mark.parametrize(("first", "eta"), [(1, None), (2, None), (2, 2)])
def test_successive_halving_prunes_what_the_paper_does(first, eta, tmp_path):
    curves = np.random.default_rng(3).uniform(size=(16, 1)) * np.linspace(0.3, 1, 9)
    settings = Sweep(sampler=Sampler.random, trials=16, pruner=Pruner.halving, prune_from=first, reduction_factor=eta)
    one, pruned = study.Study(settings, knobs(*NUMBERS), 1, tmp_path), {}
    alive = [one.ask()[0] for _ in range(16)]
    for number in range(9):
        for job in list(alive):
            if one.prune(job, [(44 * (number + 1), {"eval/top1": curves[job, number]})]):
                alive.remove(job)
                pruned[job] = number + 1
                one.tell(job, {}, pruned=True)
    assert pruned == asha(curves, first, eta or 4) and len(pruned) >= 8
    assert {t.user_attrs["job"] for t in one.mine() if t.state.name == "PRUNED"} == set(pruned)


def test_the_median_prunes_what_is_below_it_from_the_evaluation_that_is_set(tmp_path):
    settings = Sweep(sampler=Sampler.random, trials=9, pruner=Pruner.median, startup=3, prune_from=2)
    one = study.Study(settings, knobs(*NUMBERS), 1, tmp_path)
    for top in (0.5, 0.6, 0.7):
        job, _ = one.ask()
        assert not one.prune(job, [(10 * n, {"eval/top1": top * n / 3}) for n in (1, 2, 3)])
        one.tell(job, {"final/top1": top}, pruned=False)
    low, high = one.ask()[0], one.ask()[0]
    assert not one.prune(low, [(10, {"eval/top1": 0.01})])
    assert one.prune(low, [(20, {"eval/top1": 0.39})])
    assert not one.prune(high, [(10, {"eval/top1": 0.01}), (20, {"eval/top1": 0.41})])


def test_an_evaluation_has_its_number_by_its_step_also_when_a_run_resumes(tmp_path):
    settings = Sweep(sampler=Sampler.random, pruner=Pruner.hyperband)
    one = study.Study(settings, knobs(*NUMBERS), 1, tmp_path)
    job, _ = one.ask()
    rows = [
        (5, {"train/loss": 1.0}),
        (10, {"eval/top1": 0.1}),
        (20, {"eval/top1": 0.2, "ema/top1": 0.3}),
        (30, {"eval/top1": 0.4}),
    ]
    one.prune(job, rows)
    again = study.Study(settings, knobs(*NUMBERS), 1, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.prune(job, rows)
        again.prune(job, [(20, {"eval/top1": 0.25}), (30, {"eval/top1": 0.4}), (40, {"eval/top1": 0.5})])
    (trial,) = again.mine()
    assert trial.intermediate_values == {1: 0.1, 2: 0.3, 3: 0.4, 4: 0.5}


# -------------------------------------------------------------------------------------------------------------------- results
def test_a_failed_job_fails_in_optuna_and_the_sampler_keeps_away(tmp_path):
    """Half of the values fail; without a stand-in TPE would go on as if it knew nothing of them."""

    def share(learns):
        settings = Sweep(sampler=Sampler.tpe, trials=40, startup=8)
        (tmp_path / str(learns)).mkdir()
        one = study.Study(settings, knobs("a=interval(0.0,1.0)"), 1, tmp_path / str(learns))
        one.worst = one.worst if learns else list
        points = []
        while trial := one.ask():
            points.append(values(trial[1])["a"])
            one.tell(trial[0], {"final/top1": 0.9 - points[-1] / 10} if points[-1] > 0.5 else {}, pruned=False)
        states = [trial.state.name for trial in one.mine()]
        assert states == ["COMPLETE" if point > 0.5 else "FAIL" for point in points]
        return np.mean(np.array(points[10:]) < 0.5)

    assert share(True) < share(False) - 0.2


@pytest.mark.parametrize("content", [{}, {"final/top1": None}, {"final/top1": math.nan}])
def test_a_result_without_the_goal_counts_as_failed(content, tmp_path):
    one = study.Study(Sweep(sampler=Sampler.random), knobs(*NUMBERS), 1, tmp_path)
    one.tell(one.ask()[0], content, pruned=False)
    assert one.jobs()[0][2] == cli.FAILED


def test_several_goals_reach_optuna_with_their_directions(tmp_path):
    settings = Sweep(sampler=Sampler.nsga2, goals=["final/top1", "-final/minutes"])
    one = study.Study(settings, knobs(*NUMBERS), 1, tmp_path)
    points = [(0.9, 5.0), (0.8, 1.0), (0.7, 3.0), (0.95, 9.0)]
    for top, minutes in points:
        one.tell(one.ask()[0], {"final/top1": top, "final/minutes": minutes}, pruned=False)
    assert sorted(trial.user_attrs["job"] for trial in one.study.best_trials) == [0, 1, 3]
    one.tell(one.ask()[0], {}, pruned=False)
    (stand_in,) = [trial for trial in one.study.trials if study.WORST in trial.user_attrs]
    assert stand_in.values == [0.7, 9.0]


def test_importances_name_the_knob_that_matters(tmp_path):
    one = study.Study(Sweep(sampler=Sampler.random, trials=30), knobs(*NUMBERS), 1, tmp_path)
    assert one.importances() == {}
    while trial := one.ask():
        one.tell(trial[0], {"final/top1": math.log10(values(trial[1])["a"])}, pruned=False)
    shares = one.importances()
    assert sum(shares.values()) == pytest.approx(1) and shares["a"] > 0.9
