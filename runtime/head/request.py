"""What goes into a head sampler and what comes out of it.

A sampler draws N tokens given `evaluate`, the batched network:
`evaluate(x [R, C], step [R], token [R]) -> (eps [R, C], v [R, C])`, where `step` is the head step
i in 0..S-1 and `token` in 0..N-1 names the condition of the row. Networks may offer more:

| network | offers |
| --- | --- |
| any callable | the rows of a call |
| `RowsEvaluate` | rows that are evaluated where they lie, for compiled code |
| `DeviceEvaluate` | rounds of the speculative sampler where the network runs |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from ...plugins.rounds import Finished, Start
from ..arguments import instance_of, numbers_array, positive_number, whole_number_from, wrong_type
from ..arrays import Float32, Float64, Int64
from ..errors import NumericsError, OptionError
from .schedule import HeadSchedule, Transition

Evaluate = Callable[[Float32, Int64, Int64], tuple[Float32, Float32]]
HeadNoise = tuple[Float32, Float32]


class Stepped(Protocol):
    """A schedule of any sampler."""

    @property
    def steps(self) -> int:
        """Number S of head steps."""
        ...


class HeadRows(NamedTuple):
    """Where rows are written and outputs are read: `x, eps, v [R, C]`, `step, token [R]`."""

    x: Float32
    step: Int64
    token: Int64
    eps: Float32
    v: Float32

    @classmethod
    def empty(cls, capacity: int, channels: int) -> HeadRows:
        """Return arrays of their own for `capacity` rows."""
        x, eps, v = (np.empty((capacity, channels), dtype=np.float32) for _ in range(3))
        step, token = (np.empty(capacity, dtype=np.int64) for _ in range(2))
        return cls(x, step, token, eps, v)


class RowsEvaluate(ABC):
    """A network that evaluates rows where they lie."""

    @abstractmethod
    def rows(self, capacity: int) -> HeadRows:
        """Arrays of at least `capacity` rows, good until `rows` is called again."""

    @abstractmethod
    def evaluate_rows(self, count: int) -> None:
        """Evaluate the first `count` rows; rows after them may be overwritten."""

    @abstractmethod
    def check_rows(self, count: int) -> None:
        """Check the outputs of the first `count` rows.

        Raises:
            NumericsError: one is not finite.
        """


class DeviceEvaluate(ABC):
    """A network on a device that may run the rounds of the speculative sampler beside it."""

    @abstractmethod
    def __call__(self, x: Float32, step: Int64, token: Int64) -> tuple[Float32, Float32]:
        """Evaluate rows, as any network does."""

    @property
    @abstractmethod
    def scale(self) -> Float32 | None:
        """Guidance scale of each token, `[N]`, or None without guidance."""

    @abstractmethod
    def run_rounds(self, start: Callable[[], Start | None]) -> tuple[Finished, int, int] | None:
        """Run the rounds from `start`, which is asked for only where the device can run them.

        Returns:
            What was made, network calls, and rows of them (one of a guided pair). None where the
            host has to do it, or `start` gave None.
        """


@dataclass(frozen=True, eq=False)
class HeadRequest:
    """What a sampler is asked for: N chains.

    Attributes:
        noise: `(initial [N, C], per_step [N, S, C])`; entry i of S belongs to head step i.
        temperature: factor of the noise of every step.
        streams_of: makes the generators of the chains of some numbers, for what a sampler draws
            besides the noise.
        start: trajectory `[S + 1, N, C]` that an iteration may start from, or None.
    """

    noise: HeadNoise
    temperature: float
    streams_of: Callable[[Sequence[int]], Sequence[np.random.Generator]]
    start: Float32 | None = None

    @classmethod
    def drawn(
        cls,
        schedule: Stepped,
        n_tokens: int,
        channels: int,
        rng: np.random.Generator | None,
        temperature: float,
        noise: HeadNoise | None,
        *,
        streams: Sequence[np.random.Generator] | None = None,
        start: Float32 | None = None,
    ) -> HeadRequest:
        """Return a request for N tokens whose noise is given, or drawn from `rng`.

        Raises:
            OptionError: neither `rng` nor `noise` is given, a value is of another type or out of
                range, or shapes do not fit.
        """
        temperature = positive_number("temperature", temperature)
        given = draw_noise(schedule, n_tokens, channels, rng, noise)
        shape = schedule.steps + 1, *given[0].shape
        if start is not None and start.shape != shape:
            raise OptionError(f"start is {start.shape}, not {shape}")

        def streams_of(chains: Sequence[int]) -> Sequence[np.random.Generator]:
            if streams is not None:
                return [streams[chain] for chain in chains]
            if rng is None:
                raise OptionError("give rng or streams")
            return [rng for _ in chains]

        return cls(given, temperature, streams_of, start)

    def streams(self) -> Sequence[np.random.Generator]:
        """Make the generator of each chain."""
        return self.streams_of(range(len(self)))

    def __getitem__(self, rows: slice) -> HeadRequest:
        """Return the request for some of the chains."""
        initial, per_step = self.noise
        numbers = range(len(self))[rows]

        def streams_of(chains: Sequence[int]) -> Sequence[np.random.Generator]:
            return self.streams_of([numbers[chain] for chain in chains])

        start = None if self.start is None else self.start[:, rows]
        return replace(
            self,
            noise=(initial[rows], per_step[rows]),
            streams_of=streams_of,
            start=start,
        )

    def __len__(self) -> int:
        return len(self.noise[0])

    @property
    def channels(self) -> int:
        """Number C of channels."""
        return self.noise[0].shape[1]


@dataclass(frozen=True, eq=False)
class HeadReport:
    """What sampling N tokens took, and the densities that CSD's acceptance needs.

    Attributes:
        rounds: sequential evaluations that each token needed, `[N]`.
        row_evaluations: network rows in all.
        evaluations: batched network calls in all.
        mean: mean of the last head step (i = 0), `[N, C]`.
        std: its standard deviation, temperature included, `[N, C]`.
        sum_log_std: sum over i >= 1 of the log standard deviations without temperature, `[N, C]`.
        trajectory: states, `[S + 1, N, C]`: entry S is the initial noise, entry 0 the tokens,
            entry i + 1 what head step i was evaluated at.
        noise: the noise `(initial [N, C], per_step [N, S, C])` with which the sequential chain
            makes this trajectory; entry 0 of S is not used by any chain.
    """

    rounds: Int64
    row_evaluations: int
    evaluations: int
    mean: Float32
    std: Float32
    sum_log_std: Float32
    trajectory: Float32
    noise: HeadNoise

    @classmethod
    def joined(cls, parts: Sequence[HeadReport]) -> HeadReport:
        """Return one report of tokens that were sampled one part after another."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            rounds=np.concatenate([part.rounds for part in parts]),
            row_evaluations=sum(part.row_evaluations for part in parts),
            evaluations=sum(part.evaluations for part in parts),
            mean=np.concatenate([part.mean for part in parts]),
            std=np.concatenate([part.std for part in parts]),
            sum_log_std=np.concatenate([part.sum_log_std for part in parts]),
            trajectory=np.concatenate([part.trajectory for part in parts], axis=1),
            noise=(
                np.concatenate([part.noise[0] for part in parts]),
                np.concatenate([part.noise[1] for part in parts]),
            ),
        )

    def after(self, calls: int) -> HeadReport:
        """Return the report with more evaluations of every token, made before the others."""
        if calls == 0:
            return self
        return replace(
            self,
            rounds=self.rounds + calls,
            row_evaluations=self.row_evaluations + calls * len(self.rounds),
            evaluations=self.evaluations + calls,
        )


