"""Slopes of transitions, `d x_{i-1} / d x_i`, learned while the parallel sampler iterates.

Every sweep evaluates the network near where it was evaluated before, and the difference says what
the slope is in that direction. Broyden's update is the smallest change of a slope that explains it:

    slope += d^T (dmean - d slope) / |d|^2,    d = x - x_old (a row), dmean = mean - mean_old
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import Float32, Int64
from .schedule import HeadSchedule

# Moves of less than this squared share of x are of the size of its rounding and teach nothing;
# plugins/kernels/head.cpp has the same number.
ROUNDING = np.float32(1e-10)
# Slopes take S N C^2 numbers; more tokens than have so many are sampled one part after another.
MOST_NUMBERS = 1 << 26


@dataclass(frozen=True, eq=False)
class Slopes:
    """Slopes of N chains.

    Attributes:
        value: `[S, N, C, C]`; row vectors times it.
        x: where every head step was evaluated last, `[S, N, C]`; not a number before the first.
        mean: what that gave, likewise.
    """

    value: Float32
    x: Float32
    mean: Float32

    @classmethod
    def of(
        cls, schedule: HeadSchedule, jacobian: Float32 | None, tokens: int, channels: int
    ) -> Slopes:
        """Start from `J = d x0hat_i / d x_i`, `[S, C, C]`; None is 0."""
        steps, identity = schedule.steps, np.eye(channels, dtype=np.float32)
        coef_x0, coef_x = schedule.mean_coefficients
        first = coef_x[:, None] * identity
        if jacobian is not None:
            first = first + coef_x0[:, None] * jacobian
        value = np.empty((steps, tokens, channels, channels), dtype=np.float32)
        value[:] = first[:, None]
        unknown = np.full((steps, tokens, channels), np.nan, dtype=np.float32)
        return cls(value, unknown, unknown.copy())

    def improve(self, step: Int64, token: Int64, x: Float32, mean: Float32) -> None:
        """Learn from evaluations at `x [R, C]` that gave `mean [R, C]`."""
        places = step, token
        moved = x - self.x[places]
        square = np.square(moved).sum(axis=1)
        told = np.flatnonzero(square > ROUNDING * np.square(x).sum(axis=1))
        where, along = (step[told], token[told]), moved[told]
        missed = mean[told] - self.mean[where]
        missed -= np.matmul(along[:, None], self.value[where])[:, 0]
        self.value[where] += (along / square[told, None])[..., None] * missed[:, None]
        self.x[places], self.mean[places] = x, mean


def tokens_at_once(steps: int, channels: int) -> int:
    """How many tokens' slopes fit in `MOST_NUMBERS`, at least one."""
    return max(1, MOST_NUMBERS // (steps * channels * channels))
