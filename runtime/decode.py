"""The decode loops: target alone, and continuous speculative decoding (arXiv 2411.11925).

| paper, Algorithm 1 | here |
| --- | --- |
| gamma, drafted AR steps | `options.gamma` |
| M_q, M_p | `draft`, `target` |
| q(x), p(x) of the aligned chains | `drafted.density`, `aligned.density` |
| token pre-filling | `prefilled_steps` |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..plugins.reference import Density
from . import ops
from .model import Conditions, RuntimeModel
from .noise import Noise
from .ops import Float32, Int64
from .options import GenerateOptions
from .schedule import ARSchedule, annealed_head_steps
from .stats import Stats
from .verification import Verdict, verify

Bool = NDArray[np.bool_]


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

    def split(self, size: int) -> list[Canvas]:
        """Return views of at most `size` images each; writing to them writes here."""
        return [
            Canvas(self.tokens[rows], self.orders[rows], self.labels[rows], self.images[rows])
            for rows in (slice(i, i + size) for i in range(0, len(self.images), size))
        ]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Sampled tokens of some AR steps: `positions [B, P]`, `tokens [B * P, C]`, densities."""

    positions: Int64
    tokens: Float32
    density: Density


class Decoder:
    """Decodes one canvas according to a plan.

    Args:
        canvas: what to decode, in place.
        target: the large model.
        draft: the small model, or None where the mode needs none.
        plan: what every AR step does.
        noise: source of all randomness.
        stats: where counts and times go.
        advanced: called with the number of AR steps just finished.
    """

    def __init__(
        self,
        canvas: Canvas,
        target: RuntimeModel,
        draft: RuntimeModel | None,
        plan: Plan,
        noise: Noise,
        stats: Stats,
        advanced: Callable[[int], None],
    ) -> None:
        self.canvas, self.target, self.draft = canvas, target, draft
        self.plan, self.noise, self.stats = plan, noise, stats
        self._advanced = advanced

    def run(self) -> None:
        """Decode all AR steps in the mode of the plan."""
        options, total = self.plan.options, self.plan.schedule.num_iter
        if options.mode == "target" or self.draft is None:
            self._alone(self.target, range(total))
        elif options.mode == "draft":
            self._alone(self.draft, range(total))
        elif options.verify == "block":
            self._speculative_block(self.draft)
        else:
            self._speculative_prefix(self.draft)

    def _alone(self, model: RuntimeModel, steps: range) -> None:
        """Decode AR steps with one model."""
        for step in steps:
            self._put(self._predict(model, range(step, step + 1)))
            self.stats.ar_steps += 1
            self._advanced(1)

    def _speculative_block(self, draft: RuntimeModel) -> None:
        """CSD, block verification: one target call for a whole block, no rollback."""
        total, step = self.plan.schedule.num_iter, self.plan.prefilled_steps
        self._alone(self.target, range(step))
        while step < total:
            block = range(step, min(step + self.plan.options.gamma, total))
            drafted = self._draft(draft, block)
            aligned = self._predict(self.target, block)  # given the old prefix
            verdict = self._verify(drafted, aligned)
            self._put(replace(drafted, tokens=verdict.tokens))
            self._count(block, verdict.accepted, kept=np.ones_like(verdict.accepted))
            step = block.stop
            self._advanced(len(block))

    def _speculative_prefix(self, draft: RuntimeModel) -> None:
        """CSD, prefix verification: Algorithm 1 of the paper, for one image."""
        total, step = self.plan.schedule.num_iter, self.plan.prefilled_steps
        self._alone(self.target, range(step))
        while step < total:
            block = range(step, min(step + self.plan.options.gamma, total))
            drafted = self._draft(draft, block)
            aligned, bonus = self._predict_prefixes(block)
            verdict = self._verify(drafted, aligned)
            self._put(replace(drafted, tokens=verdict.tokens))
            # The first AR step with a rejection is kept, with its residual samples. What was
            # drafted after it came from a prefix that no longer exists, and is drafted again.
            step_of = self._per_row(list(range(total)), block)
            rejected = step_of[~verdict.accepted]
            step = int(rejected.min()) + 1 if len(rejected) else block.stop
            self._count(block, verdict.accepted, kept=step_of < step)
            self._advanced(step - block.start)
            if bonus is not None and not len(rejected):
                self._put(self._sample(self.target, bonus, range(step, step + 1)))
                self.stats.ar_steps += 1
                step += 1
                self._advanced(1)

    def _draft(self, draft: RuntimeModel, block: range) -> Prediction:
        """Let the draft decode a block, step by step."""
        parts: list[Prediction] = []
        for step in block:
            parts.append(self._predict(draft, range(step, step + 1)))
            self._put(parts[-1])
            self.stats.ar_steps += 1
        return self._merge(parts)

    def _verify(self, drafted: Prediction, aligned: Prediction) -> Verdict:
        with self.stats.timed("accept/resample"):
            images, positions = ops.paired_images(self.canvas.images, drafted.positions)
            verdict = verify(
                drafted.tokens, aligned.density, drafted.density,
                images, positions, self.noise, self.plan.options,
            )  # fmt: skip
        self.stats.verifications += 1
        self.stats.unreachable += verdict.unreachable
        return verdict

    def _count(self, block: range, accepted: Bool, kept: Bool) -> None:
        step_of = self._per_row(list(range(self.plan.schedule.num_iter)), block)
        self.stats.count_verified(step_of, accepted & kept)
        self.stats.resampled += int((~accepted & kept).sum())
        self.stats.dropped += int((~kept).sum())

    def _predict(self, model: RuntimeModel, block: range) -> Prediction:
        """Predict all tokens of some AR steps, given what was known before the first."""
        visible, query = self._known(block.start), self._positions(block)
        conditions = model.condition(
            ops.gather(self.canvas.tokens, visible), visible, query, self.canvas.labels,
            self._per_row(self.plan.guidance, block).astype(np.float32),
            guided=self.plan.options.guided, stats=self.stats,
        )  # fmt: skip
        return self._sample(model, conditions, block)

    def _predict_prefixes(self, block: range) -> tuple[Prediction, Conditions | None]:
        """Predict each AR step of a drafted block given its own prefix, in one backbone call.

        Also returns the conditions of the step after the block, or None where there is none.
        """
        steps = range(block.start, min(block.stop + 1, self.plan.schedule.num_iter))
        visible, _ = ops.pad_rows(
            [self._known(step)[0] for step in steps], fill=self.canvas.orders.shape[1]
        )
        query, valid = ops.pad_rows(
            [self._positions(range(step, step + 1))[0] for step in steps], fill=0
        )
        conditions = self.target.condition(
            ops.gather_padded(self.canvas.tokens[0], visible), visible, query,
            np.repeat(self.canvas.labels, len(steps)),
            np.repeat([self.plan.guidance[s] for s in steps], query.shape[1]).astype(np.float32),
            guided=self.plan.options.guided, stats=self.stats,
        )[np.flatnonzero(valid)]  # fmt: skip
        size = self._positions(block).shape[1]
        bonus = conditions[slice(size, None)] if len(steps) > len(block) else None
        return self._sample(self.target, conditions[slice(size)], block), bonus

    def _sample(self, model: RuntimeModel, conditions: Conditions, block: range) -> Prediction:
        """Sample the tokens of some AR steps, each with its own number of head steps."""
        positions = self._positions(block)
        images, flat = ops.paired_images(self.canvas.images, positions)
        channels, temperature = model.config.token_dim, self.plan.options.temperature
        steps_of = self._per_row(self.plan.head_steps, block)
        tokens = np.empty((len(flat), channels), dtype=np.float32)
        density = Density.empty(len(flat), channels)
        for steps in sorted(set(steps_of.tolist())):
            rows = np.flatnonzero(steps_of == steps)
            tokens[rows], density[rows] = model.sample(
                conditions[rows],
                (
                    self.noise.initial(images[rows], flat[rows], channels),
                    self.noise.per_step(images[rows], flat[rows], steps, channels),
                ),
                steps, temperature, where=f"AR step {block.start}", stats=self.stats,
            )  # fmt: skip
        return Prediction(positions, tokens, density)

    def _known(self, step: int) -> Int64:
        """Positions known before an AR step, `[B, V]`."""
        return self.canvas.orders[:, self.plan.schedule.bounds[step][1] :]

    def _positions(self, block: range) -> Int64:
        """Positions that some AR steps predict, in their order, `[B, P]`."""
        bounds = self.plan.schedule.bounds[block.start : block.stop]
        return np.concatenate([self.canvas.orders[:, a:b] for a, b in bounds], axis=1)

    def _per_row(self, values: list[Any], block: range) -> NDArray[Any]:
        """Spread a value of each AR step over its tokens, image after image, `[B * P]`."""
        sizes = self.plan.schedule.sizes[block.start : block.stop]
        row = np.repeat(values[block.start : block.stop], sizes)
        return np.tile(row, len(self.canvas.images))

    def _put(self, prediction: Prediction) -> None:
        ops.scatter(self.canvas.tokens, prediction.positions, prediction.tokens)

    def _merge(self, parts: list[Prediction]) -> Prediction:
        """Join predictions of consecutive AR steps, image after image."""
        batch = len(self.canvas.images)

        def joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
            wide = np.concatenate([a.reshape(batch, -1, a.shape[-1]) for a in arrays], axis=1)
            return wide.reshape(-1, wide.shape[-1])

        return Prediction(
            np.concatenate([part.positions for part in parts], axis=1),
            joined([part.tokens for part in parts]),
            Density(
                joined([part.density.mean for part in parts]),
                joined([part.density.std for part in parts]),
                joined([part.density.sum_log_std for part in parts]),
            ),
        )
