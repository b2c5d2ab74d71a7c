"""The tests of laws themselves: equal laws pass, and a joint law is told from its marginals."""

from __future__ import annotations

import numpy as np
import pytest

from .laws import energy_p_value, holm_smallest


@pytest.fixture(autouse=True)
def host_code():
    """Nothing here depends on the host side of the samplers."""


def normals(rng, correlation, count=300):
    cov = np.array([[1, correlation], [correlation, 1]])
    return rng.multivariate_normal([0, 0], cov, size=count)


def test_the_energy_distance_tells_a_joint_law_from_its_marginals():
    rng = np.random.default_rng(0)
    assert energy_p_value(normals(rng, 0.9), normals(rng, -0.9), rng) == 1 / 20_000


def test_its_p_value_is_uniform_where_the_laws_are_equal():
    rng = np.random.default_rng(1)
    p_values = [
        energy_p_value(normals(rng, 0.5, 40), normals(rng, 0.5, 60), rng, permutations=499)
        for _ in range(200)
    ]
    for level in (0.05, 0.25, 0.5):
        share = np.mean(np.array(p_values) <= level)
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / len(p_values))


def test_the_smallest_p_value_counts_as_often_as_there_are_tests():
    assert holm_smallest([0.5, 0.02, 0.3]) == pytest.approx(0.06)
    assert holm_smallest([0.9, 0.8]) == 1.0
