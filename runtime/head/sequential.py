"""The sequential sampler: ancestral DDPM sampling, the reference of the others."""

from __future__ import annotations

import numpy as np

from ..arrays import Float32
from . import native
from .request import Evaluate, HeadNoise, HeadReport, HeadRequest, evaluated
from .sampler import ChainSampler


class SequentialSampler(ChainSampler):
    """The plain chain: S evaluations, one after another (ancestral DDPM sampling)."""

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
        request = HeadRequest.drawn(self.schedule, n_tokens, channels, rng, temperature, noise)
        report = self.run(evaluate, request)
        return report.mean, report

    def _compiled(self, evaluate: Evaluate, request: HeadRequest) -> HeadReport:
        states = np.zeros((self.schedule.steps + 1, *request.noise[0].shape), dtype=np.float32)
        return native.iterate(
            self.schedule, 1, 0.0, None, evaluate, request.noise, states, request.temperature
        )

    def _plain(self, evaluate: Evaluate, request: HeadRequest) -> HeadReport:
        (initial, per_step), count, steps = request.noise, len(request), self.schedule.steps
        states = np.zeros((steps + 1, *initial.shape), dtype=np.float32)
        token = np.arange(count, dtype=np.int64)
        sum_log_std, scale = np.zeros_like(initial), np.float32(request.temperature)
        states[steps] = initial
        for i in range(steps - 1, 0, -1):
            step = np.full(count, i, dtype=np.int64)
            (mean, log_std, _), _ = evaluated(self.schedule, evaluate, states[i + 1], step, token)
            sum_log_std += log_std
            states[i] = mean + scale * np.exp(log_std) * per_step[:, i]
        (mean, log_std, _), _ = evaluated(
            self.schedule, evaluate, states[1], np.zeros(count, dtype=np.int64), token
        )
        states[0] = mean
        return HeadReport(
            rounds=np.full(count, steps, dtype=np.int64),
            row_evaluations=steps * count,
            evaluations=steps,
            mean=mean,
            std=scale * np.exp(log_std),
            sum_log_std=sum_log_std,
            trajectory=states,
            noise=request.noise,
        )
