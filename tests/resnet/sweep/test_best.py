"""`best_of=`: a training with the settings of a sweep's best job; which job that is, and its pictures."""

import math
from types import SimpleNamespace

import matplotlib.figure
import numpy as np
import pytest
import yaml
from sweep_runs import TINY, rows

from resnet import UserError, cli
from resnet.sweep import argv, pictures
from resnet.sweep.job import Job, best, front, table


@pytest.fixture
def sweep_with(tmp_path):
    """`sweep_with("optim.lr=0.1", ...)`: `best_of=` the folder of a sweep whose best job had these overrides."""

    def make(*words):
        (tmp_path / "a=b [c]").mkdir(exist_ok=True)
        argv.save_best(tmp_path / "a=b [c]", words, 3)
        return f"best_of={tmp_path}/a=b [c]"

    return make


def test_the_best_jobs_overrides_follow_what_was_typed(sweep_with):
    word = sweep_with("optim.lr=0.1", "optim=lars", "++finetune.lr_multipliers={stem: 0.1}")
    assert argv.best_argv(["recipe=quickstart", word, "seed=2"]) == [
        *("recipe=quickstart", "seed=2"),
        *("optim.lr=0.1", "optim=lars", "++finetune.lr_multipliers={stem: 0.1}"),
    ]
    assert argv.best_argv(["seed=2"]) == ["seed=2"]


def test_what_was_typed_wins(sweep_with):
    word = sweep_with("optim.lr=0.1", "batch=64")
    assert argv.best_argv([word, "+optim.lr=0.3"]) == ["+optim.lr=0.3", "batch=64"]
    assert argv.best_argv([word, "optim.lr=0.1"]) == ["optim.lr=0.1", "batch=64"]


def test_what_does_not_decide_the_weights_stays_behind(sweep_with):
    word = sweep_with(
        "cluster=cpu2", "steps=7", "out=/x", "track=off", "data.dir=/x", "sweep.jobs=2", "recipe=fashion", "seed=3"
    )
    assert argv.best_argv([word]) == ["recipe=fashion", "seed=3"]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("+hydra.callbacks.x._target_=psutil.Popen", "no group or knob of a run; if you trust it, type it too"),
        ("hydra.mode=MULTIRUN", "which does not decide the weights; remove it"),
        ("out=/x", "which does not decide the weights; remove it"),
        ("track.uri=http://x", "which does not decide the weights; remove it"),
        ("sweep.jobs=2", "which does not decide the weights; remove it"),
        ("init=${oc.env:HOME}", "which takes its value from elsewhere"),
        ("recipe=../../x", "no name of an option"),
        ("--config-dir=x", "an option of Hydra"),
    ],
)
def test_words_of_a_strangers_file_are_data(tmp_path, word, reason):
    (tmp_path / argv.BEST).write_text(yaml.safe_dump({"job": 0, "words": ["optim.lr=0.1", word]}))
    with pytest.raises(UserError) as caught:
        argv.best_argv([f"best_of={tmp_path}"])
    assert str(caught.value).startswith(f"best_of={tmp_path}: best.yaml has {word}, {reason}")


