"""Fit the head's drafts: record chains of the exported model and regress (`runtime.head.draft`)."""

from __future__ import annotations

import math

import numpy as np

from ...runtime.arrays import Float32, Int64
from ...runtime.decoding.bound import BoundEvaluator, BoundHead
from ...runtime.decoding.evaluator import Conditions, HeadEvaluator, HeadGraphs
from ...runtime.decoding.loop import decode
from ...runtime.decoding.model import RuntimeModel
from ...runtime.decoding.plan import Canvas, Plan
from ...runtime.errors import NumericsError
from ...runtime.head import AffineDraft, Trajectories, fit_affine_draft
from ...runtime.noise import SeededNoise
from ...runtime.options import GenerateOptions
from ...runtime.stats import Stats
from ..progress import OnStep, unseen

# Enough AR steps that contexts of all fill levels occur, few enough to be quick.
AR_STEPS = 16
# adaLN values at once, less than a run takes: an export shall not need much more than the weights.
_MODULATION_BYTES = 128 << 20

# Evaluations by head step: `(x, eps, v)`, `[n, C]` each.
_Calls = dict[int, list[tuple[Float32, Float32, Float32]]]


class _RecordingEvaluator(BoundEvaluator):
    """An evaluator that records calls, whose rows share one head step."""

    def __init__(
        self,
        head: BoundHead,
        graphs: HeadGraphs,
        calls: _Calls,
        conditions: Conditions,
        timesteps: Int64 | Float32,
        where: str,
    ) -> None:
        super().__init__(head, graphs, conditions, timesteps, where)
        self._calls = calls

    def __call__(self, x: Float32, step: Int64, token: Int64) -> tuple[Float32, Float32]:
        """See `HeadEvaluator`."""
        eps, v = super().__call__(x, step, token)
        self._record(x, step, eps, v)
        return eps, v

    def evaluate_rows(self, count: int) -> None:
        """See `RowsEvaluate.evaluate_rows`."""
        super().evaluate_rows(count)
        rows = self.evaluated
        self._record(rows.x[:count], rows.step, rows.eps[:count], rows.v[:count])

    def _record(self, x: Float32, step: Int64, eps: Float32, v: Float32) -> None:
        self._calls.setdefault(int(step[0]), []).append((x.copy(), eps.copy(), v.copy()))


class _RecordingModel(RuntimeModel):
    """A model whose head evaluations are recorded."""

    def __init__(self, model: RuntimeModel) -> None:
        super().__init__(model.role, model.config, model.graphs)
        self.calls: _Calls = {}

    def evaluator(
        self, conditions: Conditions, timesteps: Int64 | Float32, where: str
    ) -> HeadEvaluator:
        """See `RuntimeModel.evaluator`."""
        assert self.bound is not None, "graphs of the host are recorded"
        return _RecordingEvaluator(
            self.bound, self.head_graphs, self.calls, conditions, timesteps, where
        )


def record_chains(
    model: RuntimeModel, *, steps: int, tokens: int, batch: int, seed: int, step: OnStep = unseen
) -> Trajectories:
    """Generate images of random classes and record the chains of at least `tokens` tokens.

    Args:
        model: whose head to record.
        steps: S.
        tokens: how many tokens at least.
        batch: images at once.
        seed: of classes, orders and noise.
        step: called after every AR step.
    """
    config = model.config
    recording = _RecordingModel(model)
    count = math.ceil(tokens / config.seq_len)
    options = GenerateOptions(
        mode="target", num_iter=min(AR_STEPS, config.seq_len), head_steps=steps, head="sequential"
    )
    options = options.resolved(config, steps)
    plan, noise = Plan.of(options, config.seq_len), SeededNoise(seed)
    images = np.arange(count, dtype=np.int64)
    labels = np.random.default_rng(seed).integers(config.class_num, size=count)
    canvas = Canvas.blank(config, noise, labels, images)
    stats = Stats(plan.schedule.num_iter)
    parts = canvas.split(batch)
    most_tokens = max(1, _MODULATION_BYTES // (4 * steps * config.modulation_dim))
    done, total = 0, len(parts) * plan.schedule.num_iter

    step("decoding", 0, total)
    for part in parts:
        for _ in decode(
            part, {"target": recording}, plan, noise, stats,
            most_tokens={model.role: most_tokens},
        ):  # fmt: skip
            done += 1
            step("decoding", done, total)
    schedule = model.samplers.schedule(steps)
    calls = [recording.calls[i] for i in range(steps)]
    x, eps, v = (
        np.stack([np.concatenate([call[k] for call in at]) for at in calls]) for k in range(3)
    )
    # [S, 1] as the head step of [S, n, C]: every table then broadcasts.
    transition = schedule.transition(x, eps, v, np.arange(steps)[:, None])
    return Trajectories(x, transition.mean, transition.log_std, transition.x0hat, v)


def calibrate(
    model: RuntimeModel, *, steps: int, tokens: int, batch: int, seed: int = 0,
    step: OnStep = unseen,
) -> AffineDraft:  # fmt: skip
    """Fit the draft of a model's head at S = `steps`. Arguments as for `record_chains`."""
    chains = record_chains(model, steps=steps, tokens=tokens, batch=batch, seed=seed, step=step)
    step("fitting", 0, 1)
    # Images come one after another: shuffle, so that the held-out tokens are of all contexts.
    order = np.random.default_rng(seed).permutation(chains.x.shape[1])
    shuffled = Trajectories(
        chains.x[:, order], chains.mean[:, order], chains.log_std[:, order],
        chains.x0hat[:, order], chains.v[:, order],
    )  # fmt: skip
    try:
        return fit_affine_draft(model.samplers.schedule(steps), shuffled)
    except NumericsError as error:
        raise NumericsError(f"{model.role}.head_step: {error}") from error
