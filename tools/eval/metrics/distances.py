"""Distances between two sets of features, each with its value on halves of the sets.

All arithmetic is float64. `x [N, F]` are features of generated images, `y [M, F]` of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....models.training import frechet
from .halves import Estimate, Float, Masks

# Rows of a kernel matrix that are in memory at once.
ROWS = 512
# The Frechet distance takes eigenvalues of F x F matrices for every half.
WIDE, WIDE_REPLICATES = 256, 40


@dataclass(frozen=True, eq=False)
class Pairs:
    """Mean of a kernel over pairs of images, of whole sets and of their halves, `[R]`."""

    value: float
    replicates: Float


def polynomial(x: Float, y: Float) -> Float:
    """The kernel `(x y / F + 1)^3` of all pairs, `[N, M]` (Binkowski et al., arXiv 1801.01401)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def within(x: Float, masks: Masks) -> Pairs:
    """Mean kernel of two different images of one set."""
    total, own = 0.0, 0.0
    weights = masks.astype(np.float64)
    sums, diagonal = np.zeros(len(weights)), np.empty(len(x))
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        kernel = polynomial(x[rows], x)
        total += kernel.sum()
        diagonal[rows] = kernel[np.arange(len(kernel)), np.arange(start, start + len(kernel))]
        sums += ((weights[:, rows] @ kernel) * weights).sum(axis=1)
    own, n, m = diagonal.sum(), len(x), weights.sum(axis=1)
    return Pairs((total - own) / (n * (n - 1)), (sums - weights @ diagonal) / (m * (m - 1)))


def across(x: Float, y: Float, masks_x: Masks, masks_y: Masks) -> Pairs:
    """Mean kernel of an image of one set and one of the other."""
    total, sums = 0.0, np.zeros(len(masks_x))
    weights_x, weights_y = masks_x.astype(np.float64), masks_y.astype(np.float64)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        kernel = polynomial(x[rows], y)
        total += kernel.sum()
        sums += ((weights_x[:, rows] @ kernel) * weights_y).sum(axis=1)
    counts = weights_x.sum(axis=1) * weights_y.sum(axis=1)
    return Pairs(total / (len(x) * len(y)), sums / counts)


def kernel_distance(own: Pairs, reference: Pairs, both: Pairs) -> Estimate:
    """Squared kernel distance (maximum mean discrepancy), unbiased: 0 on average for one law.

    Args:
        own: of the generated images.
        reference: of the reference.
        both: across.
    """
    return Estimate(
        own.value + reference.value - 2 * both.value,
        own.replicates + reference.replicates - 2 * both.replicates,
    )


def kernel_scale(y: Float, reference: Pairs) -> float:
    """Kernel distance of a model that makes one image of the reference again and again.

    `E k(y, y) - E k(y, y')` over images of the reference: distances are told in shares of it.
    """
    own = (np.einsum("nf,nf->n", y, y) / y.shape[1] + 1) ** 3
    return float(own.mean() - reference.value)


def frechet_distance(x: Float, y: Float, masks_x: Masks, masks_y: Masks) -> Estimate:
    """See `csd.models.training.frechet`. Few images bias it upwards: compare sets of one size."""
    if x.shape[1] > WIDE:
        masks_x, masks_y = masks_x[:WIDE_REPLICATES], masks_y[:WIDE_REPLICATES]
    values = [frechet.frechet_distance(x[a], y[b]) for a, b in zip(masks_x, masks_y, strict=True)]
    return Estimate(frechet.frechet_distance(x, y), np.array(values))
