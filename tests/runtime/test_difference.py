from __future__ import annotations

import math

import numpy as np
import pytest

from csd.runtime.difference import Difference

INFINITE = Difference(math.inf, math.inf, math.inf)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sides", ["made", "wanted", "both"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_what_is_not_finite_is_infinitely_far(value, sides, dtype):
    good, bad = np.ones(3, dtype), np.array([1, value, 1], dtype)
    made = good if sides == "wanted" else bad
    wanted = good if sides == "made" else bad
    assert Difference.of(made, wanted) == INFINITE
    for before in (Difference(), Difference(1, 2, 3)):
        assert before.or_worse(Difference.of(made, wanted)) == INFINITE
        assert INFINITE.or_worse(before) == INFINITE
    assert not INFINITE.share <= 1e300


def test_differences_are_absolute_and_relative_to_the_largest_number():
    made, wanted = np.array([0.5, 4.0], np.float32), np.array([0.0, 5.0], np.float32)
    assert Difference.of(made, wanted) == Difference(1.0, 0.2, 0.2)
    assert Difference.of(made / 100, wanted / 100).share == pytest.approx(0.01)
    assert Difference.of(np.zeros(0), np.zeros(0)) == Difference()
    with pytest.raises(ValueError, match="shape"):
        Difference.of(np.zeros(3), np.zeros(()))
