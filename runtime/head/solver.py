"""A solver of the head's differential equation: few evaluations, and no noise but the first.

The chain of head steps is one way from noise to a token; the probability-flow equation of the same
diffusion is another, which has the same marginals and draws nothing on its way. Its exact solution
between two half log signal-to-noise ratios `lambda = log(alpha/sigma)` is an integral of the
predicted clean token, which DPM-Solver++ (Lu et al., arXiv 2211.01095) expands in lambda. This is
its single-step form of order 3 as eMIGM's released code calls it: steps of equal length h in
lambda, of 3 evaluations each but the last ones (`step_orders`), at `s`, `s + h/3`, `s + 2h/3` in
order 3, at `s`, `s + h/2` in order 2.

    m_j = (x_j - sigma_j eps_j) / alpha_j
    next x = (sigma_next/sigma_s) x_s + from_first m_s + from_last m_j

so that every evaluation j leads on by one line of three coefficients, from the state and the
prediction at the beginning of its step and its own prediction. The tables are in float64.

| notation | name |
| --- | --- |
| alpha_j, sigma_j | `alpha`, `sigma` |
| sigma_next/sigma_s | `from_state` |
| factors of m_s, m_j | `from_first`, `from_last` |
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arguments import one_of, whole_number_from
from ..arrays import Float32, Float64
from ..errors import NumericsError
from ..schedule import BETA_SCHEDULES, TRAIN_STEPS, training_betas
from .request import Evaluate, HeadNoise, HeadReport, HeadRequest, outputs_of
from .sampler import HeadSampler

# Noisier than this there is nothing to solve for: the solver starts here, as the released one.
LEAST_LAMBDA = -5.1


def step_orders(evaluations: int) -> list[int]:
    """Return the orders of the solver's steps: 3 as long as it goes, and what is left.

    A multiple of 3 ends with steps of order 2 and 1 in place of a last one of order 3.
    """
    threes, rest = divmod(evaluations, 3)
    return [3] * (threes - 1) + [2, 1] if rest == 0 else [3] * threes + [rest]


@dataclass(frozen=True, eq=False)
class SolverTables:
    """Coefficients of every evaluation, `[S]` float64; index S-1 is first, 0 last.

    Attributes:
        timesteps: training timesteps, mostly between whole ones.
        first: whether a step of the solver begins with the evaluation, bool.
        alpha: see the table at the head of this file, as for all that follow.
        sigma: as above.
        from_state: as above.
        from_first: as above.
        from_last: as above.
    """

    timesteps: Float64
    first: NDArray[np.bool_]
    alpha: Float64
    sigma: Float64
    from_state: Float64
    from_first: Float64
    from_last: Float64


class _Path:
    """The signal of a diffusion along lambda, as the released solver has it.

    Its N states are the training timesteps that are not noisier than `LEAST_LAMBDA`; between two of
    them log alpha is linear in time. The network is told the time of a state as n/N of the training
    steps, though with a noisy end left out that is not quite the one it was trained with.
    """

    def __init__(self, beta_schedule: str) -> None:
        log_alpha = np.cumsum(np.log1p(-training_betas(beta_schedule))) / 2
        self._log_alpha = log_alpha[_lambda(log_alpha) >= LEAST_LAMBDA]
        lambdas = _lambda(self._log_alpha)
        self.ends = float(lambdas[-1]), float(lambdas[0])

    def at(self, lambdas: Float64) -> tuple[Float64, Float64, Float64]:
        """Return training timestep, alpha and sigma."""
        log_alpha = -np.logaddexp(0, -2 * lambdas) / 2
        count = len(self._log_alpha)
        state = np.interp(-log_alpha, -self._log_alpha, np.arange(count))
        return state * (TRAIN_STEPS / count), np.exp(log_alpha), np.exp(log_alpha - lambdas)


def _lambda(log_alpha: Float64) -> Float64:
    return log_alpha - np.log(-np.expm1(2 * log_alpha)) / 2


class _Row(NamedTuple):
    """Where an evaluation is, and what leads on from it; in the order of `SolverTables`."""

    lambda_: float
    first: bool
    from_state: float
    from_first: float
    from_last: float


def solver_tables(beta_schedule: str, evaluations: int) -> SolverTables:
    """Return the tables of a named beta schedule for so many evaluations of the head.

    Raises:
        OptionError: the name is unknown or `evaluations` is not in 1..1000.
    """
    name = one_of("beta schedule", beta_schedule, BETA_SCHEDULES)
    return _solver_tables(name, whole_number_from("head steps", evaluations, 1, TRAIN_STEPS))


@functools.lru_cache(maxsize=64)
def _solver_tables(beta_schedule: str, evaluations: int) -> SolverTables:
    path, orders = _Path(beta_schedule), step_orders(evaluations)
    edges = np.linspace(*path.ends, len(orders) + 1)
    rows = [
        row
        for order, begin, end in zip(orders, edges, edges[1:], strict=False)
        for row in _step(path, order, begin, end)
    ]
    timesteps, alpha, sigma = path.at(np.array([row.lambda_ for row in rows]))
    _, first, from_state, from_first, from_last = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    columns = (timesteps, first, alpha, sigma, from_state, from_first, from_last)
    return SolverTables(*(column[::-1].copy() for column in columns))


def _step(path: _Path, order: int, begin: float, end: float) -> list[_Row]:
    """Evaluations of one step of the solver."""
    places = np.linspace(begin, end, order + 1)
    _, alpha, sigma = path.at(places)
    rows: list[_Row] = []
    for j in range(order):
        span, into = places[j + 1] - begin, float(alpha[j + 1])
        decay = math.expm1(-span)
        kept = float(sigma[j + 1] / sigma[0])
        # What the last prediction has moved by since the step began, as it counts towards the next.
        change = 0.0
        if j > 0 and j + 1 == order == 2:
            change = -into * decay
        elif j > 0:
            change = into * (decay / span + 1) * (j + 1) / j
        rows.append(_Row(places[j], j == 0, kept, -into * decay - change, change))
    return rows


class SolverSchedule:
    """The evaluations of a solver, in float32 for the hot path.

    Args:
        tables: float64 coefficients; see `solver_tables`.
    """

    def __init__(self, tables: SolverTables) -> None:
        self.tables = tables
        # Python's floats: arrays of float32 stay float32 beside them.
        self.rows = [
            (1 / alpha, -sigma / alpha, *rest)
            for alpha, sigma, *rest in zip(
                tables.alpha.tolist(), tables.sigma.tolist(), tables.from_state.tolist(),
                tables.from_first.tolist(), tables.from_last.tolist(), strict=True,
            )
        ]  # fmt: skip

    @classmethod
    def named(cls, beta_schedule: str, steps: int) -> SolverSchedule:
        """The solver of a named beta schedule with `steps` evaluations.

        Raises:
            OptionError: the name is unknown, or `steps` is no whole number from 1 to 1000.
        """
        return cls(solver_tables(beta_schedule, steps))

    @property
    def steps(self) -> int:
        """Number S of evaluations."""
        return len(self.rows)


class SolverSampler(HeadSampler):
    """Tokens by solving: the first noise decides them. They have no density of their own.

    Args:
        schedule: the evaluations.
    """

    def __init__(self, schedule: SolverSchedule) -> None:
        self.schedule = schedule
        self._timesteps = schedule.tables.timesteps.astype(np.float32)

    @property
    def timesteps(self) -> Float32:
        """See `HeadSampler.timesteps`."""
        return self._timesteps

    @property
    def largest_window(self) -> int:
        """See `HeadSampler.largest_window`."""
        return 1

    def sample(
        self,
        evaluate: Evaluate,
        *,
        n_tokens: int,
        channels: int,
        rng: np.random.Generator | None = None,
        noise: HeadNoise | None = None,
    ) -> tuple[Float32, HeadReport]:
        """Draw tokens `[N, C]`.

        Args:
            evaluate: the batched network.
            n_tokens: N.
            channels: C.
            rng: source of the first noise, unless `noise` is given.
            noise: `(initial [N, C], per_step [N, S, C])`; nothing reads the second.

        Raises:
            NumericsError: an output of the network is not finite.
            OptionError: neither `rng` nor `noise` is given, a value is of another type or out of
                range, or shapes do not fit.
        """
        request = HeadRequest.drawn(self.schedule, n_tokens, channels, rng, 1.0, noise)
        report = self.run(evaluate, request)
        return report.mean, report

    def _compiled(self, evaluate: Evaluate, request: HeadRequest) -> HeadReport:
        return self._plain(evaluate, request)  # so few calls leave nothing to gain

    def _plain(self, evaluate: Evaluate, request: HeadRequest) -> HeadReport:
        (initial, _), count, steps = request.noise, len(request), self.schedule.steps
        states = np.empty((steps + 1, *initial.shape), dtype=np.float32)
        states[steps] = initial
        token = np.arange(count, dtype=np.int64)
        begin = clean = initial
        for i in range(steps - 1, -1, -1):
            from_x, from_eps, from_state, from_first, from_last = self.schedule.rows[i]
            x = states[i + 1]
            eps, _ = outputs_of(evaluate, x, np.full(count, i, dtype=np.int64), token)
            with np.errstate(over="ignore", invalid="ignore"):
                last = from_x * x + from_eps * eps
                if self.schedule.tables.first[i]:
                    begin, clean = x, last
                states[i] = from_state * begin + from_first * clean + from_last * last
            if not np.isfinite(states[i]).all():
                raise NumericsError(
                    f"the head's output is not finite at head step {i}: check the weights, or "
                    "lower cfg"
                )
        return HeadReport(
            rounds=np.full(count, steps, dtype=np.int64),
            row_evaluations=steps * count,
            evaluations=steps,
            mean=states[0].copy(),
            std=np.zeros_like(initial),
            sum_log_std=np.zeros_like(initial),
            trajectory=states,
            noise=request.noise,
        )
