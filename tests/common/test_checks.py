import math
from typing import Literal

import pytest

from cubelet.common.checks import check_at_least, check_choice, check_fraction


def test_a_choice_is_checked_against_a_literal_or_a_collection():
    check_choice("mode", "a", Literal["a", "b"])
    check_choice("better", -1, (1, -1))
    with pytest.raises(ValueError, match=r"^mode 'c' is unknown; choose one of a, b$"):
        check_choice("mode", "c", Literal["a", "b"])
    with pytest.raises(ValueError, match=r"^better 0 is unknown; choose one of 1, -1$"):
        check_choice("better", 0, {1: "multiplies", -1: "divides"})


def test_a_lower_bound_is_inclusive_and_refuses_what_is_no_number():
    check_at_least("layers", 1, 1)
    with pytest.raises(ValueError, match=r"^layers 0 must be at least 1$"):
        check_at_least("layers", 0, 1)
    with pytest.raises(ValueError, match=r"^zone nan must be at least 0 \(a share\)$"):
        check_at_least("zone", math.nan, 0, "a share")


@pytest.mark.parametrize("value", [-0.1, 1.0, 2, math.nan])
def test_a_fraction_is_below_one(value):
    check_fraction("dropout", 0.0)
    check_fraction("dropout", 0.999)
    with pytest.raises(ValueError, match=f"^dropout {value} must be at least 0 and below 1$"):
        check_fraction("dropout", value)
