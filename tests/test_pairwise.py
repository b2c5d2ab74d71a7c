from __future__ import annotations

import itertools

import pytest

from .pairwise import pairs_of


@pytest.mark.parametrize(
    ("sizes", "most"), [((2, 2, 2), 4), ((3, 3, 3), 9), ((5, 2, 2), 10), ((2, 3), 6), ((4,), 0)]
)
def test_every_two_values_meet_in_few_cases(sizes, most):
    axes = [[f"{k}{value}" for value in range(size)] for k, size in enumerate(sizes)]
    cases = pairs_of(*axes)
    for first, second in itertools.combinations(range(len(axes)), 2):
        met = {(case[first], case[second]) for case in cases}
        assert met == set(itertools.product(axes[first], axes[second]))
    assert len(cases) <= most + 1
    assert cases == pairs_of(*axes)
