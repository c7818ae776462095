"""The arithmetic of every benchmark."""

from resnet.bench import sides


def test_every_side_is_measured_once_a_round_in_turn():
    calls = []
    named = {name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}
    rates = sides.interleaved(named, 2)
    assert calls == list("abcabc")
    assert rates == {"a": [1, 4], "b": [2, 5], "c": [3, 6]}


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    text = sides.table({"naive": [100.0, 50.0, 200.0], "ours": [200.0, 200.0, 200.0]}, "naive", cores=2)
    assert text.splitlines()[2:] == ["| naive | 50 | 1.00 |", "| ours | 100 | 2.00 |"]
