"""Measures settings of a bundle, with runs of the database: a search that ended goes on there."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ....export.progress import OnStep
from ....runtime.session import Session
from ....runtime.spread.sessions import OneSession
from ...quality import balanced_labels
from ..compare import SEARCHES, compare
from ..images.generate import Features, about_run, make_images, settings_of
from ..images.real import RealImages
from ..judge import LEAD, METRICS
from ..metrics.halves import Estimate
from ..report.values import lead_name
from ..store.runs import Run, add_run
from .candidates import Candidate
from .search import Measured, OutOfTimeError

# Timed runs of baseline and setting, in turns.
TIMINGS = 5


@dataclass
class SessionBench:
    """A `search.Bench` of sessions.

    Args:
        connection: to the database.
        sessions: of the bundle, by precision.
        baseline: what others are compared with.
        prefix: of the names of runs.
        seed: of the rounds; the test's is one more.
        batch: images of a call.
        features: feature spaces.
        real: real images, or None.
        real_count: of the reference.
        step: shows progress.
        ends: when the budget is spent, `time.monotonic`, or None.
        metric: what was compared in the leading space; known once something was.
    """

    connection: sqlite3.Connection
    sessions: Mapping[str | None, Session]
    baseline: Candidate
    prefix: str
    seed: int
    batch: int
    features: Sequence[Features]
    real: RealImages | None
    real_count: int
    step: OnStep
    ends: float | None
    metric: str = ""

    def measure(self, candidate: Candidate, images: int, *, fresh: bool) -> Measured:
        """See `search.Bench.measure`."""
        baseline, run = (self._made(one, images, fresh) for one in (self.baseline, candidate))
        comparison = compare(
            self.connection, [baseline, run], [], self.features, self.real, most=images,
            real_count=self.real_count, names=(LEAD, "accuracy"), tests=False, step=_unseen,
        )  # fmt: skip
        first, second = comparison.rows
        drops: list[Estimate] = []
        for title in first.spaces:
            name = lead_name(first, title)
            mine, theirs = (row.spaces[title].figures.need(name) for row in (second, first))
            difference = mine.minus(theirs)
            drops.append(difference if METRICS[name].lower else difference.over(-1))
            self.metric = self.metric or f"{METRICS[name].title}, {title}"
        worst = max(drops, key=lambda drop: drop.value)
        if not fresh:
            return Measured(worst, second.seconds, first.seconds, comparison.count)
        seconds = self._timed(candidate)
        return Measured(worst, seconds[1], seconds[0], comparison.count)

    def _timed(self, candidate: Candidate) -> tuple[float, float]:
        """Seconds an image of the baseline and of a setting, in turns: medians.

        Those of their runs were measured at different times, beside who knows what.
        """
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(TIMINGS):
            for one, found in zip((self.baseline, candidate), seconds, strict=True):
                if self.spent():
                    raise OutOfTimeError
                session = self.sessions[one.precision]
                classes = session.bundle.manifest.target.class_num
                labels = balanced_labels(self.batch, classes)
                stats = session.generate(labels, one.options, seed=self.seed).stats
                found.append(stats.taken / self.batch)
        first, second = (float(np.median(found)) for found in seconds)
        return first, second

    def _made(self, candidate: Candidate, images: int, fresh: bool) -> Run:
        """The run of a setting, with as many images as are wanted."""
        session = self.sessions[candidate.precision]
        seed = self.seed + fresh
        settings = settings_of(
            session, candidate.options, seed=seed, batch=self.batch, precision=candidate.precision
        )
        name = f"{SEARCHES}{self.prefix}/{'test' if fresh else 'round'}/{candidate.name}"
        run = add_run(self.connection, name, settings, about_run(session))
        if self.spent():
            raise OutOfTimeError
        make_images(
            self.connection, OneSession(session), run, images, features=self.features,
            step=self.step, until=self.spent,
        )  # fmt: skip
        if self.spent():
            raise OutOfTimeError
        return run

    def spent(self) -> bool:
        """Whether the budget is spent."""
        return self.ends is not None and time.monotonic() >= self.ends


def _unseen(phase: str, done: int, total: int) -> None:
    del phase, done, total
