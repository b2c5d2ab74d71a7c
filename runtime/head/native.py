"""The head samplers' host side in compiled code: drives `plugins/kernels/head.cpp`.

Both samplers alternate `gather`, which writes the rows to evaluate, and `settle`, which takes the
network's outputs. The NumPy code of `speculative` and `parallel` does the same where the library
was not built; a seed gives the same tokens either way, up to rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...plugins import host
from ..errors import BackendError, NumericsError
from .draft import AffineDraft
from .sampler import Evaluate, HeadNoise, HeadReport
from .schedule import Float32, HeadSchedule, Int64
from .slopes import Slopes


def available() -> bool:
    """Whether compiled code will be used.

    Raises:
        BackendError: the library that was asked for cannot be loaded.
    """
    try:
        return host.library() is not None
    except host.HostLibraryError as error:
        raise BackendError(str(error)) from error


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


def _integers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_int64) for name in names]


class _RowsStruct(ctypes.Structure):
    _fields_ = _pointers("x", "step", "token", "start")


class _ChainsStruct(ctypes.Structure):
    _fields_ = [
        *_integers("tokens", "channels", "steps"),
        ("temperature", ctypes.c_float),
        ("table", host.StepPointers),
        *_pointers("normals", "index", "rounds", "states", "sum_log_std", "std"),
    ]


class _SpeculationStruct(ctypes.Structure):
    _fields_ = [
        ("chains", _ChainsStruct),
        ("rows", _RowsStruct),
        *_pointers("weight", "bias", "share", "windows", "log_uniforms", "generators"),
        *_pointers("x0hat", "v", "noise", "mean", "log_std", "next"),
    ]


class _IterationStruct(ctypes.Structure):
    _fields_ = [
        ("chains", _ChainsStruct),
        ("rows", _RowsStruct),
        *_integers("window"),
        ("tolerance", ctypes.c_float),
        *_pointers("slope", "before", "mean"),
    ]


class _Keeper:
    """Hands out addresses and keeps their arrays alive."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[Any]] = []

    def __call__(self, array: NDArray[Any], dtype: Any = np.float32) -> ctypes.c_void_p:
        dense = np.ascontiguousarray(array, dtype=dtype)
        self._arrays.append(dense)
        return host.pointer(dense)


class _Chains:
    """Chains on their way, and the rows of a round."""

    def __init__(
        self,
        schedule: HeadSchedule,
        initial: Float32,
        per_step: Float32,
        states: Float32,
        temperature: float,
        capacity: int,
    ) -> None:
        (count, channels), steps = initial.shape, schedule.steps
        self.keep = keep = _Keeper()
        self.states = states
        self.states[steps] = initial
        self.index = np.full(count, steps - 1, dtype=np.int64)
        self.rounds = np.zeros(count, dtype=np.int64)
        self.sum_log_std, self.std = np.zeros_like(initial), np.zeros_like(initial)
        self.x = np.empty((capacity, channels), dtype=np.float32)
        self.step, self.token = (np.empty(capacity, dtype=np.int64) for _ in range(2))
        self.struct = _ChainsStruct(
            tokens=count, channels=channels, steps=steps, temperature=temperature,
            table=host.StepPointers(*(keep(column) for column in schedule.columns)),
            normals=keep(per_step),
            index=host.pointer(self.index), rounds=host.pointer(self.rounds),
            states=host.pointer(self.states), sum_log_std=host.pointer(self.sum_log_std),
            std=host.pointer(self.std),
        )  # fmt: skip
        self.rows = _RowsStruct(
            x=host.pointer(self.x), step=host.pointer(self.step), token=host.pointer(self.token),
            start=keep(np.zeros(count + 1), np.int64),
        )  # fmt: skip

    def advance(
        self,
        gather: Callable[[Any], int],
        settle: Callable[..., int],
        struct: ctypes.Structure,
        evaluate: Evaluate,
    ) -> tuple[int, int]:
        """Alternate both until all chains have ended; returns `(rows, calls)`."""
        address = ctypes.byref(struct)
        total = calls = 0
        while count := gather(address):
            part = slice(0, count)
            # Copies, because what is handed out may be kept and the buffers are used again.
            outputs = evaluate(self.x[part].copy(), self.step[part].copy(), self.token[part].copy())
            eps, v = (np.ascontiguousarray(output, dtype=np.float32) for output in outputs)
            if eps.shape != self.x[part].shape or v.shape != eps.shape:
                raise ValueError(f"evaluate gave {eps.shape} and {v.shape} for {count} rows")
            if status := settle(address, host.pointer(eps), host.pointer(v)):
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
        initial: Float32,
        per_step: Float32,
        temperature: float,
        log_uniforms: NDArray[np.float64],
        streams: Sequence[np.random.Generator],
        guess: tuple[Float32, Float32],
    ) -> None:
        count, channels = initial.shape
        states = np.empty((schedule.steps + 1, count, channels), dtype=np.float32)
        capacity = count * int(windows.max())
        self.chains = _Chains(schedule, initial, per_step, states, temperature, capacity)
        keep = self.chains.keep
        self.noise = per_step.copy()
        self.next = np.empty((capacity, channels), dtype=np.float32)
        generators = [host.generator_pointer(stream).value for stream in streams]
        self.struct = _SpeculationStruct(
            chains=self.chains.struct, rows=self.chains.rows,
            weight=keep(draft.weight), bias=keep(draft.bias), share=keep(draft.share),
            windows=keep(windows, np.int64), log_uniforms=keep(log_uniforms, np.float64),
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
    run = _Speculation(schedule, draft, windows, *noise, temperature, log_uniforms, streams, guess)
    rows, calls = run.chains.advance(
        library.csd_speculation_gather, library.csd_speculation_settle, run.struct, evaluate
    )
    return run.chains.report(rows, calls, (noise[0], run.noise))


def drafted_trajectory(
    schedule: HeadSchedule, draft: AffineDraft, noise: HeadNoise, temperature: float
) -> Float32:
    """Return whole chains drafted without the network, `[S + 1, N, C]`."""
    library = host.library()
    assert library is not None
    initial, per_step = noise
    steps, count = schedule.steps, len(initial)
    windows = np.arange(1, steps + 1, dtype=np.int64)
    run = _Speculation(
        schedule, draft, windows, initial, per_step, temperature, np.zeros((count, steps)), [],
        draft.first(initial),
    )  # fmt: skip
    library.csd_speculation_gather(ctypes.byref(run.struct))
    states = run.chains.states
    states[:steps] = run.next.reshape(count, steps, -1).transpose(1, 0, 2)[::-1]
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
    chains = _Chains(schedule, *noise, states, temperature, window * len(noise[0]))
    struct = _IterationStruct(
        chains=chains.struct, rows=chains.rows, window=window, tolerance=tolerance
    )
    if slopes is not None:
        struct.slope, struct.before, struct.mean = (
            chains.keep(array) for array in (slopes.value, slopes.x, slopes.mean)
        )
    rows, calls = chains.advance(
        library.csd_iteration_gather, library.csd_iteration_settle, struct, evaluate
    )
    return chains.report(rows, calls, noise)
