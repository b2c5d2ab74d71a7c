"""Precision and recall, density and coverage: by distances to nearest neighbours.

Precision is the share of generated images within reach of a real one, recall that of real images
within reach of a generated one (Kynkaanniemi et al., arXiv 1904.06991, k = 3). Density counts how
many real images reach a generated one, coverage is the share of real images that reach one (Naeem
et al., arXiv 2002.09797, k = 5). An image reaches as far as its k-th nearest neighbour of its set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .halves import Estimate, Float, Masks

REACH = 3
DENSITY_REACH = 5
# All pairs are in memory, and their order is looked for in every half.
MOST_IMAGES = 1500
REPLICATES = 60


@dataclass(frozen=True)
class Neighbours:
    """The four figures."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def squared_distances(x: Float, y: Float) -> Float:
    """Squared Euclidean distances of all pairs, `[N, M]`."""
    both = np.einsum("nf,nf->n", x, x)[:, None] + np.einsum("mf,mf->m", y, y)
    return np.maximum(both - 2 * (x @ y.T), 0)


def neighbours(x: Float, y: Float, masks_x: Masks, masks_y: Masks) -> Neighbours:
    """Compare generated images `x [N, F]` with real ones `y [M, F]`.

    Args:
        x: generated.
        y: real.
        masks_x: halves `[R, N]`.
        masks_y: halves `[R, M]`.
    """
    own, real, both = squared_distances(x, x), squared_distances(y, y), squared_distances(y, x)
    np.fill_diagonal(own, 0)
    np.fill_diagonal(real, 0)
    whole = _figures(own, real, both)
    parts = np.array([
        _figures(own[np.ix_(a, a)], real[np.ix_(b, b)], both[np.ix_(b, a)])
        for a, b in zip(masks_x[:REPLICATES], masks_y[:REPLICATES], strict=True)
    ])  # fmt: skip
    return Neighbours(*(Estimate(v, parts[:, i]) for i, v in enumerate(whole)))


def _figures(own: Float, real: Float, both: Float) -> tuple[float, float, float, float]:
    near = both < _reach(real, REACH)[:, None]
    wide = _reach(real, DENSITY_REACH)[:, None]
    return (
        float(near.any(axis=0).mean()),
        float((both < _reach(own, REACH)).any(axis=1).mean()),
        float((both < wide).sum(axis=0).mean() / DENSITY_REACH),
        float((both.min(axis=1) < wide[:, 0]).mean()),
    )


def _reach(distances: Float, k: int) -> Float:
    """Distance to the k-th nearest other image; the nearest is the image itself."""
    return np.partition(distances, k, axis=1)[:, k]
