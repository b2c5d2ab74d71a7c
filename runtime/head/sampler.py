"""The sequential sampler of a diffusion head, and what every head sampler returns.

A sampler draws N tokens given `evaluate`, the batched network:
`evaluate(x [R, C], step [R], token [R]) -> (eps [R, C], v [R, C])`, where `step` is the head step
i in 0..S-1 and `token` in 0..N-1 names the condition of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .schedule import Float32, HeadSchedule, Int64

Evaluate = Callable[[Float32, Int64, Int64], tuple[Float32, Float32]]
HeadNoise = tuple[Float32, Float32]


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
    """

    rounds: Int64
    row_evaluations: int
    evaluations: int
    mean: Float32
    std: Float32
    sum_log_std: Float32


def draw_noise(
    schedule: HeadSchedule,
    n_tokens: int,
    channels: int,
    rng: np.random.Generator | None,
    noise: HeadNoise | None,
) -> HeadNoise:
    """Return the given noise after a check of its shapes, or draw it.

    Raises:
        ValueError: neither `rng` nor `noise` is given, or the shapes do not fit.
    """
    if noise is None:
        if rng is None:
            raise ValueError("give rng or noise")
        initial = rng.standard_normal((n_tokens, channels), dtype=np.float32)
        shape = (n_tokens, schedule.steps, channels)
        return initial, rng.standard_normal(shape, dtype=np.float32)
    initial, per_step = (np.asarray(a, dtype=np.float32) for a in noise)
    if initial.shape != (n_tokens, channels) or per_step.shape != (
        n_tokens, schedule.steps, channels,
    ):  # fmt: skip
        raise ValueError(
            f"noise has shapes {initial.shape} and {per_step.shape}, not "
            f"{(n_tokens, channels)} and {(n_tokens, schedule.steps, channels)}"
        )
    return initial, per_step


class SequentialSampler:
    """The plain chain: S evaluations, one after another (ancestral DDPM sampling)."""

    def __init__(self, schedule: HeadSchedule) -> None:
        self.schedule = schedule

    def sample(
        self,
        evaluate: Evaluate,
        *,
        n_tokens: int,
        channels: int,
        rng: np.random.Generator | None = None,
        temperature: float = 1.0,
        noise: HeadNoise | None = None,
    ) -> tuple[Float32, HeadReport]:
        """Draw tokens `[N, C]`.

        Args:
            evaluate: the batched network.
            n_tokens: N.
            channels: C.
            rng: source of noise, unless `noise` is given.
            temperature: factor of the noise of every step.
            noise: `(initial [N, C], per_step [N, S, C])`, entry i of S for head step i.

        Raises:
            ValueError: neither `rng` nor `noise` is given, or shapes do not fit.
        """
        steps = self.schedule.steps
        x, per_step = draw_noise(self.schedule, n_tokens, channels, rng, noise)
        token = np.arange(n_tokens, dtype=np.int64)
        sum_log_std = np.zeros_like(x)
        scale = np.float32(temperature)
        for i in range(steps - 1, -1, -1):
            eps, v = evaluate(x, np.full(n_tokens, i, dtype=np.int64), token)
            mean, log_std, _ = self.schedule.transition(x, eps, v, i)
            if i == 0:
                break
            sum_log_std += log_std
            x = mean + scale * np.exp(log_std) * per_step[:, i]
        report = HeadReport(
            rounds=np.full(n_tokens, steps, dtype=np.int64),
            row_evaluations=steps * n_tokens,
            evaluations=steps,
            mean=mean,
            std=scale * np.exp(log_std),
            sum_log_std=sum_log_std,
        )
        return mean, report
