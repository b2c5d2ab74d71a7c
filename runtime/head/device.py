"""The speculative sampler on a backend that runs its rounds on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...plugins.rounds import Finished, Start
from ..arrays import Float32
from .sampler import HeadNoise, HeadReport
from .speculative import SpeculativeSampler


def start_of(
    sampler: SpeculativeSampler,
    noise: HeadNoise,
    streams: Sequence[np.random.Generator],
    temperature: float,
    scale: Float32 | None,
) -> Start | None:
    """What the rounds start from, drawn from the streams as `SpeculativeSampler.sample` draws it.

    Args:
        sampler: schedule, draft and windows.
        noise: `(initial [N, C], per_step [N, S, C])`.
        streams: a generator for each token.
        temperature: factor of the noise.
        scale: guidance of each token, `[N]`, or None.

    Returns:
        None where the sampler has no fitted draft: it would have to evaluate the network first.
    """
    draft, (initial, per_step) = sampler.draft, noise
    if draft is None or len(initial) == 0:
        return None
    uniforms = np.array([stream.random(sampler.schedule.steps) for stream in streams])
    with np.errstate(divide="ignore"):
        log_uniforms = np.log(uniforms)
    return Start(
        tables=np.concatenate(sampler.schedule.columns, axis=1),
        weight=draft.weight, bias=draft.bias, share=draft.share, windows=sampler.windows,
        initial=initial, normals=per_step, log_uniforms=log_uniforms, generators=streams,
        guess=draft.first(initial), temperature=temperature, scale=scale,
    )  # fmt: skip


def report_of(made: Finished, calls: int, rows: int, initial: Float32) -> HeadReport:
    """What the rounds made and took, as a sampler reports it."""
    return HeadReport(
        rounds=made.rounds,
        row_evaluations=rows,
        evaluations=calls,
        mean=made.states[0].copy(),
        std=made.std,
        sum_log_std=made.sum_log_std,
        trajectory=made.states,
        noise=(initial, made.noise),
    )
