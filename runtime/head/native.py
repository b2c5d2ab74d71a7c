"""The head samplers' host side in compiled code: drives `plugins/kernels/head.cpp`.

Both samplers alternate `gather`, which writes the rows to evaluate, and `settle`, which takes the
network's outputs. The NumPy code of `speculative` and `parallel` does the same where the library
was not built; a seed gives the same tokens either way, up to rounding.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...plugins import host, structs
from ..arrays import Float32, Int64
from ..errors import BackendError, NumericsError
from .draft import AffineDraft
from .request import Evaluate, HeadNoise, HeadReport, HeadRows, RowsEvaluate, outputs_of
from .schedule import HeadSchedule
from .slopes import Slopes


def _network(evaluate: Evaluate, channels: int) -> RowsEvaluate:
    return evaluate if isinstance(evaluate, RowsEvaluate) else _Copied(evaluate, channels)


def available() -> bool:
    """Whether compiled code will be used.

    Raises:
        BackendError: the library that was asked for cannot be loaded.
    """
    try:
        return host.library() is not None
    except host.HostLibraryError as error:
        raise BackendError(str(error)) from error


class _Keeper:
    """Hands out addresses and keeps their arrays alive."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[Any]] = []

    def __call__(self, array: NDArray[Any], dtype: Any = np.float32) -> ctypes.c_void_p:
        dense = np.ascontiguousarray(array, dtype=dtype)
        self._arrays.append(dense)
        return host.pointer(dense)


# The schedules and drafts of a session serve all its tokens, and addresses take time to find. Who
# uses them keeps the keeper too: the cache may drop it at any time.
@functools.lru_cache(maxsize=16)
def _step_pointers(schedule: HeadSchedule) -> tuple[structs.StepPointers, _Keeper]:
    keep = _Keeper()
    return structs.StepPointers(*(keep(column) for column in schedule.columns)), keep


@functools.lru_cache(maxsize=16)
def _draft_pointers(draft: AffineDraft) -> tuple[dict[str, ctypes.c_void_p], _Keeper]:
    keep = _Keeper()
    return {
        "weight": keep(draft.weight), "bias": keep(draft.bias), "share": keep(draft.share)
    }, keep  # fmt: skip


class _Copied(RowsEvaluate):
    """Any network as one that evaluates rows where they lie.

    What is handed out are copies, because a network may keep them and the rows are used again.
    """

    def __init__(self, evaluate: Evaluate, channels: int) -> None:
        self._evaluate, self._channels = evaluate, channels
        self._rows = HeadRows.empty(0, channels)

    def rows(self, capacity: int) -> HeadRows:
        """See `RowsEvaluate.rows`."""
        self._rows = HeadRows.empty(capacity, self._channels)
        return self._rows

    def evaluate_rows(self, count: int) -> None:
        """See `RowsEvaluate.evaluate_rows`."""
        x, step, token, eps, v = (array[:count] for array in self._rows)
        eps[:], v[:] = outputs_of(self._evaluate, x.copy(), step.copy(), token.copy())

    def check_rows(self, count: int) -> None:
        """See `RowsEvaluate.check_rows`: the network has done it, if it does."""


class _Chains:
    """Chains on their way, and the rows of a round."""

    def __init__(
        self,
        schedule: HeadSchedule,
        noise: HeadNoise,
        states: Float32,
        temperature: float,
        rows: HeadRows,
    ) -> None:
        initial, per_step = noise
        (count, channels), steps = initial.shape, schedule.steps
        self.keep = keep = _Keeper()
        self.states = states
        self.states[steps] = initial
        self.index = np.full(count, steps - 1, dtype=np.int64)
        self.rounds = np.zeros(count, dtype=np.int64)
        self.sum_log_std, self.std = np.zeros_like(initial), np.zeros_like(initial)
        table, keeper = _step_pointers(schedule)
        self._kept = rows, keeper  # compiled code knows their addresses alone
        self._eps, self._v = host.pointer(rows.eps), host.pointer(rows.v)
        self.struct = structs.ChainsStruct(
            tokens=count, channels=channels, steps=steps, temperature=temperature,
            table=table,
            normals=keep(per_step),
            index=host.pointer(self.index), rounds=host.pointer(self.rounds),
            states=host.pointer(self.states), sum_log_std=host.pointer(self.sum_log_std),
            std=host.pointer(self.std),
        )  # fmt: skip
        self.rows = structs.RowsStruct(
            x=host.pointer(rows.x), step=host.pointer(rows.step), token=host.pointer(rows.token),
            start=keep(np.zeros(count + 1), np.int64),
        )  # fmt: skip

    def advance(
        self,
        gather: Callable[[Any], int],
        settle: Callable[..., int],
        struct: ctypes.Structure,
        network: RowsEvaluate,
    ) -> tuple[int, int]:
        """Alternate both until all chains have ended; returns `(rows, calls)`."""
        address, eps, v = ctypes.byref(struct), self._eps, self._v
        total = calls = 0
        while count := gather(address):
            network.evaluate_rows(count)
            if status := settle(address, eps, v):
                network.check_rows(count)
                _fail(status)
            total += count
            calls += 1
        return total, calls

    def report(self, rows: int, calls: int, noise: HeadNoise) -> HeadReport:
        """Return what sampling took, when all chains have ended."""
        return HeadReport(
            rounds=self.rounds, row_evaluations=rows, evaluations=calls,
            mean=self.states[0].copy(), std=self.std, sum_log_std=self.sum_log_std,
            trajectory=self.states, noise=noise,
        )  # fmt: skip


