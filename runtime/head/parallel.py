"""The parallel sampler: the sequential chain's own sample, solved for all head steps at once.

For given noise the chain `x_{i-1} = mean_i(x_i) + std_i(x_i) n_i` is a deterministic recursion. A
sweep evaluates the network at all states of a trajectory in one batch and runs the recursion with
the outputs corrected linearly,

    x0hat_i(x) = x0hat_i(x_old) + (x - x_old) J_i,    std_i(x) = std_i(x_old),

a quasi-Newton step, whose J_i every token improves with every sweep (`slopes`). The first
transition of a sweep is exact, because its state does not move, so k sweeps settle at least k
transitions and the iteration ends. Relatives: ParaDiGMS (arXiv 2305.16317), ParaTAA (arXiv
2402.09970), DEER (arXiv 2309.12252).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..arguments import number_from_zero, whole_number_from
from ..arrays import Float32, Int64
from ..errors import OptionError
from . import native
from .draft import AffineDraft, Rollout
from .request import Evaluate, HeadNoise, HeadReport, HeadRequest, evaluated
from .sampler import ChainSampler
from .schedule import HeadSchedule
from .slopes import Slopes, tokens_at_once


class _Drive:
    """The noise term of transitions, computed as the sequential sampler does."""

    def __init__(self, per_step: Float32, temperature: float) -> None:
        self._normals = per_step.copy()
        self._normals[:, 0] = 0  # the last head step draws nothing
        self._temperature = np.float32(temperature)

    def __call__(self, std: Float32, token: Int64 | slice, index: Int64 | int) -> Float32:
        return self._temperature * std * self._normals[token, index]


class ParallelSampler(ChainSampler):
    """The sequential sample within a tolerance, in a few batched sweeps.

    Args:
        schedule: the head schedule.
        tolerance: a transition is settled once the state before it has moved by no more than this
            share of its step's standard deviation since it was evaluated; 0 is exact.
        jacobian: first guess of `J [S, C, C]`; None is 0. A wrong one only costs sweeps.
        window: transitions in a sweep at most; None is all.
        draft: fitted predictor whose drafted chain starts the iteration when no trajectory is
            given; its Jacobian is used unless one is given.

    Raises:
        OptionError: the tolerance is negative, the window below 1, one is of another type, or
            `jacobian` has another shape.
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
        tolerance = number_from_zero("tolerance", tolerance)
        if window is not None:
            window = whole_number_from("window", window, 1)
        if jacobian is None and draft is not None:
            jacobian = draft.jacobian
        if jacobian is not None and (jacobian.ndim != 3 or len(jacobian) != schedule.steps):
            raise OptionError(f"jacobian is {jacobian.shape}, not [{schedule.steps}, C, C]")
        super().__init__(schedule)
        self.tolerance = tolerance
        self.draft = draft
        self._jacobian = jacobian
        self._window = min(window or schedule.steps, schedule.steps)

    @property
    def largest_window(self) -> int:
        """Rows of a token in one evaluation at most."""
        return self._window

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
            OptionError: neither `rng` nor `noise` is given, a value is of another type or out of
                range, or shapes do not fit.
        """
        request = HeadRequest.drawn(
            self.schedule, n_tokens, channels, rng, temperature, noise, start=start
        )
        report = self.run(evaluate, request)
        return report.mean, report

    def _compiled(self, evaluate: Evaluate, request: HeadRequest) -> HeadReport:
        def drafted(part: HeadRequest) -> Float32:
            return native.drafted_trajectory(
                self.schedule, self._draft_for(part), part.noise, part.temperature
            )

        def iterate(network: Evaluate, part: HeadRequest, states: Float32) -> HeadReport:
            return native.iterate(
                self.schedule, self._window, self.tolerance, self._slopes(part), network,
                part.noise, states, part.temperature,
            )  # fmt: skip

        return self._in_parts(evaluate, request, drafted, iterate)

    def _plain(self, evaluate: Evaluate, request: HeadRequest) -> HeadReport:
        return self._in_parts(evaluate, request, self._drafted, self._iterate)

    def _in_parts(
        self,
        evaluate: Evaluate,
        request: HeadRequest,
        drafted: Callable[[HeadRequest], Float32],
        iterate: Callable[[Evaluate, HeadRequest, Float32], HeadReport],
    ) -> HeadReport:
        """Sample as many tokens at once as their slopes allow."""
        count, steps = len(request), self.schedule.steps
        size = tokens_at_once(steps, request.channels)
        parts: list[HeadReport] = []
        for first in range(0, max(1, count), size):
            part = request[first : first + size] if count > size else request
            if part.start is None:
                states = drafted(part)
            else:
                states = np.array(part.start, dtype=np.float32, order="C")
                states[steps] = part.noise[0]
            network = _shifted(evaluate, first) if count > size else evaluate
            parts.append(iterate(network, part, states))
        return HeadReport.joined(parts)

    def _draft_for(self, request: HeadRequest) -> AffineDraft:
        return self.draft or AffineDraft.frozen(self.schedule.steps, request.channels)

    def _slopes(self, request: HeadRequest) -> Slopes:
        return Slopes.of(self.schedule, self._jacobian, len(request), request.channels)

    def _iterate(self, evaluate: Evaluate, request: HeadRequest, states: Float32) -> HeadReport:
        """Sweep until every chain is settled; `states [S + 1, N, C]` are overwritten."""
        (initial, per_step), n_tokens, steps = request.noise, len(request), self.schedule.steps
        slopes, temperature = self._slopes(request), request.temperature
        drive = _Drive(per_step, temperature)
        index = np.full(n_tokens, steps - 1, dtype=np.int64)
        rounds = np.zeros(n_tokens, dtype=np.int64)
        sum_log_std, std = np.zeros_like(initial), np.zeros_like(initial)
        rows = calls = 0
        while (active := np.flatnonzero(index >= 0)).size:
            log_std, settled, count = self._sweep(
                evaluate, states, slopes, drive, index[active], active
            )
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
        return HeadReport(
            rounds=rounds,
            row_evaluations=rows,
            evaluations=calls,
            mean=states[0].copy(),
            std=std,
            sum_log_std=sum_log_std,
            trajectory=states,
            noise=request.noise,
        )

    def _sweep(
        self,
        evaluate: Evaluate,
        states: Float32,
        slopes: Slopes,
        drive: _Drive,
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
        transition, _ = evaluated(
            self.schedule, evaluate, before[rows, columns], places[rows, columns], active[rows]
        )
        slopes.improve(places[rows, columns], active[rows], before[rows, columns], transition.mean)
        old_mean, log_std = np.zeros_like(before), np.zeros_like(before)
        old_mean[rows, columns] = transition.mean
        log_std[rows, columns] = transition.log_std
        std = np.exp(log_std)
        fixed = old_mean + drive(std, active[:, None], places)
        after = _recursion(before, fixed, slopes.value[places, active[:, None]])
        moved = np.abs(after - states[places, active[:, None]]) <= self.tolerance * std
        states[places[rows, columns], active[rows]] = after[rows, columns]

        # Transition j is settled if no state before it has moved since it was evaluated.
        still = moved.all(axis=2) & valid
        still = np.concatenate([np.ones_like(still[:, :1]), still[:, :-1]], axis=1) & valid
        settled = np.where(still.all(axis=1), width, np.argmin(still, axis=1))
        return log_std, settled, len(rows)

    def _drafted(self, request: HeadRequest) -> Float32:
        """A chain drafted without the network, `[S + 1, N, C]`."""
        (initial, per_step), draft = request.noise, self._draft_for(request)
        steps, count = self.schedule.steps, len(request)
        index = np.broadcast_to(np.arange(steps - 1, -1, -1), (count, steps))
        normals = per_step[:, ::-1].copy()
        normals[:, -1] = 0  # the last head step draws nothing
        path, _, _ = Rollout(self.schedule, draft)(
            index, initial, *draft.first(initial), normals, request.temperature
        )
        return np.ascontiguousarray(path.transpose(1, 0, 2)[::-1])


def _shifted(evaluate: Evaluate, first: int) -> Evaluate:
    """The network for tokens from `first` on, which are numbered from 0."""
    return lambda x, step, token: evaluate(x, step, token + first)


def _recursion(before: Float32, fixed: Float32, slopes: Float32) -> Float32:
    """Run `x' = fixed + (x - before) slope` through a window, `[n, K, C]` each.

    `fixed` is where the old states lead, noise included; the first state has not moved.
    """
    out = np.empty_like(fixed)
    x = before[:, 0]
    for j in range(fixed.shape[1]):
        out[:, j] = fixed[:, j] + np.matmul((x - before[:, j])[:, None], slopes[:, j])[:, 0]
        x = out[:, j]
    return out
