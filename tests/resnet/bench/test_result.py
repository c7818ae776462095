"""The shape of what every benchmark comes to, and its arithmetic against figures worked out by hand."""

import json

import pytest

from resnet import UserError
from resnet.bench.result import Goal, Outcome, Row, at_least, at_most, brief, write

RATE = Row("step, images/s", [12.0, 30.0, 11.0], [10.0, 20.0, 11.0], "Keras", at_least(1.25), [24.0, 40.0, 20.0])
TIME = Row("start, s", [4.0, 6.0, 9.0], [5.0, 6.0, 6.0], "a script", at_most(0.9), [2.0, 2.0, 3.0], less_is_better=True)


def test_a_ratio_is_the_median_of_the_pairs_own_ratios_not_the_ratio_of_medians():
    assert RATE.ratio == pytest.approx(1.2)  # of 1.2, 1.5, 1.0; the medians' is 12 / 11
    assert TIME.ratio == pytest.approx(1.0)  # of 0.8, 1.0, 1.5


def test_the_fraction_of_the_limit_is_1_at_best_for_rates_and_for_times():
    assert RATE.fraction == pytest.approx(0.55)  # of 12/24, 30/40, 11/20
    assert TIME.fraction == pytest.approx(1 / 3)  # of 2/4, 2/6, 3/9


@pytest.mark.parametrize(
    ("goal", "value", "said"),
    [
        (at_least(1.05), 1.05, "reached"),
        (at_least(1.05), 1.04, "missed by 0.01"),
        (at_most(1.0), 0.7, "reached"),
        (at_most(1.0), 1.25, "missed by 0.25"),
    ],
)
def test_a_goal_is_reached_or_missed_by_so_much(goal, value, said):
    assert goal.verdict(value) == said


def test_the_goal_of_a_row_without_another_side_is_about_its_own_median():
    alone = Row("--help, s", [0.4, 3.0, 0.6], goal=at_most(1.0), less_is_better=True)
    assert (alone.ratio, alone.fraction, alone.verdict) == (None, None, "reached")
    assert alone.cells() == ["--help, s", "0.6", "", "", "", "<= 1", "reached", ""]


def test_sides_that_were_not_measured_in_pairs_have_no_ratio():
    with pytest.raises(ValueError, match="zip"):
        _ = Row("x", [1.0, 2.0], [1.0]).ratio


def outcome():
    return Outcome(
        "What is\ncompared.", [RATE, TIME], {"machine": "a box", "cores": "2"}, ["| more |"], ["A note."], "python x"
    )


def test_the_page_names_its_command_the_machine_and_both_sides():
    assert outcome().markdown().split("\n\n") == [
        "`python x`",
        "What is compared.",
        "machine a box; cores 2",
        "| what | ours | theirs | against | ratio | goal | | of the limit |\n|---|---|---|---|---|---|---|---|\n"
        "| step, images/s | 12 | 11 | Keras | 1.200 | >= 1.25 | missed by 0.05 | 0.550 |\n"
        "| start, s | 6 | 6 | a script | 1.000 | <= 0.9 | missed by 0.1 | 0.333 |",
        "| more |",
        "A note.",
    ]


def test_the_json_holds_what_was_measured_and_what_it_comes_to(tmp_path):
    paths = write(outcome(), tmp_path / "new" / "folder", "step")
    assert [path.name for path in paths] == ["step.json", "step.md"]
    kept = json.loads(paths[0].read_text())
    assert (kept["command"], kept["facts"]["cores"]) == ("python x", "2")
    row = kept["rows"][0]
    assert (row["ours"], row["theirs"], row["limit"]) == (RATE.ours, RATE.theirs, RATE.limit)
    assert (row["goal"], row["verdict"]) == ({"sense": ">=", "value": 1.25}, "missed by 0.05")
    assert row["ratio"] == pytest.approx(1.2) and row["fraction_of_limit"] == pytest.approx(0.55)
    assert paths[1].read_text() == f"# step\n\n{outcome().markdown()}\n"


def test_a_folder_that_cannot_be_is_told_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^out=.*/file/x: cannot be written to"):
        write(outcome(), tmp_path / "file" / "x", "step")


def test_figures_have_four_digits_or_are_whole():
    assert [brief(value) for value in (12345.6, 999.96, 0.123456, 3.0)] == ["12,346", "1000", "0.1235", "3"]
    assert Goal("<=", 1.0) == at_most(1.0)
