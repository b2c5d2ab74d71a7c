"""Slopes of transitions, `d x_{i-1} / d x_i`, learned while the parallel sampler iterates.

Every sweep evaluates the network near where it was evaluated before, and the difference says what
the slope is in that direction. Broyden's update is the smallest change of a slope that explains it:

    slope += d^T (dmean - d slope) / |d|^2,    d = x - x_old (a row), dmean = mean - mean_old
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .schedule import Float32, HeadSchedule, Int64

# Moves of less than this squared share of x are of the size of its rounding and teach nothing;
# plugins/kernels/head.cpp has the same number.
ROUNDING = np.float32(1e-10)
# A slope for each token takes S N C^2 numbers; beyond this many all tokens share the first guess.
MOST_NUMBERS = 1 << 26


@dataclass(frozen=True, eq=False)
class Slopes:
    """Slopes of N chains.

    Attributes:
        value: of every token, `[S, N, C, C]`; or of all, `[S, 1, C, C]`, and nothing is learned.
            Row vectors times it.
        learned: `(x, mean)` of the last evaluation of every state, `[S, N, C]` each, not a number
            before the first; None where nothing is learned.
    """

    value: Float32
    learned: tuple[Float32, Float32] | None

    @classmethod
    def of(
        cls, schedule: HeadSchedule, jacobian: Float32 | None, tokens: int, channels: int
    ) -> Slopes:
        """Start from `J = d x0hat_i / d x_i`, `[S, C, C]`; None is 0."""
        steps, identity = schedule.steps, np.eye(channels, dtype=np.float32)
        coef_x0, coef_x = schedule.mean_coefficients
        value = coef_x[:, None, None] * identity[None, None]
        if jacobian is not None:
            value = value + coef_x0[:, None, None] * jacobian[:, None]
        shape = steps, tokens, channels, channels
        if np.prod(shape) > MOST_NUMBERS:
            return cls(value.astype(np.float32), None)
        unknown = np.full(shape[:3], np.nan, dtype=np.float32)
        everyone = np.broadcast_to(value, shape).astype(np.float32)
        return cls(everyone, (unknown, unknown.copy()))

    def improve(self, step: Int64, token: Int64, x: Float32, mean: Float32) -> None:
        """Learn from evaluations at `x [R, C]` that gave `mean [R, C]`."""
        if self.learned is None:
            return
        places = step, token
        old_x, old_mean = self.learned
        moved = x - old_x[places]
        square = np.square(moved).sum(axis=1)
        told = np.flatnonzero(square > ROUNDING * np.square(x).sum(axis=1))
        where, along = (step[told], token[told]), moved[told]
        missed = mean[told] - old_mean[where]
        missed -= np.matmul(along[:, None], self.value[where])[:, 0]
        self.value[where] += (along / square[told, None])[..., None] * missed[:, None]
        old_x[places], old_mean[places] = x, mean

    def at(self, step: Int64, token: Int64) -> Float32:
        """Slopes at head steps `step [n, K]` of tokens `token [n, 1]`, `[n, K, C, C]`."""
        return self.value[step, token if self.learned is not None else 0]