@pytest.mark.parametrize("text", ["", "words: 3", "words: [1]", "- a", "{", "\xff", "job: 1"])
def test_a_broken_file_is_refused_by_name(tmp_path, text):
    (tmp_path / argv.BEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        argv.best_argv([f"best_of={tmp_path}"])
    assert str(caught.value).startswith(f"{tmp_path}/best.yaml: cannot be read (") and "\n" not in str(caught.value)


def test_a_folder_that_is_no_ended_sweep_is_refused(tmp_path):
    for word, said in {
        "best_of=": "no such folder",
        f"best_of={tmp_path}/x": "no such folder",
        f"best_of={tmp_path}": "best.yaml is missing; give a sweep that has ended",
    }.items():
        with pytest.raises(UserError) as caught:
            argv.best_argv([word])
        assert str(caught.value).startswith(f"{word}: {said}")


def test_a_sweep_leaves_its_best_job_for_another_run(sweep, machine, home):
    machine.top1 = {0: 0.5, 1: 0.75, 2: 0.75, 3: 0.5}
    assert sweep(f"-m {TINY} batch=32,64 optim.lr=0.05,0.1 out=mine")[0] == 0
    assert yaml.safe_load((home / "mine" / argv.BEST).read_text()) == {"job": 1, "words": ["batch=32", "optim.lr=0.1"]}
    machine.started = []
    assert sweep(f"-m {TINY} best_of=mine optim.lr=0.2 seed=1,2 out=next")[0] == 0
    assert [(run.batch, run.optim.lr, run.seed) for run in machine.started] == [(32, 0.2, 1), (32, 0.2, 2)]
    assert "best_of" not in (home / "next" / "sweep.yaml").read_text()  # a resume needs the first sweep no more
    assert sweep("sweep.resume=next")[0] == 0
    code, _, err = sweep("sweep.resume=next best_of=mine")
    assert code == 1 and err.startswith("error: best_of=mine: sweep.resume=next uses that sweep's own settings")


# -------------------------------------------------------------------------------------------------------- which is the best
def job(number, varying="a=1", code=0, **metrics):
    one = Job(number, SimpleNamespace(out="/nowhere"), varying.split(), code)
    names = {"top1": "final/top1", "minutes": "final/minutes", "loss": "eval/loss"}
    one.__dict__["result"] = {"status": "finished", **{names[name]: value for name, value in metrics.items()}}
    return one


@pytest.fixture
def results(monkeypatch):
    """Jobs have the results that they are given, without files."""
    monkeypatch.setattr(Job, "result", property(lambda self: self.__dict__["result"]))
    monkeypatch.setattr(Job, "status", "finished")


@pytest.mark.usefixtures("results")
def test_the_best_job_is_that_of_the_first_goal():
    jobs = [
        job(0, top1=0.5, loss=0.1),
        job(1, top1=0.7, loss=0.3),
        job(2, top1=0.7, loss=0.2),
        job(3, top1=math.nan),
        job(4),
    ]
    assert best(jobs).number == 1
    assert best(jobs, "-eval/loss").number == 0
    assert best(jobs, "eval/loss").number == 1
    assert best(jobs[3:]) is None


@pytest.mark.usefixtures("results")
def test_a_finished_job_has_its_final_top1_and_a_pruned_one_the_best_that_it_had():
    one, other = job(0, top1=0.5), job(1, code=cli.PRUNED)
    one.latest = other.latest = {"best/top1": 0.75}
    assert (one.top1, other.top1, job(2, code=1).top1) == (0.5, 0.75, None)


@pytest.mark.usefixtures("results")
def test_paretos_front_are_the_jobs_that_no_other_one_beats():
    draw = np.random.default_rng(1)
    points = draw.integers(0, 6, size=(30, 2)) / 5
    jobs = [*(job(number, top1=a, minutes=b) for number, (a, b) in enumerate(points)), job(30, top1=1.0)]
    expected = [
        number
        for number, (a, b) in enumerate(points)
        if not ((points[:, 0] >= a) & (points[:, 1] <= b) & ((points[:, 0] > a) | (points[:, 1] < b))).any()
    ]
    assert [one.number for one in front(jobs, ["final/top1", "-final/minutes"])] == expected


@pytest.mark.usefixtures("results")
def test_the_table_of_several_goals_has_each_and_marks_the_front():
    jobs = [job(0, top1=0.5, minutes=1.0), job(1, top1=0.7, minutes=3.25), job(2, top1=0.5, minutes=2.0), job(3)]
    text = table(jobs, ["-final/minutes", "final/top1"])
    assert [word.strip() for word in text.splitlines()[0].strip("|").split("|")] == [
        *("job", "overrides", "top-1", "images/s", "final/minutes", "Pareto", "status"),
    ]
    assert [(row[0], row[2], row[4], row[5]) for row in rows(text)] == [
        ("0", "50.00 %", "1", "*"),
        ("2", "50.00 %", "2", ""),
        ("1", "70.00 %", "3.25", "*"),
        ("3", "-", "-", ""),
    ]


# ------------------------------------------------------------------------------------------------------------------- pictures
@pytest.mark.parametrize(
    ("values", "positions", "labels"),
    [
        (["1", "3", "5"], [0, 0.5, 1], ["1", "5"]),
        (["0.001", "0.01", "0.1"], [0, 0.5, 1], ["0.001", "0.1"]),  # two decades: logarithmic
        (["0.001", "0.05", "0.09"], [0, 49 / 89, 1], ["0.001", "0.09"]),
        (["-1", "0", "99"], [0, 0.01, 1], ["-1", "99"]),
        (["2", "2"], [0, 0], ["2"]),
        (["sgd", "lars", "sgd"], [1, 0, 1], ["lars", "sgd"]),
        (["1", "null"], [0, 1], ["1", "null"]),
        (["1", "nan"], [0, 1], ["1", "nan"]),
    ],
)
def test_values_of_a_knob_become_positions(values, positions, labels):
    places, ticks = pictures.scale(values)
    assert places == pytest.approx(positions)
    assert [label for _, label in ticks] == labels
    assert sorted(place for place, _ in ticks) == pytest.approx([0, 1][: len(labels)])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures, save = [], matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k)
    )
    return figures


