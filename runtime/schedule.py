"""Schedules: diffusion betas, the order of AR steps, guidance, annealed head steps.

Diffusion tables follow section 3 of the design (Nichol & Dhariwal, arXiv 2102.09672, with
learned-range variances); AR step sizes follow MaskGIT's cosine schedule as MAR uses it, or one of
eMIGM's (You et al., arXiv 2503.07197).

| notation | name |
| --- | --- |
| beta_i | `beta` |
| abar_i | `alpha_bar` |
| log beta_i, log beta~_i | `log_beta`, `log_posterior` |
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .arguments import one_of, real_number, whole_number, whole_number_from
from .arrays import Float64
from .command.text import shown
from .errors import OptionError

TRAIN_STEPS = 1000
BETA_SCHEDULES = ("cosine", "linear")
GUIDANCE_SCHEDULES = ("linear", "constant")
# How many tokens are masked when a share t of the AR steps is left, as a share of all; `cosine` is
# MAR's own count of them.
_MASKED_SHARE: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "poly-0.5": math.sqrt,
    "exp": lambda t: -math.expm1(-5 * t),
    "log": lambda t: math.log1p(math.expm1(5) * t) / 5,
}
MASK_SCHEDULES = ("cosine", *_MASKED_SHARE)
WHOLE_RUN = (0.0, 1.0)
# What eMIGM leaves of its time at the end, so that its curves can be divided by.
_LAST_TIME = 1e-5


def training_betas(name: str) -> Float64:
    """Return the 1000 betas that a model is trained with, `[1000]` float64.

    `cosine` caps each beta at 0.999; `linear` runs from 1e-4 to 0.02.

    Raises:
        OptionError: the name is neither.
    """
    if one_of("beta schedule", name, BETA_SCHEDULES) == "linear":
        return np.linspace(1e-4, 0.02, TRAIN_STEPS)
    edges = (np.arange(TRAIN_STEPS + 1) / TRAIN_STEPS + 0.008) / 1.008
    alpha_bar = np.cos(edges * (math.pi / 2)) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def respaced_timesteps(steps: int) -> NDArray[np.int64]:
    """Return the `steps` of the 1000 training timesteps to sample with, `[steps]` ascending.

    They are evenly spread and include both ends (one section of guided diffusion's respacing).

    Raises:
        OptionError: `steps` is not in 1..1000.
    """
    steps = whole_number_from("head steps", steps, 1, TRAIN_STEPS)
    stride = (TRAIN_STEPS - 1) / (steps - 1) if steps > 1 else 1.0
    # Python's round, half to even, on a running float sum: what the released code does.
    chosen: list[int] = []
    position = 0.0
    for _ in range(steps):
        chosen.append(round(position))
        position += stride
    return np.array(chosen, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class DiffusionTables:
    """Coefficients of the reverse transitions, each `[S]` float64, index i = 0 is the last step.

    `x0hat = recip * x - recipm1 * eps`, `mean = coef_x0 * x0hat + coef_x * x`,
    `logvar = f * log_beta + (1 - f) * log_posterior` with `f = (v + 1) / 2`.
    """

    timesteps: NDArray[np.int64]
    beta: Float64
    alpha_bar: Float64
    recip: Float64
    recipm1: Float64
    coef_x0: Float64
    coef_x: Float64
    log_beta: Float64
    log_posterior: Float64

    @property
    def steps(self) -> int:
        """Number S of head steps."""
        return len(self.timesteps)


def diffusion_tables(beta_schedule: str, steps: int = TRAIN_STEPS) -> DiffusionTables:
    """Return the tables of a named beta schedule respaced to `steps`.

    Raises:
        OptionError: the name is unknown or `steps` is not in 1..1000.
    """
    name = one_of("beta schedule", beta_schedule, BETA_SCHEDULES)
    # Before the cache, where 100.0 is 100.
    return _diffusion_tables(name, whole_number_from("head steps", steps, 1, TRAIN_STEPS))


@lru_cache(maxsize=256)
def _diffusion_tables(beta_schedule: str, steps: int) -> DiffusionTables:
    timesteps = respaced_timesteps(steps)
    alpha_bar = np.cumprod(1 - training_betas(beta_schedule), dtype=np.float64)[timesteps]
    return tables_from_alpha_bar(alpha_bar, timesteps)


def tables_from_alpha_bar(alpha_bar: Float64, timesteps: NDArray[np.int64]) -> DiffusionTables:
    """Return the tables of a chain whose cumulated signal shares are `alpha_bar` `[S]`."""
    previous = np.concatenate([[1.0], alpha_bar[:-1]])
    beta = 1 - alpha_bar / previous
    posterior = beta * (1 - previous) / (1 - alpha_bar)
    # beta~_0 is 0: its logarithm is clipped to the next step's. With one step there is no next
    # one, and the released code fails there; beta itself is the only scale left.
    first = posterior[1] if len(posterior) > 1 else beta[0]
    return DiffusionTables(
        timesteps=timesteps,
        beta=beta,
        alpha_bar=alpha_bar,
        recip=np.sqrt(1 / alpha_bar),
        recipm1=np.sqrt(1 / alpha_bar - 1),
        coef_x0=beta * np.sqrt(previous) / (1 - alpha_bar),
        coef_x=(1 - previous) * np.sqrt(1 - beta) / (1 - alpha_bar),
        log_beta=np.log(beta),
        log_posterior=np.log(np.concatenate([[first], posterior[1:]])),
    )


def masked_counts(seq_len: int, num_iter: int, kind: str = "cosine") -> list[int]:
    """Return how many tokens are masked after each AR step; each step predicts at least one.

    `cosine` is `floor(L cos(pi/2 (k+1)/num_iter))`, as MAR keeps the count: its last mask still
    counts one token, although that step predicts it. The others are eMIGM's, whose released code
    unmasks every token with a probability, but at least one token: here each step predicts as many
    as it does on average.

    Raises:
        OptionError: `seq_len` is below 1, `num_iter` is not in 1..seq_len, or `kind` is unknown.
    """
    seq_len = whole_number_from("seq-len", seq_len, 1)
    num_iter = whole_number("num-iter", num_iter)
    kind = one_of("mask-schedule", kind, MASK_SCHEDULES)
    if not 1 <= num_iter <= seq_len:
        raise OptionError(
            f"num-iter is {shown(num_iter)}: give 1 to {seq_len}, the number of tokens of an image"
        )
    return list(_masked_counts(seq_len, num_iter, kind))


@functools.cache
def _masked_counts(seq_len: int, num_iter: int, kind: str) -> tuple[int, ...]:
    if kind != "cosine":
        return _average_counts(seq_len, num_iter, _MASKED_SHARE[kind])
    counts: list[int] = []
    masked = seq_len
    for step in range(num_iter):
        wanted = math.floor(seq_len * np.cos(math.pi / 2.0 * (step + 1) / num_iter))
        masked = max(1, min(masked - 1, wanted))
        counts.append(masked)
    return tuple(counts)


def _average_counts(
    seq_len: int, num_iter: int, share: Callable[[float], float]
) -> tuple[int, ...]:
    times = [1.0, *_times_left(num_iter)]
    counts, average, masked = list[int](), float(seq_len), seq_len
    for step in range(num_iter - 1):
        kept = share(times[step + 1]) / share(times[step])
        # Binomial, and one token where none would be.
        average = max(0.0, average * kept - kept**average)
        masked = max(num_iter - 1 - step, min(masked - 1, math.floor(average + 0.5)))
        counts.append(masked)
    return (*counts, 0)


def _times_left(num_iter: int) -> list[float]:
    """Share of the AR steps that is left after each, as eMIGM has its time, `[num_iter]`."""
    return [1 - (1 - _LAST_TIME) * (step + 1) / num_iter for step in range(num_iter)]


@dataclass(frozen=True)
class ARSchedule:
    """Which share of the generation order each AR step predicts.

    MAR keeps the first `masked` entries of an order masked, so step k predicts the entries
    `order[start(k) : stop(k)]`, from the order's end to its beginning.

    Raises:
        OptionError: see `masked_counts`.
    """

    seq_len: int
    num_iter: int
    kind: str = "cosine"

    def __post_init__(self) -> None:
        masked_counts(self.seq_len, self.num_iter, self.kind)

    @property
    def masked(self) -> list[int]:
        """Masked tokens after each step (see `masked_counts`)."""
        return masked_counts(self.seq_len, self.num_iter, self.kind)

    @functools.cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """`(start, stop)` into the generation order for each AR step; together they cover it."""
        masked = self.masked[:-1]
        stops = [self.seq_len, *masked]
        return list(zip([*masked, 0], stops, strict=True))

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Number of tokens that each AR step predicts."""
        return [stop - start for start, stop in self.bounds]

    def guidance(
        self, cfg: float, kind: str, interval: tuple[float, float] = WHOLE_RUN
    ) -> list[float]:
        """Return the guidance scale of each AR step.

        `linear` grows with the share of known tokens, `1 + (cfg-1)(L - masked)/L`, and
        `constant` is `cfg` throughout. Outside of the interval it is 1, no guidance: an AR step is
        in `(low, high)` if a share t of the AR steps is left after it, `low < t <= high`
        (Kynkaanniemi et al., arXiv 2404.07724, over AR steps as eMIGM has it).

        Raises:
            OptionError: `kind` is neither, or `cfg` is no number.
        """
        cfg, (low, high) = real_number("cfg", cfg), interval
        if one_of("cfg-schedule", kind, GUIDANCE_SCHEDULES) == "constant":
            scales = [cfg] * self.num_iter
        else:
            scales = [1 + (cfg - 1) * (self.seq_len - m) / self.seq_len for m in self.masked]
        times = _times_left(self.num_iter)
        return [s if low < left <= high else 1.0 for s, left in zip(scales, times, strict=True)]


def annealed_head_steps(first: int, last: int, num_iter: int) -> list[int]:
    """Return the number of head steps of each AR step, linear from `first` to `last`.

    DiSA, arXiv 2505.20297: later tokens, which know more of the image, need fewer head steps.

    Raises:
        OptionError: a number of head steps is not in 1..1000, or `num_iter` is below 1.
    """
    first, last = (whole_number_from("head-steps", n, 1, TRAIN_STEPS) for n in (first, last))
    num_iter = whole_number_from("num-iter", num_iter, 1)
    return [int(n) for n in np.rint(np.linspace(first, last, num_iter))]
