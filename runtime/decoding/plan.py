"""What every AR step does, and the images that it does it to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import arrays
from ..arrays import Float32, Int64
from ..config import MARConfig
from ..noise import Noise
from ..options import GenerateOptions
from ..schedule import ARSchedule, annealed_head_steps


@dataclass(frozen=True, eq=False)
class Plan:
    """What every AR step does.

    Attributes:
        options: resolved.
        schedule: which tokens each AR step predicts.
        guidance: scale of each AR step, `[num_iter]`; 1 is none.
        head_steps: S of each AR step, `[num_iter]`.
    """

    options: GenerateOptions
    schedule: ARSchedule
    guidance: Float32
    head_steps: Int64

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
        assert options.mask_schedule is not None
        assert options.cfg_schedule is not None
        assert options.cfg_interval is not None
        schedule = ARSchedule(seq_len, options.num_iter, options.mask_schedule)
        guidance = schedule.guidance(options.cfg, options.cfg_schedule, options.cfg_interval)
        head_steps = annealed_head_steps(first, last, options.num_iter)
        return cls(
            options,
            schedule,
            np.array(guidance, dtype=np.float32),
            np.array(head_steps, dtype=np.int64),
        )

    @property
    def num_iter(self) -> int:
        """Number of AR steps."""
        return self.schedule.num_iter

    @property
    def prefilled_steps(self) -> int:
        """AR steps that the target decodes before the draft takes over."""
        return math.ceil(self.options.prefill * self.num_iter)

    def guided(self, steps: range) -> bool:
        """Whether one of some AR steps has guidance: all of them then have both branches."""
        return bool((self.guidance[steps.start : steps.stop] != 1).any())

    def block(self, start: int) -> range:
        """AR steps that are drafted together from `start` on."""
        return range(start, min(start + self.options.gamma, self.num_iter))

    def blocks(self) -> list[range]:
        """Blocks that follow one another where nothing is rolled back."""
        starts = range(self.prefilled_steps, self.num_iter, self.options.gamma)
        return [self.block(start) for start in starts]

    def per_token(self, values: NDArray[Any], steps: range) -> NDArray[Any]:
        """Spread a value of each AR step `[num_iter]` over the tokens of some of them, `[P]`."""
        part = slice(steps.start, steps.stop)
        return np.repeat(values[part], self.schedule.sizes[part])


@dataclass(frozen=True, eq=False)
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

    def __len__(self) -> int:
        return len(self.images)

    def split(self, size: int) -> list[Canvas]:
        """Return views of at most `size` images each; writing to them writes here."""
        return [
            Canvas(self.tokens[rows], self.orders[rows], self.labels[rows], self.images[rows])
            for rows in (slice(i, i + size) for i in range(0, len(self), size))
        ]

    def known(self, schedule: ARSchedule, step: int) -> Int64:
        """Positions known before an AR step, `[B, V]`."""
        return self.orders[:, schedule.bounds[step][1] :]

    def between(self, schedule: ARSchedule, step: int, later: int) -> Int64:
        """Positions that were predicted from an AR step on and before a later one, `[B, N]`."""
        return self.orders[:, schedule.bounds[later][1] : schedule.bounds[step][1]]

    def positions(self, schedule: ARSchedule, steps: range) -> Int64:
        """Positions that some AR steps predict, in their order, `[B, P]`."""
        bounds = schedule.bounds[steps.start : steps.stop]
        return np.concatenate([self.orders[:, a:b] for a, b in bounds], axis=1)

    def rows(self, per_token: NDArray[Any]) -> NDArray[Any]:
        """Values of tokens `[P]`, image after image, `[B * P]`."""
        return np.tile(per_token, len(self))

    def pairs(self, positions: Int64) -> tuple[Int64, Int64]:
        """Image and position of each row, `[B * P]` each, of `positions [B, P]`."""
        return arrays.paired_images(self.images, positions)

    def put(self, positions: Int64, tokens: Float32) -> None:
        """Write tokens `[B * P, C]` at `positions [B, P]`."""
        arrays.scatter(self.tokens, positions, tokens)
