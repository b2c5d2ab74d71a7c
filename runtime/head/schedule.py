"""The reverse transitions of a diffusion head, in float32 for the hot path."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..arrays import Float32, Int64
from ..schedule import DiffusionTables, diffusion_tables


class Transition(NamedTuple):
    """One reverse transition of R rows, each `[R, C]` float32."""

    mean: Float32
    log_std: Float32
    x0hat: Float32


class HeadSchedule:
    """S head steps of a respaced beta schedule; index i = S-1 is first, i = 0 last.

    Build one with `HeadSchedule.cosine(steps=100)` or `HeadSchedule.linear(steps=100)`.

    Args:
        tables: float64 coefficients; see `csd.runtime.schedule`.
    """

    def __init__(self, tables: DiffusionTables) -> None:
        self.tables = tables
        columns = [
            tables.recip,
            tables.recipm1,
            tables.coef_x0,
            tables.coef_x,
            # logvar / 2 = (log_beta + log_posterior)/4 + v (log_beta - log_posterior)/4
            (tables.log_beta + tables.log_posterior) / 4,
            (tables.log_beta - tables.log_posterior) / 4,
        ]
        # [S, 1] each: indexing with [R] gives [R, 1], with a number [1]; both broadcast on [R, C].
        self._columns = [column.astype(np.float32)[:, None] for column in columns]

    @classmethod
    def cosine(cls, steps: int = 100) -> HeadSchedule:
        """MAR's cosine schedule respaced to `steps`.

        Raises:
            OptionError: `steps` is no whole number from 1 to 1000.
        """
        return cls(diffusion_tables("cosine", steps))

    @classmethod
    def linear(cls, steps: int = 100) -> HeadSchedule:
        """The linear schedule respaced to `steps`.

        Raises:
            OptionError: `steps` is no whole number from 1 to 1000.
        """
        return cls(diffusion_tables("linear", steps))

    @property
    def columns(self) -> list[Float32]:
        """`recip, recipm1, coef_x0, coef_x` and base and slope of the log std, `[S, 1]` each."""
        return self._columns

    @property
    def steps(self) -> int:
        """Number S of head steps."""
        return self.tables.steps

    @property
    def timesteps(self) -> Int64:
        """Training timestep of each head step, `[S]` in 0..999."""
        return self.tables.timesteps

    @property
    def mean_coefficients(self) -> tuple[Float32, Float32]:
        """Weights of x0hat and of x in a transition's mean, `[S, 1]` each."""
        return self._columns[2], self._columns[3]

    def log_std(self, v: Float32, step: Int64 | int) -> Float32:
        """Log standard deviation of transitions with variance share `v [..., C]`."""
        return self._columns[4][step] + self._columns[5][step] * v

    def transition(self, x: Float32, eps: Float32, v: Float32, step: Int64 | int) -> Transition:
        """Return mean, log std and x0hat of `p(x_{i-1} | x_i)`.

        Args:
            x: states `[R, C]`.
            eps: predicted noise `[R, C]`, guidance applied.
            v: predicted variance share `[R, C]`.
            step: head step i of every row, or `[R]`.
        """
        recip, recipm1 = self._columns[0][step], self._columns[1][step]
        return self.from_x0hat(x, recip * x - recipm1 * eps, v, step)

    def from_x0hat(self, x: Float32, x0hat: Float32, v: Float32, step: Int64 | int) -> Transition:
        """As `transition`, from the predicted clean token in place of the predicted noise."""
        coef_x0, coef_x = self._columns[2][step], self._columns[3][step]
        return Transition(coef_x0 * x0hat + coef_x * x, self.log_std(v, step), x0hat)
