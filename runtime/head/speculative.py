"""The speculative sampler: the law of the sequential chain in fewer sequential evaluations.

Each round drafts a window of transitions without the network, evaluates the target at all of them
in one batch, and keeps the longest prefix that passes the acceptance test; the first transition
that fails is replaced by a sample of the residual. Every transition is exactly p-distributed,
whatever the drafts are (docs/fast-head.md has the proof).

| notation | here |
| --- | --- |
| K | `width`, the longest window of a round |
| y_0 = x_i, y_1, .., y_K | `drafted.states` |
| q(y_{j+1} given y_j) | `drafted.mean`, `drafted.log_std` |
| p(y_{j+1} given y_j) | `target.mean`, `target.log_std` |
| n_j, u_j | `normals`, `uniforms` at index i - j |

The normals and the uniform of a (token, head step) are drawn once. A drafted transition beyond a
rejection is discarded before anything was decided with its numbers, so the next draft at that head
step may use them again; with per-token streams a token does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...plugins.reference import Density, continue_residual
from ..arguments import numbers_array, whole_number
from ..arrays import Float32, Int64
from ..errors import NumericsError, OptionError
from . import native
from .device import report_of, start_of
from .draft import AffineDraft, Rollout, log_acceptance
from .request import (
    DeviceEvaluate,
    Evaluate,
    HeadNoise,
    HeadReport,
    HeadRequest,
    evaluated,
    log_uniforms_of,
)
from .sampler import ChainSampler
from .schedule import HeadSchedule


class _Drafted(NamedTuple):
    """Proposed transitions of a round, `[n, K(+1 for states), C]`."""

    states: Float32
    mean: Float32
    log_std: Float32


class _Target(NamedTuple):
    """The network's transitions at the proposed states, `[n, K, C]`."""

    mean: Float32
    log_std: Float32
    x0hat: Float32
    v: Float32


@dataclass(eq=False)
class _Chains:
    """All N chains on their way; `index` is the next head step of each, -1 when finished."""

    index: Int64
    x: Float32
    x0hat: Float32
    v: Float32
    states: Float32
    noise: Float32
    sum_log_std: Float32
    mean: Float32
    std: Float32
    rounds: Int64
    rows: int = 0
    calls: int = 0


