"""The parallel sampler: the sequential chain's own sample, solved for all head steps at once.

For given noise the chain `x_{i-1} = mean_i(x_i) + std_i(x_i) n_i` is a deterministic recursion. A
sweep evaluates the network at all states of a trajectory in one batch and runs the recursion with
the outputs corrected linearly,

    x0hat_i(x) = x0hat_i(x_old) + (x - x_old) J_i,

a quasi-Newton step (J = 0 is Picard's). The first transition of a sweep is exact, because its
state does not move, so k sweeps settle at least k transitions and the iteration ends. Relatives:
ParaDiGMS (arXiv 2305.16317), ParaTAA (arXiv 2402.09970), DEER (arXiv 2309.12252).
"""

from __future__ import annotations

import numpy as np

from .draft import AffineDraft
from .sampler import Evaluate, HeadNoise, HeadReport, draw_noise, evaluated
from .schedule import Float32, HeadSchedule, Int64


class ParallelSampler:
    """The sequential sample within a tolerance, in a few batched sweeps.

    Args:
        schedule: the head schedule.
        tolerance: a transition is settled once the state before it has moved by no more than this
            share of its step's standard deviation since it was evaluated; 0 is exact.
        jacobian: `J [S, C, C]`; None is Picard's iteration. A wrong one only costs sweeps.
        window: transitions in a sweep at most; None is all.
        draft: fitted predictor whose drafted chain starts the iteration when no trajectory is
            given; its Jacobian is used unless one is given.

    Raises:
        ValueError: the tolerance is negative, the window below 1, or `jacobian` has another shape.
    """

    def __init__(
        self,
        schedule: HeadSchedule,
        tolerance: float = 1e-2,
        jacobian: Float32 | None = None,
        *,
        window: int | None = None,
        draft: AffineDraft | None = None,
    ) -> None:
        if not tolerance >= 0:
            raise ValueError(f"tolerance is {tolerance}: give 0 or more")
        if window is not None and window < 1:
            raise ValueError(f"window is {window}: give at least 1")
        if jacobian is None and draft is not None:
            jacobian = draft.jacobian
        if jacobian is not None and (jacobian.ndim != 3 or len(jacobian) != schedule.steps):
            raise ValueError(f"jacobian is {jacobian.shape}, not [{schedule.steps}, C, C]")
        self.schedule = schedule
        self.tolerance = tolerance
        self.jacobian = jacobian
        self.draft = draft
        self._window = min(window or schedule.steps, schedule.steps)

    def sample(
        self,
        evaluate: Evaluate,
        *,
        n_tokens: int,
        channels: int,
        rng: np.random.Generator | None = None,
        temperature: float = 1.0,
        noise: HeadNoise | None = None,
        start: Float32 | None = None,
    ) -> tuple[Float32, HeadReport]:
        """Draw tokens `[N, C]`.

        Args:
            evaluate: the batched network.
            n_tokens: N.
            channels: C.
            rng: source of noise, unless `noise` is given.
            temperature: factor of the noise of every step.
            noise: `(initial [N, C], per_step [N, S, C])`, entry i of S for head step i.
            start: trajectory to start from, `[S + 1, N, C]`; entry S is replaced by the noise.

        Raises:
            NumericsError: an output of the network is not finite.
            ValueError: neither `rng` nor `noise` is given, or shapes do not fit.
        """
        steps = self.schedule.steps
        initial, per_step = draw_noise(self.schedule, n_tokens, channels, rng, noise)
        scaled = np.float32(temperature) * per_step
        scaled[:, 0] = 0  # the last head step adds no noise
        if start is None:
            states = self._drafted(initial, scaled)
        else:
            states = np.array(start, dtype=np.float32)
            if states.shape != (steps + 1, n_tokens, channels):
                raise ValueError(f"start is {states.shape}, not {(steps + 1, n_tokens, channels)}")
            states[steps] = initial
        index = np.full(n_tokens, steps - 1, dtype=np.int64)
        rounds = np.zeros(n_tokens, dtype=np.int64)
        sum_log_std, std = np.zeros_like(initial), np.zeros_like(initial)
        rows = calls = 0
        while (active := np.flatnonzero(index >= 0)).size:
            log_std, settled, count = self._sweep(evaluate, states, scaled, index[active], active)
            offsets = np.arange(log_std.shape[1])
            places = index[active, None] - offsets
            counted = (offsets < settled[:, None]) & (places > 0)
            sum_log_std[active] += (log_std * counted[..., None]).sum(axis=1)
            ended = np.flatnonzero(settled > index[active])
            final = log_std[ended, index[active[ended]]]
            std[active[ended]] = np.float32(temperature) * np.exp(final)
            index[active] -= settled
            rounds[active] += 1
            rows += count
            calls += 1
        report = HeadReport(
            rounds=rounds,
            row_evaluations=rows,
            evaluations=calls,
            mean=states[0].copy(),
            std=std,
            sum_log_std=sum_log_std,
            trajectory=states,
            noise=(initial, per_step),
        )
        return report.mean, report

    def _sweep(
        self,
        evaluate: Evaluate,
        states: Float32,
        scaled: Float32,
        index: Int64,
        active: Int64,
    ) -> tuple[Float32, Int64, int]:
        """Evaluate a window of every active chain and run the recursion through it, in place.

        Returns:
            `(log_std [n, K, C], settled [n], rows)`: how many leading transitions are settled.
        """
        width = int(min(self._window, index.max() + 1))
        offsets = np.arange(width)
        places = np.maximum(index[:, None] - offsets, 0)
        valid = offsets <= index[:, None]
        rows, columns = np.nonzero(valid)
        before = states[places + 1, active[:, None]]  # [n, K, C]
        transition, v_rows = evaluated(
            self.schedule, evaluate, before[rows, columns], places[rows, columns], active[rows]
        )
        x0hat, v, log_std = (np.zeros_like(before) for _ in range(3))
        x0hat[rows, columns], v[rows, columns] = transition.x0hat, v_rows
        log_std[rows, columns] = transition.log_std
        std = np.exp(log_std)
        noise = std * scaled[active[:, None], places]

        x, still = before[:, 0], np.ones(len(active), dtype=np.bool_)
        settled = np.zeros(len(active), dtype=np.int64)
        for j in range(width):
            # Transition j is settled if the states before it have not moved.
            settled += still & valid[:, j]
            guess = x0hat[:, j]
            if self.jacobian is not None and j > 0:
                moved = (x - before[:, j])[:, None]
                guess = guess + np.matmul(moved, self.jacobian[places[:, j]])[:, 0]
            mean = self.schedule.from_x0hat(x, guess, v[:, j], places[:, j]).mean
            x = mean + noise[:, j]
            here = valid[:, j]
            old = states[places[here, j], active[here]]
            states[places[here, j], active[here]] = x[here]
            size = np.abs(x[here] - old) <= self.tolerance * std[here, j]
            still[here] &= size.all(axis=1)
        return log_std, settled, len(rows)

    def _drafted(self, initial: Float32, scaled: Float32) -> Float32:
        """Start from a chain drafted without the network, `[S + 1, N, C]`."""
        steps, count = self.schedule.steps, len(initial)
        states = np.empty((steps + 1, *initial.shape), dtype=np.float32)
        states[steps] = x = initial
        x0hat, v = np.zeros_like(initial), np.zeros_like(initial)
        if self.draft is not None:
            x0hat, v = self.draft.first(initial)
        for i in range(steps - 1, -1, -1):
            mean, log_std, _ = self.schedule.from_x0hat(x, x0hat, v, i)
            innovation = np.exp(log_std) * scaled[:, i]
            if self.draft is not None and i > 0:
                step = np.full(count, i, dtype=np.int64)
                x0hat, v = self.draft.move(step, innovation, x, x0hat, v)
            states[i] = x = mean + innovation
        return states
