"""What is said of a value that cannot be."""

import math

import pytest

from resnet import UserError
from resnet.config.checks import check, check_range


@pytest.mark.parametrize(("value", "shown"), [(None, "null"), (True, "true"), (3, "3"), ([1], "[1]"), ("x", "x")])
def test_a_value_is_shown_as_its_user_writes_it(value, shown):
    check(True, "knob", value, "none needed")
    with pytest.raises(UserError) as caught:
        check(False, "knob", value, "the way out")
    assert str(caught.value) == f"knob={shown}: the way out"


def test_a_range_holds_its_lower_end_unless_it_is_open_and_never_its_upper_one():
    check_range("knob", 0, 0, 1)
    for value, opened in ((0, True), (1, False), (math.nan, False), (math.inf, False)):
        with pytest.raises(
            UserError, match=rf"^knob={value}: must be {'above' if opened else 'at least'} 0 and below 1$"
        ):
            check_range("knob", value, 0, 1, open_low=opened)
    with pytest.raises(UserError, match=r"^knob=-1: must be at least 0$"):
        check_range("knob", -1, 0, math.inf)