def draw_noise(
    schedule: Stepped,
    n_tokens: int,
    channels: int,
    rng: np.random.Generator | None,
    noise: HeadNoise | None,
) -> HeadNoise:
    """Return the given noise after a check of its shapes, or draw it.

    Raises:
        OptionError: neither `rng` nor `noise` is given, one is of another type, or the shapes do
            not fit.
    """
    n_tokens = whole_number_from("n_tokens", n_tokens, 0)
    channels = whole_number_from("channels", channels, 1)
    shape = (n_tokens, schedule.steps, channels)
    if noise is None:
        if rng is None:
            raise OptionError("give rng or noise")
        instance_of("rng", rng, np.random.Generator, "a NumPy generator (numpy.random.default_rng)")
        initial = rng.standard_normal((n_tokens, channels), dtype=np.float32)
        return initial, rng.standard_normal(shape, dtype=np.float32)
    wanted = "a pair (initial [N, C], per_step [N, S, C])"
    pair: tuple[object, ...] = instance_of("noise", noise, tuple, wanted)
    if len(pair) != 2:
        raise wrong_type("noise", pair, wanted)
    initial, per_step = (numbers_array("noise", a, np.float32) for a in pair)
    if initial.shape != (n_tokens, channels) or per_step.shape != shape:
        raise OptionError(
            f"noise has shapes {initial.shape} and {per_step.shape}, not "
            f"{(n_tokens, channels)} and {shape}"
        )
    return initial, per_step


def outputs_of(
    evaluate: Evaluate, x: Float32, step: Int64, token: Int64
) -> tuple[Float32, Float32]:
    """Evaluate rows and return `(eps, v)`, `[R, C]` each.

    Raises:
        ValueError: an output has another shape; NumPy would spread `[R, 1]` over the channels.
    """
    eps, v = evaluate(x, step, token)
    for output in (eps, v):
        if (shape := np.shape(output)) != x.shape:
            raise ValueError(f"evaluate gave {shape} for rows of {x.shape}")
    return eps, v


def evaluated(
    schedule: HeadSchedule, evaluate: Evaluate, x: Float32, step: Int64, token: Int64
) -> tuple[Transition, Float32]:
    """Evaluate rows and return their transitions and variance shares.

    Raises:
        NumericsError: an output, or the transition that it makes, is not finite.
        ValueError: an output has another shape than the rows.
    """
    eps, v = outputs_of(evaluate, x, step, token)
    with np.errstate(over="ignore", invalid="ignore"):
        transition = schedule.transition(x, eps, v, step)
        # A sum is finite only if its terms are, and costs less than looking at each.
        checksum = transition.mean.sum() + transition.log_std.sum()
    if not np.isfinite(checksum):
        fine = np.isfinite(transition.mean).all(axis=1) & np.isfinite(transition.log_std).all(
            axis=1
        )
        if not fine.all():
            raise NumericsError(
                f"the head's output is not finite at head step {int(step[~fine][0])}: check the "
                "weights, or lower temperature or cfg"
            )
    return transition, v


def log_uniforms_of(
    request: HeadRequest,
) -> tuple[Sequence[np.random.Generator], Float64]:
    """Return the streams of a request, and the logs `[N, S]` of the first uniforms of each."""
    streams, steps = request.streams(), request.noise[1].shape[1]
    uniforms = np.array([stream.random(steps) for stream in streams]).reshape(-1, steps)
    with np.errstate(divide="ignore"):
        return streams, np.log(uniforms)
