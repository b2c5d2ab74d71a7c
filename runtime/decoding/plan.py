"""What every AR step does, and the images that it does it to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..arrays import Float32, Int64
from ..config import MARConfig
from ..noise import Noise
from ..options import GenerateOptions
from ..schedule import ARSchedule, annealed_head_steps


@dataclass(frozen=True, eq=False)
class Plan:
    """What every AR step does."""

    options: GenerateOptions
    schedule: ARSchedule
    guidance: list[float]
    head_steps: list[int]

    @classmethod
    def of(cls, options: GenerateOptions, seq_len: int) -> Plan:
        """Make the plan of resolved options."""
        assert options.num_iter is not None
        assert options.head_steps is not None
        first, last = (
            (options.head_steps, options.head_steps)
            if isinstance(options.head_steps, int)
            else options.head_steps
        )
        schedule = ARSchedule(seq_len, options.num_iter)
        return cls(
            options,
            schedule,
            schedule.guidance(options.cfg, options.cfg_schedule),
            annealed_head_steps(first, last, options.num_iter),
        )

    @property
    def prefilled_steps(self) -> int:
        """AR steps that the target decodes before the draft takes over."""
        return math.ceil(self.options.prefill * self.schedule.num_iter)


@dataclass(eq=False)
class Canvas:
    """Images in the making.

    Attributes:
        tokens: `[B, L, C]`; only those of finished AR steps mean anything.
        orders: generation order of each image, `[B, L]`.
        labels: `[B]`.
        images: number of each image, which its noise belongs to, `[B]`.
    """

    tokens: Float32
    orders: Int64
    labels: Int64
    images: Int64

    @classmethod
    def blank(cls, config: MARConfig, noise: Noise, labels: Int64, images: Int64) -> Canvas:
        """Return a canvas with nothing on it, whose orders are drawn from the noise."""
        tokens = np.zeros((len(images), config.seq_len, config.token_dim), dtype=np.float32)
        return cls(tokens, noise.orders(images, config.seq_len), labels, images)

    def split(self, size: int) -> list[Canvas]:
        """Return views of at most `size` images each; writing to them writes here."""
        return [
            Canvas(self.tokens[rows], self.orders[rows], self.labels[rows], self.images[rows])
            for rows in (slice(i, i + size) for i in range(0, len(self.images), size))
        ]
