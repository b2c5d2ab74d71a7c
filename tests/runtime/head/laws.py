"""Two-sample tests, corrected for their number (Holm)."""

from __future__ import annotations

import numpy as np
from scipy import stats

# A permutation test ends at so many permutations that are at least as far apart.
ENOUGH = 20


def holm_smallest(p_values):
    """Return the smallest Holm-adjusted p-value; reject at level a if it is below a."""
    return min(1.0, len(p_values) * min(p_values))


def energy_p_value(a, b, rng, permutations=19_999, limit=300):
    """Permutation p-value of the energy distance between two samples `[n, C]`.

    Equal laws are seen after few permutations: it ends early where `ENOUGH` of them are at least
    as far apart (Besag and Clifford, Biometrika 78, 1991).
    """
    a, b = a[:limit], b[:limit]
    both = np.concatenate([a, b]).astype(np.float64)
    distance = np.sqrt(np.maximum(((both[:, None] - both[None]) ** 2).sum(axis=-1), 0))
    weights = np.repeat([1 / len(a), -1 / len(b)], [len(a), len(b)])

    def statistic(weights):
        # 2 E|a - b| - E|a - a'| - E|b - b'|
        return -((weights @ distance) * weights).sum(axis=-1)

    seen, further, done = statistic(weights) * (1 - 1e-12), 0, 0
    while done < permutations:
        batch = min(max(100, done), 1000, permutations - done)
        orders = rng.permuted(np.tile(weights, (batch, 1)), axis=1)
        count = further + np.cumsum(statistic(orders) >= seen)
        if count[-1] >= ENOUGH:
            return ENOUGH / (done + 1 + int(np.argmax(count >= ENOUGH)))
        further, done = int(count[-1]), done + batch
    return (1 + further) / (permutations + 1)


def same_law(first, second, seed=0):
    """Smallest p-value over marginals and the joint law of two head reports, corrected.

    Looks at the tokens, at the states at a third of the chain and before its last step, and at
    the sums of log standard deviations. Half of the level goes to the joint laws, whose p-values
    are no smaller than the number of permutations allows.
    """
    rng, steps = np.random.default_rng(seed), len(first.trajectory) - 1
    marginal, joint = [], []
    for index in {0, min(1, steps), steps // 3}:
        a, b = first.trajectory[index], second.trajectory[index]
        marginal += [stats.ks_2samp(a[:, c], b[:, c]).pvalue for c in range(a.shape[1])]
        marginal.append(stats.ks_2samp((a**2).sum(axis=1), (b**2).sum(axis=1)).pvalue)
        joint.append(energy_p_value(a, b, rng))
    if steps > 1:
        a, b = first.sum_log_std.sum(axis=1), second.sum_log_std.sum(axis=1)
        marginal.append(stats.ks_2samp(a, b).pvalue)
    return min(1.0, 2 * min(holm_smallest(marginal), holm_smallest(joint)))