class SpeculativeSampler(ChainSampler):
    """Exact sampling with drafted transitions.

    Args:
        schedule: the head schedule.
        window: number K of transitions drafted in a round: one number, or one for each head step
            that a round may start at, `[S]`. None takes the draft's own for one token.
        draft: fitted predictor; None freezes the last verified prediction.

    Raises:
        OptionError: the window is below 1, of another type or length, or the draft belongs to
            another number of head steps.
    """

    def __init__(
        self,
        schedule: HeadSchedule,
        window: int | Sequence[int] | Int64 | None = None,
        draft: AffineDraft | None = None,
    ) -> None:
        super().__init__(schedule)
        self.draft = draft
        if draft is not None and draft.steps != schedule.steps:
            raise OptionError(f"the draft has {draft.steps} head steps, not {schedule.steps}")
        if window is None:
            window = (draft or AffineDraft.frozen(schedule.steps, 1)).windows()
        if np.ndim(window) == 0:
            window = whole_number("window", window)
        windows = numbers_array("window", window, np.int64)
        if windows.shape not in ((), (schedule.steps,)):
            raise OptionError(
                f"window is {windows.shape}: give one number, or one for each of "
                f"{schedule.steps} head steps"
            )
        windows = np.broadcast_to(windows, (schedule.steps,))
        if (windows < 1).any():
            raise OptionError(f"window is {windows.min()}: give at least 1")
        # A round that starts at index i has i + 1 transitions left.
        self._windows = np.minimum(windows, np.arange(1, schedule.steps + 1))

    @property
    def windows(self) -> Int64:
        """Window for each head step that a round may start at, `[S]`."""
        return self._windows

    @property
    def largest_window(self) -> int:
        """Rows of a token in one evaluation at most."""
        return int(self._windows.max())

    def sample(
        self,
        evaluate: Evaluate,
        *,
        n_tokens: int,
        channels: int,
        rng: np.random.Generator | None = None,
        temperature: float = 1.0,
        noise: HeadNoise | None = None,
        streams: Sequence[np.random.Generator] | None = None,
    ) -> tuple[Float32, HeadReport]:
        """Draw tokens `[N, C]`.

        Args:
            evaluate: the batched network.
            n_tokens: N.
            channels: C.
            rng: source of all randomness that is not given.
            temperature: factor of the noise of every step.
            noise: `(initial [N, C], per_step [N, S, C])` to draft with.
            streams: a generator for each token, for uniforms and residual draws.

        Raises:
            NumericsError: an output of the network is not finite.
            OptionError: randomness is missing, a value is of another type or out of range, or
                shapes do not fit.
        """
        request = HeadRequest.drawn(
            self.schedule, n_tokens, channels, rng, temperature, noise, streams=streams
        )
        report = self.run(evaluate, request)
        return report.mean, report

    def _on_device(self, evaluate: DeviceEvaluate, request: HeadRequest) -> HeadReport | None:
        made = evaluate.run_rounds(
            lambda: start_of(self.schedule, self.draft, self._windows, request, evaluate.scale)
        )
        return None if made is None else report_of(*made, request.noise[0])

    def _compiled(self, evaluate: Evaluate, request: HeadRequest) -> HeadReport:
        draft, (streams, log_uniforms) = self._draft_for(request), log_uniforms_of(request)
        guess, calls = self._first_guess(evaluate, draft, request)
        report = native.speculate(
            self.schedule, draft, self._windows, evaluate, request.noise, log_uniforms, streams,
            request.temperature, guess,
        )  # fmt: skip
        return report.after(calls)

    def _plain(self, evaluate: Evaluate, request: HeadRequest) -> HeadReport:
        draft, (streams, log_uniforms) = self._draft_for(request), log_uniforms_of(request)
        guess, calls = self._first_guess(evaluate, draft, request)
        initial, per_step = request.noise
        run = _Run(
            self.schedule, draft, self._windows, evaluate, per_step, log_uniforms, streams,
            request.temperature,
        )  # fmt: skip
        chains = run.start(initial, guess)
        while (active := np.flatnonzero(chains.index >= 0)).size:
            run.round(chains, active)
        report = HeadReport(
            rounds=chains.rounds,
            row_evaluations=chains.rows,
            evaluations=chains.calls,
            mean=chains.mean,
            std=chains.std,
            sum_log_std=chains.sum_log_std,
            trajectory=chains.states,
            noise=(initial, chains.noise),
        )
        return report.after(calls)

    def _draft_for(self, request: HeadRequest) -> AffineDraft:
        return self.draft or AffineDraft.frozen(self.schedule.steps, request.channels)

    def _first_guess(
        self, evaluate: Evaluate, draft: AffineDraft, request: HeadRequest
    ) -> tuple[tuple[Float32, Float32], int]:
        """Return `(x0hat, v)` at the first head step, and how often the network was called."""
        initial = request.noise[0]
        if self.draft is not None or self.schedule.steps == 1:
            return draft.first(initial), 0
        # A frozen draft has nothing to start from but an evaluation.
        token = np.arange(len(initial), dtype=np.int64)
        step = np.full(len(initial), self.schedule.steps - 1, dtype=np.int64)
        transition, v = evaluated(self.schedule, evaluate, initial, step, token)
        return (transition.x0hat, v), 1


