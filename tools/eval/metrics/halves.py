"""Intervals by half-samples: random halves without replacement, in place of draws with it.

A half of a set of n has, around the whole set's value, the variance that a fresh set of n has
around the truth: `(1/m)(1 - m/n)` of one image's is `1/n` at m = n/2 (Politis, Romano and Wolf,
"Subsampling", 1999, chapter 2). A bootstrap that draws with replacement has images twice, which
spoils distances to nearest neighbours and the unbiased kernel distance; halves have none. What a
metric is biased by in a set half as large is taken out: the interval lies around the value of the
whole set as the halves' values lie around their own mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Masks = NDArray[np.bool_]

REPLICATES = 200
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value with what halves of its sets give.

    Attributes:
        value: of the whole sets.
        replicates: of halves, `[R]`.
    """

    value: float
    replicates: Float

    @property
    def deviations(self) -> Float:
        """How the halves' values lie around their mean, `[R]`."""
        return self.replicates - self.replicates.mean()

    @property
    def error(self) -> float:
        """Standard error."""
        return float(self.deviations.std(ddof=1))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Two-sided interval."""
        low, high = np.quantile(self.deviations, [(1 - level) / 2, (1 + level) / 2])
        return self.value + float(low), self.value + float(high)

    def minus(self, other: Estimate) -> Estimate:
        """The difference of two values whose halves belong together."""
        return Estimate(self.value - other.value, self.deviations - other.deviations)

    def over(self, scale: float) -> Estimate:
        """The value in units of `scale`."""
        return Estimate(self.value / scale, self.replicates / scale)


def halves(
    labels: NDArray[np.int64] | None, count: int, seed: int, replicates: int = REPLICATES
) -> Masks:
    """Random halves of a set, `[R, N]`; of each class as near a half as its number allows.

    Args:
        labels: classes `[N]`, or None where there are none.
        count: N.
        seed: of the halves. Sets whose images belong together in pairs get one seed.
        replicates: R, an even number: with each half goes the other one.
    """
    rng = np.random.default_rng((seed, count))
    masks = np.zeros((replicates, count), dtype=np.bool_)
    classes = np.zeros(count, dtype=np.int64) if labels is None else labels
    for place in range(0, replicates, 2):
        order = np.lexsort((rng.random(count), classes))
        masks[place, order[::2]] = True
        masks[place + 1] = ~masks[place]
    return masks
