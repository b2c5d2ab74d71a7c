"""The decode loops: target alone, and continuous speculative decoding (arXiv 2411.11925).

| paper, Algorithm 1 | here |
| --- | --- |
| gamma, drafted AR steps | `options.gamma` |
| M_q, M_p | `draft`, `target` |
| q(x), p(x) of the aligned chains | `drafted.chains.density`, `aligned.chains.density` |
| token pre-filling | `prefilled_steps` |
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import arrays
from ..arrays import Bool, Float32, Int64
from ..errors import OptionError
from ..head import HeadRequest
from ..noise import Noise, Purpose
from ..stats import Stats
from .chains import Chains
from .change import Change
from .evaluator import Conditions
from .model import RuntimeModel
from .plan import Canvas, Plan
from .refresh.backbone import CachedBackbone
from .refresh.period import period_of
from .refresh.steps import CachedSteps
from .verification import Verdict, verify


def decode(
    canvas: Canvas,
    models: Mapping[str, RuntimeModel],
    plan: Plan,
    noise: Noise,
    stats: Stats,
    *,
    at_once: int | None = None,
    most_tokens: Mapping[str, int] | None = None,
    cached: Mapping[str, CachedBackbone] | None = None,
) -> Iterator[Change]:
    """Decode a canvas in the mode of the plan, in place, as far as the iterator is advanced.

    Args:
        canvas: what to decode.
        models: by role, those that the mode needs.
        plan: what every AR step does.
        noise: source of all randomness.
        stats: where counts and times go.
        at_once: images of the run's largest canvas, which all its canvases are sampled alike for;
            None is this one's.
        most_tokens: rows of z in one call of a model's `head_modulation`, where that is limited.
        cached: by role, backbones whose steps are full or local as the options say; the models'
            own are used where there are none.

    Yields:
        What was done to the canvas: after each AR step that one model decodes or drafts, and after
        each verification. No more than an AR step of one model or a verification lies between two.

    Raises:
        OptionError: a model that the mode needs is not there.
        NumericsError: a network returned a value that is not finite.
    """
    options = plan.options
    if missing := [role for role in options.roles if role not in models]:
        raise OptionError(f"mode {options.mode} needs a {missing[0]}, and there is none")
    at_once = len(canvas) if at_once is None else at_once
    decoder = Decoder(canvas, plan, noise, stats, at_once, most_tokens or {}, cached or {})
    if options.mode != "csd":
        yield from decoder.alone(models[options.mode], range(plan.num_iter))
    elif options.verify == "block":
        yield from decoder.speculate_block(models["target"], models["draft"])
    else:
        yield from decoder.speculate_prefix(models["target"], models["draft"])


@dataclass(frozen=True, eq=False)
class Prediction:
    """Sampled tokens of some AR steps: `positions [B, P]` and the chains of `B * P` tokens."""

    positions: Int64
    chains: Chains


class Decoder:
    """The modes over one canvas. Arguments as for `decode`."""

    def __init__(
        self,
        canvas: Canvas,
        plan: Plan,
        noise: Noise,
        stats: Stats,
        at_once: int,
        most_tokens: Mapping[str, int],
        cached: Mapping[str, CachedBackbone],
    ) -> None:
        self.canvas, self.plan, self.noise, self.stats = canvas, plan, noise, stats
        self._at_once, self._most_tokens = at_once, most_tokens
        options = plan.options
        self._cached = {
            role: CachedSteps(backbone, period_of(options.refresh, options.refresh_tolerance))
            for role, backbone in cached.items()
        }

    def alone(self, model: RuntimeModel, steps: range) -> Iterator[Change]:
        """Decode AR steps with one model."""
        for step in steps:
            prediction = self._predict(model, range(step, step + 1))
            self._put(prediction, step)
            yield Change.decoded(prediction.positions, step)

    def speculate_block(self, target: RuntimeModel, draft: RuntimeModel) -> Iterator[Change]:
        """CSD, block verification: one target call for a whole block, no rollback."""
        yield from self.alone(target, range(self.plan.prefilled_steps))
        for block in self.plan.blocks():
            drafted = yield from self._draft(draft, block)
            aligned = self._predict(target, block, drafted)  # given the old prefix
            verdict = self._verify(drafted, aligned)
            self._replace(block, drafted.positions, verdict.tokens)
            kept = np.ones_like(verdict.accepted)
            self._count(block, verdict.accepted, kept)
            yield Change.verified(drafted.positions, block.stop, verdict.accepted, kept)

    def speculate_prefix(self, target: RuntimeModel, draft: RuntimeModel) -> Iterator[Change]:
        """CSD, prefix verification: Algorithm 1 of the paper, for one image."""
        step = self.plan.prefilled_steps
        yield from self.alone(target, range(step))
        while step < self.plan.num_iter:
            block = self.plan.block(step)
            drafted = yield from self._draft(draft, block)
            aligned, bonus = self._predict_prefixes(target, block, drafted)
            verdict = self._verify(drafted, aligned)
            self._replace(block, drafted.positions, verdict.tokens)
            # The first AR step with a rejection is kept, with its residual samples. What was
            # drafted after it came from a prefix that no longer exists, and is drafted again.
            step_of = self._step_of(block)
            rejected = step_of[~verdict.accepted]
            step = int(rejected.min()) + 1 if len(rejected) else block.stop
            kept = step_of < step
            self._count(block, verdict.accepted, kept)
            yield Change.verified(drafted.positions, step, verdict.accepted, kept)
            if bonus is not None and not len(rejected):
                more = self._sample(target, bonus, range(step, step + 1))
                self._put(more, step)
                yield Change.decoded(more.positions, step)
                step += 1

    def _replace(self, block: range, positions: Int64, tokens: Float32) -> None:
        """Put what a verification made of a block in place of what was drafted."""
        self.canvas.put(positions, tokens)
        for steps in self._cached.values():
            steps.replaced_from(block.start)

    def _draft(self, draft: RuntimeModel, block: range) -> Generator[Change, None, Prediction]:
        """Let the draft decode a block, step by step; returns what it drafted."""
        parts: list[Prediction] = []
        for step in block:
            parts.append(self._predict(draft, range(step, step + 1)))
            self._put(parts[-1], step)
            yield Change.drafted(parts[-1].positions, step, block.start)
        return _joined(parts)

    def _verify(self, drafted: Prediction, aligned: Prediction) -> Verdict:
        with self.stats.timed("accept/resample"):
            verdict = verify(
                drafted.chains.tokens, aligned.chains.density, drafted.chains.density,
                *self.canvas.pairs(drafted.positions), self.noise, self.plan.options,
            )  # fmt: skip
        self.stats.verifications += 1
        self.stats.unreachable += verdict.unreachable
        return verdict

    def _count(self, block: range, accepted: Bool, kept: Bool) -> None:
        self.stats.count_verified(self._step_of(block), accepted & kept)
        self.stats.resampled += int((~accepted & kept).sum())
        self.stats.dropped += int((~kept).sum())

    def _step_of(self, block: range) -> Int64:
        """AR step of each token of a block, `[B * P]`."""
        return self.canvas.rows(self.plan.per_token(np.arange(self.plan.num_iter), block))

    def _put(self, prediction: Prediction, step: int) -> None:
        """Take the tokens of one AR step."""
        self.canvas.put(prediction.positions, prediction.chains.tokens)
        self.stats.ar_steps += 1
        self.stats.guided_ar_steps += self.plan.guided(range(step, step + 1))

    def _predict(
        self, model: RuntimeModel, block: range, aligned_with: Prediction | None = None
    ) -> Prediction:
        """Predict all tokens of some AR steps, given what was known before the first."""
        canvas, plan = self.canvas, self.plan
        if model.role in self._cached:
            return self._predict_cached(model, block, aligned_with)
        visible = canvas.known(plan.schedule, block.start)
        conditions = model.condition(
            arrays.gather(canvas.tokens, visible), visible,
            canvas.positions(plan.schedule, block), canvas.labels,
            canvas.rows(plan.per_token(plan.guidance, block)),
            guided=plan.guided(block), where=f"AR step {block.start}", stats=self.stats,
        )  # fmt: skip
        return self._sample(model, conditions, block, aligned_with)

    def _predict_cached(
        self, model: RuntimeModel, block: range, aligned_with: Prediction | None
    ) -> Prediction:
        """As `_predict`, by a full or a local step."""
        steps = self._cached[model.role]
        predicted = steps.predict(self.canvas, self.plan, block, self.stats)
        prediction = self._sample(model, predicted.conditions, block, aligned_with)
        if predicted.stale is not None:
            steps.period.observe(self._displacement(model, predicted.stale, block, prediction))
        return prediction

    def _displacement(
        self, model: RuntimeModel, stale: Conditions, block: range, prediction: Prediction
    ) -> float:
        """How far a local step's tokens lie from a full one's under the same noise.

        Returns:
            The largest root mean square of an image, in units of the tokens.
        """
        with self.stats.timed("refresh check"):
            other = self._sample(model, stale, block, prediction, Stats(self.plan.num_iter))
            moved = other.chains.tokens - prediction.chains.tokens
            squares = np.square(moved).reshape(*prediction.positions.shape, -1)
            self.stats.note_displacement(model.role, self.canvas.images, squares)
            return float(np.sqrt(squares.mean(axis=(1, 2))).max())

    def _predict_prefixes(
        self, target: RuntimeModel, block: range, drafted: Prediction
    ) -> tuple[Prediction, Conditions | None]:
        """Predict each AR step of a drafted block given its own prefix, in one backbone call.

        Also returns the conditions of the step after the block, or None where there is none.
        """
        canvas, plan = self.canvas, self.plan
        steps = range(block.start, min(block.stop + 1, plan.num_iter))
        visible, _ = arrays.pad_rows(
            [canvas.known(plan.schedule, step)[0] for step in steps], fill=canvas.orders.shape[1]
        )
        query, valid = arrays.pad_rows(
            [canvas.positions(plan.schedule, range(step, step + 1))[0] for step in steps], fill=0
        )
        conditions = target.condition(
            arrays.gather_padded(canvas.tokens[0], visible), visible, query,
            np.repeat(canvas.labels, len(steps)),
            np.repeat(plan.guidance[steps.start : steps.stop], query.shape[1]),
            guided=plan.guided(steps), where=f"AR step {block.start}", stats=self.stats,
        )[np.flatnonzero(valid)]  # fmt: skip
        size = drafted.positions.shape[1]
        bonus = conditions[slice(size, None)] if len(steps) > len(block) else None
        return self._sample(target, conditions[slice(size)], block, drafted), bonus

    def _sample(
        self,
        model: RuntimeModel,
        conditions: Conditions,
        block: range,
        aligned_with: Prediction | None = None,
        stats: Stats | None = None,
    ) -> Prediction:
        """Sample the tokens of some AR steps, each with its own number of head steps.

        `aligned_with` gives the noise, and the trajectories that a parallel sampler starts from.
        What it takes is counted in `stats`, by default those of the run.
        """
        canvas, plan = self.canvas, self.plan
        if not plan.guided(block):  # though a step beside them in the backbone's call may be
            conditions = conditions.conditional()
        positions = canvas.positions(plan.schedule, block)
        images, flat = canvas.pairs(positions)
        steps_of = canvas.rows(plan.per_token(plan.head_steps, block))
        parts: list[tuple[Int64, Chains]] = []
        for steps in sorted(set(steps_of.tolist())):
            rows = np.flatnonzero(steps_of == steps)
            leader = None if aligned_with is None else aligned_with.chains[rows]
            request = self._request(images[rows], flat[rows], steps, leader)
            chains = model.sample(
                conditions[rows], request, plan.options, together=len(rows) // len(canvas),
                images=self._at_once, most_tokens=self._most_tokens.get(model.role),
                where=f"AR step {block.start}", stats=stats or self.stats,
            )  # fmt: skip
            parts.append((rows, chains))
        return Prediction(positions, Chains.scattered(parts))

    def _request(
        self, images: Int64, positions: Int64, steps: int, leader: Chains | None
    ) -> HeadRequest:
        """Chains of tokens, aligned with a leader's where there is one."""
        channels = self.canvas.tokens.shape[2]

        def streams_of(chains: Sequence[int]) -> list[np.random.Generator]:
            pairs = ((int(images[chain]), int(positions[chain])) for chain in chains)
            return [self.noise.stream(Purpose.HEAD, *pair) for pair in pairs]

        temperature = self.plan.options.temperature
        initial = self.noise.initial(images, positions, channels)
        if self.plan.options.solved:  # one noise and no other
            nothing = np.broadcast_to(np.float32(0), (len(initial), steps, channels))
            return HeadRequest((initial, nothing), temperature, streams_of)
        if leader is None:
            per_step = self.noise.per_step(images, positions, steps, channels)
            return HeadRequest((initial, per_step), temperature, streams_of)
        # Denoising trajectory alignment: the noise with which the leader's chain was made.
        noise = initial, leader.noise[:, :steps]
        return HeadRequest(noise, temperature, streams_of, leader.trajectory[: steps + 1])


def _joined(parts: list[Prediction]) -> Prediction:
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
