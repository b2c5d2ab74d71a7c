"""What the rounds of the speculative sampler on a device start from, and what they report."""

from __future__ import annotations

import numpy as np

from ...plugins.rounds import Finished, Start
from ..arrays import Float32, Int64
from .draft import AffineDraft
from .request import HeadReport, HeadRequest, log_uniforms_of
from .schedule import HeadSchedule


def start_of(
    schedule: HeadSchedule,
    draft: AffineDraft | None,
    windows: Int64,
    request: HeadRequest,
    scale: Float32 | None,
) -> Start | None:
    """What the rounds start from, drawn as the host draws it.

    Args:
        schedule: the head schedule.
        draft: fitted predictor, or None.
        windows: `[S]`.
        request: what is asked for.
        scale: guidance of each token, `[N]`, or None.

    Returns:
        None where there is no fitted draft: the network would have to be evaluated first.
    """
    if draft is None or len(request) == 0:
        return None
    initial, per_step = request.noise
    streams, log_uniforms = log_uniforms_of(request)
    return Start(
        tables=np.concatenate(schedule.columns, axis=1),
        weight=draft.weight, bias=draft.bias, share=draft.share, windows=windows,
        initial=initial, normals=per_step, log_uniforms=log_uniforms, generators=streams,
        guess=draft.first(initial), temperature=request.temperature, scale=scale,
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
