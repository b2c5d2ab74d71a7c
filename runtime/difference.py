"""How far two arrays are apart, where a value that is not finite is infinitely far.

Comparisons with NaN are false, and the maximum of NaN and a number may be either: nothing here
leaves what is not finite to them, on either side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """Largest differences; infinite where one side has a value that is not finite.

    Attributes:
        absolute: of two numbers.
        relative: the same as a share of the largest wanted number.
        share: the same as a share of the largest wanted number, or of 1 where that is smaller.
    """

    absolute: float = 0.0
    relative: float = 0.0
    share: float = 0.0

    @classmethod
    def of(cls, made: NDArray[Any], wanted: NDArray[Any]) -> Difference:
        """Compare two arrays of one shape, of any number type, in float64.

        Raises:
            ValueError: their shapes differ.
        """
        if made.shape != wanted.shape:
            raise ValueError(f"shape {list(made.shape)}, wanted {list(wanted.shape)}")
        made, wanted = made.astype(np.float64), wanted.astype(np.float64)
        if not (np.isfinite(made).all() and np.isfinite(wanted).all()):
            return cls(math.inf, math.inf, math.inf)
        largest = float(np.abs(made - wanted).max(initial=0))
        scale = float(np.abs(wanted).max(initial=0))
        return cls(largest, largest / max(scale, 1e-12), largest / max(scale, 1.0))

    def or_worse(self, other: Difference) -> Difference:
        """Return the larger of each figure; none is ever NaN."""
        return Difference(
            max(self.absolute, other.absolute),
            max(self.relative, other.relative),
            max(self.share, other.share),
        )
