from __future__ import annotations

import numpy as np
import pytest

from csd.models.training.frechet import frechet_distance


def _features(mean, cov, count=6, seed=0):
    """`count` rows that have exactly this mean and covariance."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, len(mean)))
    rows -= rows.mean(axis=0)
    whitened = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return whitened @ np.linalg.cholesky(np.asarray(cov, dtype=float)).T + mean


def test_gaussians_with_one_set_of_axes_have_the_distance_in_closed_form():
    # Each axis by itself: (mean_a - mean_b)^2 + (std_a - std_b)^2; a rotation changes nothing.
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    a = _features(turn @ [1, 2], turn @ np.diag([4, 9]) @ turn.T)
    b = _features(turn @ [0, 4], turn @ np.diag([1, 25]) @ turn.T, count=9, seed=1)
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 4)


def test_gaussians_of_two_dimensions_have_the_trace_in_closed_form():
    # Of 2 x 2 matrices, trace(M^(1/2))^2 = trace(M) + 2 sqrt(det M).
    cov_a, cov_b = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.3], [-0.3, 3]])
    product = cov_a @ cov_b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    wanted = 5 + np.trace(cov_a + cov_b) - 2 * root
    found = frechet_distance(_features([1, 0], cov_a), _features([0, 2], cov_b, seed=3))
    assert found == pytest.approx(wanted)


def test_it_equals_the_definition_with_a_matrix_square_root():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 7)), rng.standard_normal((40, 7)) @ rng.random((7, 7))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy_linalg.sqrtm(cov_a @ cov_b).real
    gap = a.mean(axis=0) - b.mean(axis=0)
    wanted = gap @ gap + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)


def test_a_set_is_at_no_distance_from_itself_even_with_fewer_samples_than_features():
    rng = np.random.default_rng(0)
    few = rng.standard_normal((5, 30)).astype(np.float32)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    other = rng.standard_normal((6, 30))
    assert frechet_distance(few, other) == pytest.approx(frechet_distance(other, few))


def test_one_feature_is_enough():
    assert frechet_distance(np.array([[0.0], [2]]), np.array([[3.0], [5]])) == pytest.approx(9)


@pytest.mark.parametrize(
    "shapes", [((3, 2), (3, 4)), ((1, 2), (3, 2)), ((3,), (3,))], ids=["width", "one row", "vector"]
)
def test_what_is_no_pair_of_sets_is_refused(shapes):
    with pytest.raises(ValueError, match=r"give \[N, F\] and \[M, F\]"):
        frechet_distance(*(np.zeros(shape) for shape in shapes))
