"""The Frechet distance between two sets of features (Heusel et al., arXiv 1706.08500)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def frechet_distance(features_a: NDArray[np.floating], features_b: NDArray[np.floating]) -> float:
    """Squared Frechet distance of the Gaussians that two sets of features are fitted by.

    `|mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))`, in float64. Few samples
    bias it upwards: compare distances of sets of one size only.

    Args:
        features_a: `[N, F]`, two rows or more.
        features_b: `[M, F]`, likewise.

    Raises:
        ValueError: a set is not a matrix of two rows or more, or the widths differ.
    """
    a, b = (np.asarray(features, dtype=np.float64) for features in (features_a, features_b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features are {list(a.shape)} and {list(b.shape)}: give [N, F] and [M, F], N, M > 1"
        )
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    # cov_a cov_b has the eigenvalues of this symmetric matrix, which may be singular.
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root_a @ cov_b @ root_a), 0, None)).sum()
    gap = a.mean(axis=0) - b.mean(axis=0)
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * shared)
