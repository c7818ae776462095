"""The shape of what every benchmark measures, and its arithmetic against figures worked out by hand."""

import json

import pytest

from resnet import UserError
from resnet.bench.result import NetworkKnobs, Result, Row, brief

RATE = Row("step, images/s", [12.0, 30.0, 11.0], [10.0, 20.0, 11.0], "Keras", [24.0, 40.0, 20.0])
TIME = Row("start, s", [4.0, 6.0, 9.0], [5.0, 6.0, 6.0], "a script", [2.0, 2.0, 3.0], less_is_better=True)


def test_a_ratio_is_the_median_of_the_pairs_own_ratios_not_the_ratio_of_medians():
    assert RATE.ratio == pytest.approx(1.2)  # of 1.2, 1.5, 1.0; the medians' is 12 / 11
    assert TIME.ratio == pytest.approx(1.0)  # of 0.8, 1.0, 1.5


def test_the_fraction_of_the_limit_is_1_at_best_for_rates_and_for_times():
    assert RATE.fraction == pytest.approx(0.55)  # of 12/24, 30/40, 11/20
    assert TIME.fraction == pytest.approx(1 / 3)  # of 2/4, 2/6, 3/9


def test_a_row_without_another_side_has_its_own_median():
    alone = Row("--help, s", [0.4, 3.0, 0.6], less_is_better=True)
    assert (alone.ratio, alone.fraction) == (None, None)
    assert alone.cells() == ["--help, s", "0.6", "", "", "", ""]


def test_sides_that_were_not_measured_in_pairs_have_no_ratio():
    with pytest.raises(ValueError, match="zip"):
        _ = Row("x", [1.0, 2.0], [1.0]).ratio


def result():
    facts = {"machine": "a box", "cores": "2"}
    return Result("python x", "What is\ncompared.", [RATE, TIME], facts, ["| more |"], ["A note."])


def test_the_page_names_its_command_the_machine_and_both_sides():
    assert result().markdown().split("\n\n") == [
        "`python x`",
        "What is compared.",
        "machine a box; cores 2",
        "| what | ours | theirs | against | ratio | of the limit |\n|---|---|---|---|---|---|\n"
        "| step, images/s | 12 | 11 | Keras | 1.200 | 0.550 |\n"
        "| start, s | 6 | 6 | a script | 1.000 | 0.333 |",
        "| more |",
        "A note.",
    ]


def test_the_json_holds_what_was_measured_and_the_ratios(tmp_path):
    paths = result().write(tmp_path / "new" / "folder", "step")
    assert [path.name for path in paths] == ["step.json", "step.md"]
    content = json.loads(paths[0].read_text())
    assert (content["command"], content["facts"]["cores"], content["interrupted"]) == ("python x", "2", False)
    row = content["rows"][0]
    assert (row["ours"], row["theirs"], row["limit"]) == (RATE.ours, RATE.theirs, RATE.limit)
    assert row["ratio"] == pytest.approx(1.2) and row["fraction_of_limit"] == pytest.approx(0.55)
    assert paths[1].read_text() == f"# step\n\n{result().markdown()}\n"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^out=.*/file/x: cannot be written to"):
        result().write(tmp_path / "file" / "x", "step")


def test_figures_have_four_digits_or_are_whole():
    assert [brief(value) for value in (12345.6, 999.96, 0.123456, 3.0)] == ["12,346", "1000", "0.1235", "3"]


def test_every_side_is_measured_once_a_round_in_turn(capsys):
    calls = []
    sides = {name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}
    assert Result().measure(sides, 2, "toy, s") == {"a": [1, 4], "b": [2, 5], "c": [3, 6]}
    assert calls == list("abcabc")
    assert capsys.readouterr().err.splitlines()[1] == "toy, s, round 2 of 2: a 4, b 5, c 6"


def test_an_interruption_leaves_the_complete_rounds():
    values = iter([1.0, 2.0, 3.0])

    def interrupted():
        if (value := next(values)) == 3.0:
            raise KeyboardInterrupt
        return value

    found = Result()
    assert found.measure({"a": lambda: 0.5, "b": interrupted}, 5, "toy") == {"a": [0.5, 0.5], "b": [1.0, 2.0]}
    assert found.interrupted and found.notes == ["Interrupted: toy: 2 of 5 rounds."]


@pytest.mark.parametrize(
    ("knobs", "error"),
    [
        ({"rounds": 0}, "^rounds=0: must be above 0"),
        ({"batch": 0}, "^batch=0: must be above 0"),
        ({"size": 8}, "^size=8: must be at least 32 pixels"),
    ],
)
def test_what_cannot_be_measured_is_refused(knobs, error):
    with pytest.raises(UserError, match=error):
        NetworkKnobs(**knobs)