def _fail(status: int) -> None:
    if status < 0:
        raise NumericsError(
            "the residual of a rejected head transition was not hit: use --head sequential"
        )
    raise NumericsError(
        f"the head's output is not finite at head step {status - 1}: check the weights, or lower "
        "temperature or cfg"
    )


class _Speculation:
    """A `CsdSpeculation` with its arrays."""

    def __init__(
        self,
        schedule: HeadSchedule,
        draft: AffineDraft,
        windows: Int64,
        noise: HeadNoise,
        temperature: float,
        log_uniforms: NDArray[np.float64],
        streams: Sequence[np.random.Generator],
        guess: tuple[Float32, Float32],
        rows: HeadRows,
    ) -> None:
        (count, channels), per_step = noise[0].shape, noise[1]
        states = np.empty((schedule.steps + 1, count, channels), dtype=np.float32)
        pointers, self._draft = _draft_pointers(draft)
        self.chains = _Chains(schedule, noise, states, temperature, rows)
        keep = self.chains.keep
        self.noise = per_step.copy()
        self.next = np.empty((count * int(windows.max()), channels), dtype=np.float32)
        generators = [host.generator_pointer(stream).value for stream in streams]
        self.struct = structs.SpeculationStruct(
            chains=self.chains.struct, rows=self.chains.rows,
            **pointers, windows=keep(windows, np.int64),
            log_uniforms=keep(log_uniforms, np.float64),
            generators=keep(np.array(generators, dtype=np.uint64), np.uint64),
            x0hat=keep(guess[0].copy()), v=keep(guess[1].copy()), noise=host.pointer(self.noise),
            mean=keep(np.empty_like(self.next)), log_std=keep(np.empty_like(self.next)),
            next=host.pointer(self.next),
        )  # fmt: skip


def speculate(
    schedule: HeadSchedule,
    draft: AffineDraft,
    windows: Int64,
    evaluate: Evaluate,
    noise: HeadNoise,
    log_uniforms: NDArray[np.float64],
    streams: Sequence[np.random.Generator],
    temperature: float,
    guess: tuple[Float32, Float32],
) -> HeadReport:
    """Sample N tokens as `SpeculativeSampler` does.

    Args:
        schedule: the head schedule.
        draft: the affine predictor.
        windows: `[S]`.
        evaluate: the batched network.
        noise: `(initial [N, C], per_step [N, S, C])`.
        log_uniforms: `[N, S]`.
        streams: generators of the residual draws, one for each token.
        temperature: factor of the noise.
        guess: `(x0hat, v)` at the first head step, `[N, C]` each.

    Raises:
        NumericsError: an output of the network is not finite.
    """
    library = host.library()
    assert library is not None
    count, channels = noise[0].shape
    network = _network(evaluate, channels)
    run = _Speculation(
        schedule, draft, windows, noise, temperature, log_uniforms, streams, guess,
        network.rows(count * int(windows.max())),
    )  # fmt: skip
    rows, calls = run.chains.advance(
        library.csd_speculation_gather, library.csd_speculation_settle, run.struct, network
    )
    return run.chains.report(rows, calls, (noise[0], run.noise))


def drafted_trajectory(
    schedule: HeadSchedule, draft: AffineDraft, noise: HeadNoise, temperature: float
) -> Float32:
    """Return whole chains drafted without the network, `[S + 1, N, C]`."""
    library = host.library()
    assert library is not None
    (count, channels), steps = noise[0].shape, schedule.steps
    windows = np.arange(1, steps + 1, dtype=np.int64)
    run = _Speculation(
        schedule, draft, windows, noise, temperature, np.zeros((count, steps)), [],
        draft.first(noise[0]), HeadRows.empty(count * steps, channels),
    )  # fmt: skip
    library.csd_speculation_gather(ctypes.byref(run.struct))
    states = run.chains.states
    states[:steps] = run.next.reshape(count, steps, channels).transpose(1, 0, 2)[::-1]
    return states


def iterate(
    schedule: HeadSchedule,
    window: int,
    tolerance: float,
    slopes: Slopes | None,
    evaluate: Evaluate,
    noise: HeadNoise,
    states: Float32,
    temperature: float,
) -> HeadReport:
    """Sample N tokens as `ParallelSampler` does; with `window` 1, as `SequentialSampler`.

    Args:
        schedule: the head schedule.
        window: transitions in a sweep at most.
        tolerance: of a settled transition.
        slopes: `d x_{i-1} / d x_i`; None where no state moves, as with `window` 1.
        evaluate: the batched network.
        noise: `(initial [N, C], per_step [N, S, C])`.
        states: where to start, `[S + 1, N, C]`; overwritten.
        temperature: factor of the noise.

    Raises:
        NumericsError: an output of the network is not finite.
    """
    library = host.library()
    assert library is not None
    count, channels = noise[0].shape
    network = _network(evaluate, channels)
    chains = _Chains(schedule, noise, states, temperature, network.rows(window * count))
    struct = structs.IterationStruct(
        chains=chains.struct, rows=chains.rows, window=window, tolerance=tolerance
    )
    if slopes is not None:
        struct.slope, struct.before, struct.mean = (
            chains.keep(array) for array in (slopes.value, slopes.x, slopes.mean)
        )
    rows, calls = chains.advance(
        library.csd_iteration_gather, library.csd_iteration_settle, struct, network
    )
    return chains.report(rows, calls, noise)