class _Run:
    """What does not change between the rounds of one call."""

    def __init__(
        self,
        schedule: HeadSchedule,
        draft: AffineDraft,
        windows: Int64,
        evaluate: Evaluate,
        per_step: Float32,
        log_uniforms: NDArray[np.float64],
        streams: Sequence[np.random.Generator],
        temperature: float,
    ) -> None:
        self.schedule, self.draft, self.windows = schedule, draft, windows
        self.evaluate, self.per_step, self.streams = evaluate, per_step, streams
        self.temperature = temperature
        self.rollout = Rollout(schedule, draft)
        self.log_uniforms = log_uniforms

    def start(self, initial: Float32, guess: tuple[Float32, Float32]) -> _Chains:
        """Return chains at their first head step, with a first guess of x0hat and v."""
        count, steps = len(initial), self.schedule.steps
        chains = _Chains(
            index=np.full(count, steps - 1, dtype=np.int64),
            x=initial.copy(), x0hat=guess[0], v=guess[1],
            states=np.empty((steps + 1, *initial.shape), dtype=np.float32),
            noise=self.per_step.copy(),
            sum_log_std=np.zeros_like(initial),
            mean=np.empty_like(initial), std=np.empty_like(initial),
            rounds=np.zeros(count, dtype=np.int64),
        )  # fmt: skip
        chains.states[steps] = initial
        return chains

    def round(self, chains: _Chains, active: Int64) -> None:
        """Draft, evaluate, accept a prefix, resample what failed."""
        windows = self.windows[chains.index[active]]
        width = int(windows.max())
        offsets = np.arange(width)
        inside = offsets < windows[:, None]
        # Beyond the end of a chain transitions are drafted and ignored.
        index = np.maximum(chains.index[active, None] - offsets, 0)
        normals = self.per_step[active[:, None], index]
        drafted = _Drafted(
            *self.rollout(
                index, chains.x[active], chains.x0hat[active], chains.v[active],
                normals, self.temperature,
            )
        )  # fmt: skip
        target = self._evaluate(chains, active, index, inside, drafted)
        ratio, standard = log_acceptance(
            normals, drafted.mean, drafted.log_std, target.mean, target.log_std, self.temperature
        )
        passed = self.log_uniforms[active[:, None], index] < ratio
        # The transition at index 0 is deterministic: nothing to accept there.
        passed &= inside & (index > 0)
        accepted = np.where(passed.all(axis=1), width, np.argmin(passed, axis=1))
        self._settle(chains, active, index, accepted, windows, drafted, target, standard)

    def _evaluate(
        self, chains: _Chains, active: Int64, index: Int64, inside: NDArray[np.bool_],
        drafted: _Drafted,
    ) -> _Target:  # fmt: skip
        """Evaluate the network at y_0 .. y_{K-1}."""
        count, width = index.shape
        before = drafted.states[:, :-1]
        chains.rounds[active] += 1
        chains.calls += 1
        if inside.all():
            chains.rows += count * width
            transition, v = evaluated(
                self.schedule, self.evaluate, before.reshape(count * width, -1),
                index.reshape(-1), np.repeat(active, width),
            )  # fmt: skip
            return _Target(*(part.reshape(before.shape) for part in (*transition, v)))
        rows, columns = np.nonzero(inside)
        chains.rows += len(rows)
        transition, v = evaluated(
            self.schedule, self.evaluate, before[rows, columns], index[rows, columns], active[rows]
        )
        target = _Target(*(np.zeros_like(before) for _ in range(4)))
        for full, part in zip(target, (*transition, v), strict=True):
            full[rows, columns] = part
        return target

    def _settle(
        self,
        chains: _Chains,
        active: Int64,
        index: Int64,
        accepted: Int64,
        windows: Int64,
        drafted: _Drafted,
        target: _Target,
        standard: NDArray[np.float64],
    ) -> None:
        """Write accepted transitions, residual samples and finished tokens into the chains."""
        arange, scale = np.arange(len(active)), np.float32(self.temperature)
        # The last transition that counts: the one that was not accepted, or the window's last.
        last = np.minimum(accepted, windows - 1)
        at = arange, last
        step = index[at]
        mean, std = target.mean[at], scale * np.exp(target.log_std[at])
        emitted = drafted.states[arange, last + 1]
        finished = step == 0
        emitted[finished] = mean[finished]
        rejected = np.flatnonzero((accepted < windows) & ~finished)
        if rejected.size:
            places = rejected, last[rejected]
            emitted[rejected] = self._residual(
                Density(mean[rejected], std[rejected], np.zeros_like(mean[rejected])),
                Density(
                    drafted.mean[places],
                    scale * np.exp(drafted.log_std[places]),
                    np.zeros_like(mean[rejected]),
                ),
                active[rejected],
            )
            standard[places] = (emitted[rejected] - mean[rejected]) / std[rejected]

        counted = np.arange(index.shape[1]) <= last[:, None]
        rows, columns = np.nonzero(counted & (index > 0))  # index 0 draws nothing
        places = index[rows, columns], active[rows]
        chains.states[places] = drafted.states[rows, columns + 1]
        chains.states[step, active] = emitted
        chains.noise[places[::-1]] = standard[rows, columns]
        np.add.at(chains.sum_log_std, places[1], target.log_std[rows, columns])

        done = active[finished]
        chains.mean[done], chains.std[done] = mean[finished], std[finished]
        chains.index[active] = step - 1
        chains.x[active] = emitted
        chains.x0hat[active], chains.v[active] = self.draft.move(
            step, emitted - mean, drafted.states[at], target.x0hat[at], target.v[at]
        )

    def _residual(self, p: Density, q: Density, tokens: Int64) -> NDArray[np.float64]:
        """Sample `max(0, p - q)/Z` of the rejected transitions of some tokens, `[n, C]`."""
        samples = np.empty_like(p.mean)
        for row, token in enumerate(tokens.tolist()):
            sample = continue_residual(p[row], q[row], self.streams[token])
            if sample is None:
                raise NumericsError(
                    "the residual of a rejected head transition was not hit: use --head sequential"
                )
            samples[row] = sample
        return samples
