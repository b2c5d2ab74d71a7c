"""When the whole backbone is computed: a fixed period, or one that follows a measured error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ...options import FULL_FIRST

# The automatic period grows where the error is at most this share of the tolerance.
GROWS_BELOW = 0.5


class Period(Protocol):
    """Decides between full and local steps of one model over one batch of images."""

    def full(self, step: int, local: int) -> bool:
        """Whether a call is a full step.

        Args:
            step: the first AR step that it predicts.
            local: local steps since the last full one.
        """
        ...

    def measures(self, step: int) -> bool:
        """Whether a full step also measures what a local one would have given."""
        ...

    def observe(self, error: float) -> None:
        """Take the error measured at a full step, the largest of the images'."""
        ...


@dataclass(frozen=True)
class FixedPeriod:
    """The first AR steps are full, then every `period`-th call is."""

    period: int
    first: int = FULL_FIRST

    def full(self, step: int, local: int) -> bool:
        """See `Period.full`."""
        return step < self.first or local + 1 >= self.period

    def measures(self, step: int) -> bool:
        """See `Period.measures`: never."""
        del step
        return False

    def observe(self, error: float) -> None:
        """See `Period.observe`."""
        del error


@dataclass
class AutoPeriod:
    """A period that grows by one where the error is small, and is halved where it is too large.

    The error is seen after the local steps that it is of: it is kept near the tolerance, not below
    it at every step.

    Attributes:
        tolerance: largest error that is wanted, in units of the tokens.
        first: AR steps that are full whatever the error, and where none is measured.
        period: at first every step is full.
    """

    tolerance: float
    first: int = FULL_FIRST
    period: int = 1

    def full(self, step: int, local: int) -> bool:
        """See `Period.full`."""
        return step < self.first or local + 1 >= self.period

    def measures(self, step: int) -> bool:
        """See `Period.measures`: wherever a step may be local."""
        return step >= self.first

    def observe(self, error: float) -> None:
        """See `Period.observe`."""
        if error > self.tolerance:
            self.period = max(1, self.period // 2)
        elif error <= GROWS_BELOW * self.tolerance:
            self.period += 1


def period_of(refresh: int | tuple[int, int] | str, tolerance: float) -> Period:
    """Return the period of an option `refresh`; see `csd.runtime.options.GenerateOptions`."""
    if isinstance(refresh, str):
        return AutoPeriod(tolerance)
    return FixedPeriod(*refresh) if isinstance(refresh, tuple) else FixedPeriod(refresh)
