"""The decode loops: target alone, and continuous speculative decoding (arXiv 2411.11925).

| paper, Algorithm 1 | here |
| --- | --- |
| gamma, drafted AR steps | `options.gamma` |
| M_q, M_p | `draft`, `target` |
| q(x), p(x) of the aligned chains | `drafted.chains.density`, `aligned.chains.density` |
| token pre-filling | `prefilled_steps` |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import arrays
from ..arrays import Bool, Float32, Int64
from ..noise import Noise, Purpose
from ..stats import Stats
from .chains import ChainInputs, Chains
from .evaluator import Conditions
from .model import RuntimeModel
from .plan import Canvas, Plan
from .verification import Verdict, verify


@dataclass(frozen=True, eq=False)
class Prediction:
    """Sampled tokens of some AR steps: `positions [B, P]` and the chains of `B * P` tokens."""

    positions: Int64
    chains: Chains


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
        self._sizes = np.array(plan.schedule.sizes, dtype=np.int64)
        self._guidance = np.array(plan.guidance, dtype=np.float32)
        self._head_steps = np.array(plan.head_steps, dtype=np.int64)
        self._steps = np.arange(plan.schedule.num_iter)

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
            prediction = self._predict(model, range(step, step + 1))
            self._put(prediction.positions, prediction.chains.tokens)
            self.stats.ar_steps += 1
            self._advanced(1)

    def _speculative_block(self, draft: RuntimeModel) -> None:
        """CSD, block verification: one target call for a whole block, no rollback."""
        total, step = self.plan.schedule.num_iter, self.plan.prefilled_steps
        self._alone(self.target, range(step))
        while step < total:
            block = range(step, min(step + self.plan.options.gamma, total))
            drafted = self._draft(draft, block)
            aligned = self._predict(self.target, block, drafted)  # given the old prefix
            verdict = self._verify(drafted, aligned)
            self._put(drafted.positions, verdict.tokens)
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
            aligned, bonus = self._predict_prefixes(block, drafted)
            verdict = self._verify(drafted, aligned)
            self._put(drafted.positions, verdict.tokens)
            # The first AR step with a rejection is kept, with its residual samples. What was
            # drafted after it came from a prefix that no longer exists, and is drafted again.
            step_of = self._per_row(self._steps, block)
            rejected = step_of[~verdict.accepted]
            step = int(rejected.min()) + 1 if len(rejected) else block.stop
            self._count(block, verdict.accepted, kept=step_of < step)
            self._advanced(step - block.start)
            if bonus is not None and not len(rejected):
                extra = self._sample(self.target, bonus, range(step, step + 1))
                self._put(extra.positions, extra.chains.tokens)
                self.stats.ar_steps += 1
                step += 1
                self._advanced(1)

    def _draft(self, draft: RuntimeModel, block: range) -> Prediction:
        """Let the draft decode a block, step by step."""
        parts: list[Prediction] = []
        for step in block:
            parts.append(self._predict(draft, range(step, step + 1)))
            self._put(parts[-1].positions, parts[-1].chains.tokens)
            self.stats.ar_steps += 1
        return self._merge(parts)

    def _verify(self, drafted: Prediction, aligned: Prediction) -> Verdict:
        with self.stats.timed("accept/resample"):
            images, positions = arrays.paired_images(self.canvas.images, drafted.positions)
            verdict = verify(
                drafted.chains.tokens, aligned.chains.density, drafted.chains.density,
                images, positions, self.noise, self.plan.options,
            )  # fmt: skip
        self.stats.verifications += 1
        self.stats.unreachable += verdict.unreachable
        return verdict

    def _count(self, block: range, accepted: Bool, kept: Bool) -> None:
        step_of = self._per_row(self._steps, block)
        self.stats.count_verified(step_of, accepted & kept)
        self.stats.resampled += int((~accepted & kept).sum())
        self.stats.dropped += int((~kept).sum())

    def _predict(
        self, model: RuntimeModel, block: range, aligned_with: Prediction | None = None
    ) -> Prediction:
        """Predict all tokens of some AR steps, given what was known before the first."""
        visible, query = self._known(block.start), self._positions(block)
        conditions = model.condition(
            arrays.gather(self.canvas.tokens, visible), visible, query, self.canvas.labels,
            self._per_row(self._guidance, block),
            guided=self.plan.options.guided, where=f"AR step {block.start}", stats=self.stats,
        )  # fmt: skip
        return self._sample(model, conditions, block, aligned_with)

    def _predict_prefixes(
        self, block: range, drafted: Prediction
    ) -> tuple[Prediction, Conditions | None]:
        """Predict each AR step of a drafted block given its own prefix, in one backbone call.

        Also returns the conditions of the step after the block, or None where there is none.
        """
        steps = range(block.start, min(block.stop + 1, self.plan.schedule.num_iter))
        visible, _ = arrays.pad_rows(
            [self._known(step)[0] for step in steps], fill=self.canvas.orders.shape[1]
        )
        query, valid = arrays.pad_rows(
            [self._positions(range(step, step + 1))[0] for step in steps], fill=0
        )
        conditions = self.target.condition(
            arrays.gather_padded(self.canvas.tokens[0], visible), visible, query,
            np.repeat(self.canvas.labels, len(steps)),
            np.repeat(self._guidance[steps.start : steps.stop], query.shape[1]),
            guided=self.plan.options.guided, where=f"AR step {block.start}", stats=self.stats,
        )[np.flatnonzero(valid)]  # fmt: skip
        size = self._positions(block).shape[1]
        bonus = conditions[slice(size, None)] if len(steps) > len(block) else None
        return self._sample(self.target, conditions[slice(size)], block, drafted), bonus

    def _sample(
        self,
        model: RuntimeModel,
        conditions: Conditions,
        block: range,
        aligned_with: Prediction | None = None,
    ) -> Prediction:
        """Sample the tokens of some AR steps, each with its own number of head steps.

        `aligned_with` gives the noise, and the trajectories that a parallel sampler starts from.
        """
        positions = self._positions(block)
        images, flat = arrays.paired_images(self.canvas.images, positions)
        steps_of = self._per_row(self._head_steps, block)
        parts: list[tuple[Int64, Chains]] = []
        for steps in sorted(set(steps_of.tolist())):
            rows = np.flatnonzero(steps_of == steps)
            inputs = self._chain_inputs(
                model, images[rows], flat[rows], steps,
                None if aligned_with is None else aligned_with.chains[rows],
            )  # fmt: skip
            chains = model.sample(
                conditions[rows], inputs, steps, self.plan.options,
                where=f"AR step {block.start}", stats=self.stats,
            )  # fmt: skip
            parts.append((rows, chains))
        return Prediction(positions, Chains.scattered(parts))

    def _chain_inputs(
        self,
        model: RuntimeModel,
        images: Int64,
        positions: Int64,
        steps: int,
        leader: Chains | None,
    ) -> ChainInputs:
        channels = model.config.token_dim

        def streams() -> list[np.random.Generator]:
            pairs = zip(images.tolist(), positions.tolist(), strict=True)
            return [self.noise.stream(Purpose.HEAD, *pair) for pair in pairs]

        together = len(images) // len(self.canvas.images)
        initial = self.noise.initial(images, positions, channels)
        if leader is None:
            per_step = self.noise.per_step(images, positions, steps, channels)
            return ChainInputs((initial, per_step), streams, together=together)
        noise = initial, leader.noise[:, :steps]
        return ChainInputs(noise, streams, leader.trajectory[:, : steps + 1], together)

    def _known(self, step: int) -> Int64:
        """Positions known before an AR step, `[B, V]`."""
        return self.canvas.orders[:, self.plan.schedule.bounds[step][1] :]

    def _positions(self, block: range) -> Int64:
        """Positions that some AR steps predict, in their order, `[B, P]`."""
        bounds = self.plan.schedule.bounds[block.start : block.stop]
        return np.concatenate([self.canvas.orders[:, a:b] for a, b in bounds], axis=1)

    def _per_row(self, values: NDArray[Any], block: range) -> NDArray[Any]:
        """Spread a value of each AR step over its tokens, image after image, `[B * P]`."""
        part = slice(block.start, block.stop)
        row = np.repeat(values[part], self._sizes[part])
        return np.tile(row, len(self.canvas.images))

    def _put(self, positions: Int64, tokens: Float32) -> None:
        arrays.scatter(self.canvas.tokens, positions, tokens)

    def _merge(self, parts: list[Prediction]) -> Prediction:
        """Join predictions of consecutive AR steps, image after image."""
        positions = np.concatenate([part.positions for part in parts], axis=1)
        batch, total = positions.shape
        rows = np.arange(batch * total).reshape(batch, total)
        edges = np.cumsum([0, *(part.positions.shape[1] for part in parts)])
        pieces = [
            (rows[:, start:stop].reshape(-1), part.chains)
            for start, stop, part in zip(edges, edges[1:], parts, strict=False)
        ]
        return Prediction(positions, Chains.scattered(pieces))
