"""The search: cheap rounds that sort out, then a test on images that nobody has chosen by.

1. Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): in each round every setting that
   is left has twice the images. One that is worse than the margin for certain goes, and so does
   one that is not faster than the baseline; of the others the faster half stays, the rest waits.
2. Settings are then tested from the fastest on: is the drop less than the margin? On images of
   another seed, because those of the rounds were chosen by. At most `TRIES` are tested, each at
   `error / TRIES`, so the chance that a setting is taken although it is worse by more than the
   margin is at most `error` (Bonferroni). Those that waited are tested where the others failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

from ..metrics.halves import Estimate
from .candidates import Candidate

FIRST_IMAGES = 32
TRIES = 3
# One-sided level at which a setting is sorted out in a round: it costs power, not truth.
SCREENING = 0.02
# A setting must take less than this share of the baseline's time.
FASTER = 0.98


@dataclass(frozen=True)
class Measured:
    """A setting after so many images.

    Attributes:
        drop: how much worse than the baseline it is, in the feature space where that is most.
        seconds: an image.
        baseline_seconds: an image of the baseline.
        images: of each.
    """

    drop: Estimate
    seconds: float
    baseline_seconds: float
    images: int

    def above(self, level: float) -> float:
        """End of the one-sided interval of the drop from above."""
        return self.drop.value + NormalDist().inv_cdf(1 - level) * self.drop.error

    def below(self, level: float) -> float:
        """End of the one-sided interval of the drop from below."""
        return self.drop.value - NormalDist().inv_cdf(1 - level) * self.drop.error

    @property
    def faster(self) -> bool:
        """Whether it is faster than the baseline."""
        return self.seconds < FASTER * self.baseline_seconds


class Bench(Protocol):
    """Makes images and measures settings."""

    def measure(self, candidate: Candidate, images: int, *, fresh: bool) -> Measured:
        """Measure a setting against the baseline.

        Args:
            candidate: the setting.
            images: of each in all; those that are there already count.
            fresh: of the seed that nothing was chosen by.

        Raises:
            OutOfTimeError: the budget is spent.
        """
        ...


class OutOfTimeError(Exception):
    """The budget is spent."""


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        candidate: the fastest that passed, or None.
        measured: of its test.
        tested: settings that were tested, with what came of it, in order.
        looked_at: settings in all.
        complete: whether the search came to its end within the budget.
    """

    candidate: Candidate | None
    measured: Measured | None
    tested: Sequence[tuple[Candidate, Measured]]
    looked_at: int
    complete: bool


def search(
    bench: Bench, settings: Sequence[Candidate], *, margin: float, error: float, most: int,
    report: Callable[[str], None],
) -> Found:  # fmt: skip
    """Search the fastest setting that is not worse than the baseline by more than a margin.

    Args:
        bench: that measures.
        settings: to choose among.
        margin: of the drop.
        error: chance that a setting is taken that is worse by more.
        most: images of each setting in the last round and in the test.
        report: called with a line for each round and test.
    """
    tested: list[tuple[Candidate, Measured]] = []
    try:
        waiting = _halve(bench, settings, margin=margin, most=most, report=report)
        for candidate in waiting[:TRIES]:
            measured = bench.measure(candidate, most, fresh=True)
            tested.append((candidate, measured))
            passed = measured.above(error / TRIES) <= margin and measured.faster
            report(
                f"test of {candidate.name}: drop {measured.drop.value:+.2%}, at most "
                f"{measured.above(error / TRIES):+.2%} of {margin:.2%}, "
                f"{measured.seconds:.3f} of {measured.baseline_seconds:.3f} s an image: "
                f"{'taken' if passed else 'not taken'}"
            )
            if passed:
                return Found(candidate, measured, tested, len(settings), True)
    except OutOfTimeError:
        return Found(None, None, tested, len(settings), False)
    return Found(None, None, tested, len(settings), True)


def _halve(
    bench: Bench, settings: Sequence[Candidate], *, margin: float, most: int,
    report: Callable[[str], None],
) -> list[Candidate]:  # fmt: skip
    """Return the settings that are worth a test, in the order in which they are tested."""
    left, images = [*settings], FIRST_IMAGES
    waiting: list[tuple[float, Candidate]] = []
    while left:
        images = min(images, most)
        measured = [(bench.measure(one, images, fresh=False), one) for one in left]
        kept: list[tuple[float, Candidate]] = [
            (found.seconds, one)
            for found, one in measured
            if found.faster and found.below(SCREENING) <= margin
        ]
        kept.sort(key=_seconds)
        report(
            f"{images} images: {len(kept)} of {len(left)} settings are faster and may be within "
            f"{margin:.2%}" + (f", the fastest {kept[0][1].name}" if kept else "")
        )
        if images == most:
            return [one for _, one in kept] + [one for _, one in sorted(waiting, key=_seconds)]
        half = max(TRIES, math.ceil(len(kept) / 2))
        waiting += kept[half:]
        left, images = [one for _, one in kept[:half]], 2 * images
    return [one for _, one in sorted(waiting, key=_seconds)]


def _seconds(item: tuple[float, Candidate]) -> float:
    return item[0]
