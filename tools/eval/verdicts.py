"""What a difference says, and how large one has to be to be seen."""

from __future__ import annotations

from dataclasses import dataclass

from .judge import Metric
from .metrics.halves import LEVEL, Estimate

# Standard errors: of a two-sided test at 5 %, and of a power of 80 % besides.
_TWO_SIDED, _POWER = 1.96, 0.84
# Of a one-sided test at 5 %.
ONE_SIDED = 0.90
BETTER, WORSE, NOT_SEEN = "better", "worse", "no difference seen"


@dataclass(frozen=True)
class Verdict:
    """What is said of a difference.

    Attributes:
        word: `better`, `worse` or `no difference seen`.
        difference: candidate less baseline.
        low, high: its interval.
        smallest: difference that so many images would show in 4 of 5 trials.
        count: images.
    """

    word: str
    difference: float
    low: float
    high: float
    smallest: float
    count: int

    def text(self, metric: Metric) -> str:
        """The verdict as a sentence of a table."""
        if self.word != NOT_SEEN:
            return self.word
        return f"{NOT_SEEN} at n = {self.count} (would see {metric.shown(self.smallest).strip()})"


def verdict(metric: Metric, difference: Estimate, count: int) -> Verdict:
    """Judge a difference, candidate less baseline, of `count` images each."""
    low, high = difference.interval(LEVEL)
    word = NOT_SEEN
    if low > 0 or high < 0:
        word = WORSE if (low > 0) == metric.lower else BETTER
    smallest = (_TWO_SIDED + _POWER) * difference.error
    return Verdict(word, difference.value, low, high, smallest, count)


@dataclass(frozen=True)
class Drop:
    """How much worse a candidate is, and what that means for a margin.

    Attributes:
        drop: how much worse, in the metric's own unit; below 0 is better.
        low, high: its interval, each end of a one-sided test at 5 %.
        margin: that is allowed.
        needed: images that would be enough to tell, about.
    """

    drop: float
    low: float
    high: float
    margin: float
    needed: int

    @property
    def holds(self) -> bool | None:
        """Whether the candidate is within the margin; None where so few images cannot tell."""
        if self.high <= self.margin:
            return True
        return False if self.low > self.margin else None


def drop_of(metric: Metric, difference: Estimate, margin: float, count: int) -> Drop:
    """Hold a difference, candidate less baseline, against a margin (a test of non-inferiority)."""
    worse = difference if metric.lower else difference.over(-1)
    low, high = worse.interval(ONE_SIDED)
    room = abs(margin - worse.value)
    wide = (high - low) / 2
    needed = count if wide <= room else round(count * (wide / max(room, 1e-9)) ** 2)
    return Drop(worse.value, low, high, margin, min(needed, 10**9))