@pytest.mark.usefixtures("results")
def test_parallel_coordinates_have_a_line_for_each_result_the_best_on_top(drawn, tmp_path):
    jobs = [
        job(number, f"optim.lr={10.0**-number} optim={name}", top1=top1, minutes=1 + number)
        for number, (name, top1) in enumerate([("sgd", 0.9), ("lars", 0.5), ("sgd", 0.6)])
    ]
    goals = ["final/top1", "-final/minutes"]
    pictures.parallel_coordinates([*jobs, job(3)], ["optim.lr", "optim"], goals, tmp_path)
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["optim.lr", "optim", "top-1", "final/minutes"]
    lines = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 4]
    assert np.allclose(lines, [[0.5, 0, 0, 0.5], [0, 1, 0.25, 1], [1, 1, 1, 0]])
    strength = [line.get_color()[3] for line in axes.lines if len(line.get_xdata()) == 4]
    assert strength == sorted(strength) and strength[-1] == 1
    assert (tmp_path / pictures.PARALLEL).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("results")
def test_pruned_jobs_are_dotted_and_below_the_others(drawn, tmp_path):
    jobs = [job(0, "a=1", top1=0.5), job(1, "a=2", top1=0.9), job(2, "a=3", code=cli.PRUNED), job(3, "a=3", code=1)]
    jobs[2].latest["best/top1"] = 0.7
    pictures.parallel_coordinates(jobs, ["a"], ["final/top1"], tmp_path)
    lines = [line for line in drawn[0].axes[0].lines if line.get_alpha() or len(line.get_color()) == 4]
    assert [line.get_linestyle() for line in lines] == [":", "-", "-"]
    assert np.allclose([line.get_ydata() for line in lines], [[1, 0.5], [0, 0], [0.5, 1]])


@pytest.mark.usefixtures("results")
def test_there_is_no_picture_of_less_than_two_results_or_of_no_knob(drawn, tmp_path):
    pictures.parallel_coordinates([job(0, top1=0.5), job(1)], ["a"], ["final/top1"], tmp_path)
    pictures.parallel_coordinates([job(0, top1=0.5), job(1, top1=0.6)], [], ["final/top1"], tmp_path)
    pictures.importances({}, "final/top1", tmp_path)
    assert drawn == [] and list(tmp_path.iterdir()) == []


def test_importances_are_bars_the_largest_on_top(drawn, tmp_path):
    pictures.importances({"a": 0.2, "b": 0.7, "c": 0.1}, "-eval/loss", tmp_path)
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "a", "b"]
    assert [bar.get_width() for bar in axes.patches] == [0.1, 0.2, 0.7]
    assert axes.get_xlabel() == "share of the variance of eval/loss"
