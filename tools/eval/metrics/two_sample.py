"""Whether two sets come from one law: a permutation test of the energy distance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .halves import Float
from .neighbours import squared_distances

MOST_ROWS = 1000
PERMUTATIONS = 2_000
# The test ends where so many permutations are at least as far apart: equal laws are seen early
# (Besag and Clifford, Biometrika 78, 1991).
ENOUGH = 50


def energy_test(
    a: Float, b: Float, rng: np.random.Generator, *, paired: bool, most: int = PERMUTATIONS
) -> float:
    """p-value of equal laws (Szekely and Rizzo, Journal of Statistical Planning 143, 2013).

    Args:
        a: `[N, F]`; the first `MOST_ROWS` are taken.
        b: `[M, F]`, likewise.
        rng: of the permutations.
        paired: row i of both belong together: pairs change sides, not rows.
        most: permutations.
    """
    a, b = a[:MOST_ROWS], b[:MOST_ROWS]
    both = np.concatenate([a, b])
    distance = np.sqrt(squared_distances(both, both))
    weights = np.repeat([1 / len(a), -1 / len(b)], [len(a), len(b)])

    def statistic(rows: Float) -> Float:
        return -((rows @ distance) * rows).sum(axis=1)

    # Rounding must not make a permutation that changes nothing further apart than what was seen.
    seen, further, done = float(statistic(weights[None])[0]), 0, 0
    seen -= 1e-9 * float(distance.max(initial=0))
    while done < most:
        count = min(100, most - done)
        reached = further + np.cumsum(statistic(_permuted(weights, len(a), count, rng, paired))
                                      >= seen)  # fmt: skip
        if reached[-1] >= ENOUGH:
            return ENOUGH / (done + 1 + int(np.argmax(reached >= ENOUGH)))
        further, done = int(reached[-1]), done + count
    return (1 + further) / (most + 1)


def _permuted(
    weights: Float, first: int, count: int, rng: np.random.Generator, paired: bool
) -> Float:
    if not paired:
        return rng.permuted(np.tile(weights, (count, 1)), axis=1)
    signs = rng.choice([-1.0, 1.0], size=(count, first)) / first
    return np.concatenate([signs, -signs], axis=1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: the chance of one or more false alarms is at most the level.

    Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    order: NDArray[np.int64] = np.argsort(p_values)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
