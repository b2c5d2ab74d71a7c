"""The sequential sampler: ancestral DDPM sampling, the reference of the others."""

from __future__ import annotations

import numpy as np

from ..arguments import positive_number
from ..arrays import Float32
from . import native
from .sampler import Evaluate, HeadNoise, HeadReport, draw_noise, evaluated
from .schedule import HeadSchedule


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
            NumericsError: an output of the network is not finite.
            OptionError: neither `rng` nor `noise` is given, a value is of another type or out of
                range, or shapes do not fit.
        """
        steps = self.schedule.steps
        temperature = positive_number("temperature", temperature)
        initial, per_step = draw_noise(self.schedule, n_tokens, channels, rng, noise)
        n_tokens, channels = initial.shape  # Python's numbers now
        states = np.zeros((steps + 1, n_tokens, channels), dtype=np.float32)
        if native.available():
            report = native.iterate(
                self.schedule, 1, 0.0, None, evaluate, (initial, per_step), states, temperature
            )
            return report.mean, report
        token = np.arange(n_tokens, dtype=np.int64)
        sum_log_std, scale = np.zeros_like(initial), np.float32(temperature)
        states[steps] = initial
        for i in range(steps - 1, 0, -1):
            step = np.full(n_tokens, i, dtype=np.int64)
            (mean, log_std, _), _ = evaluated(self.schedule, evaluate, states[i + 1], step, token)
            sum_log_std += log_std
            states[i] = mean + scale * np.exp(log_std) * per_step[:, i]
        (mean, log_std, _), _ = evaluated(
            self.schedule, evaluate, states[1], np.zeros(n_tokens, dtype=np.int64), token
        )
        states[0] = mean
        report = HeadReport(
            rounds=np.full(n_tokens, steps, dtype=np.int64),
            row_evaluations=steps * n_tokens,
            evaluations=steps,
            mean=mean,
            std=scale * np.exp(log_std),
            sum_log_std=sum_log_std,
            trajectory=states,
            noise=(initial, per_step),
        )
        return mean, report
