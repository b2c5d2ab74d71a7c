"""Two-sample tests, corrected for their number (Holm)."""

from __future__ import annotations

import numpy as np
from scipy import stats


def holm_smallest(p_values):
    """Return the smallest Holm-adjusted p-value; reject at level a if it is below a."""
    return min(1.0, len(p_values) * min(p_values))


def energy_p_value(a, b, rng, permutations=199, limit=300):
    """Permutation p-value of the energy distance between two samples `[n, C]`."""
    a, b = a[:limit], b[:limit]
    both = np.concatenate([a, b]).astype(np.float64)
    distance = np.sqrt(np.maximum(((both[:, None] - both[None]) ** 2).sum(axis=-1), 0))
    count = len(a)

    def statistic(order):
        x, y = order[:count], order[count:]
        return (
            2 * distance[np.ix_(x, y)].mean()
            - distance[np.ix_(x, x)].mean()
            - distance[np.ix_(y, y)].mean()
        )

    seen = statistic(np.arange(len(both)))
    others = [statistic(rng.permutation(len(both))) for _ in range(permutations)]
    return (1 + sum(other >= seen for other in others)) / (permutations + 1)


def same_law(first, second, seed=0):
    """Smallest Holm-adjusted p-value over marginals and the joint law of two head reports.

    Looks at the tokens, at the states at a third of the chain and before its last step, and at
    the sums of log standard deviations.
    """
    rng, steps = np.random.default_rng(seed), len(first.trajectory) - 1
    p_values = []
    for index in {0, min(1, steps), steps // 3}:
        a, b = first.trajectory[index], second.trajectory[index]
        p_values += [stats.ks_2samp(a[:, c], b[:, c]).pvalue for c in range(a.shape[1])]
        p_values.append(stats.ks_2samp((a**2).sum(axis=1), (b**2).sum(axis=1)).pvalue)
        p_values.append(energy_p_value(a, b, rng))
    if steps > 1:
        a, b = first.sum_log_std.sum(axis=1), second.sum_log_std.sum(axis=1)
        p_values.append(stats.ks_2samp(a, b).pvalue)
    return holm_smallest(p_values)
