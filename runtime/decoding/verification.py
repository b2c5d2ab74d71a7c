"""Density-ratio acceptance and residual resampling of drafted tokens (plugins.reference)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...plugins import reference
from ...plugins.reference import Density
from ..arrays import Float32, Int64
from ..noise import Noise, Purpose
from ..options import GenerateOptions

# Tries per token before a residual is given up. Where Sigma is not 1 the residual may be empty or
# out of reach; the released code then leaves a zero, we leave a draw of the target's last step.
POOL = 16
RELAXED_TRIES = 100
PAPER_TRIES = 512


@dataclass(frozen=True, eq=False)
class Verdict:
    """Outcome of a verification.

    Attributes:
        tokens: accepted drafts and residual samples, `[N, C]`.
        accepted: `[N]`.
        unreachable: residual samples that had to be drawn from the target's last step.
    """

    tokens: Float32
    accepted: NDArray[np.bool_]
    unreachable: int


def verify(
    x: Float32,
    p: Density,
    q: Density,
    images: Int64,
    positions: Int64,
    noise: Noise,
    options: GenerateOptions,
) -> Verdict:
    """Accept or resample each drafted token.

    Args:
        x: drafted tokens `[N, C]`.
        p: densities of the target's aligned chains.
        q: densities of the draft's chains.
        images: image of each token, `[N]`.
        positions: position of each token, `[N]`.
        noise: source of the acceptance and residual draws.
        options: acceptance kind and inner temperature.
    """
    kind: reference.AcceptanceKind = "paper" if options.acceptance == "paper" else "relaxed"
    accepted, _ = reference.accept(
        x, p, q, noise.accept(images, positions),
        kind=kind, inner_temperature=options.inner_temperature,
    )  # fmt: skip
    tokens = x.copy()
    unreachable = 0
    for row in np.flatnonzero(~accepted):
        stream = noise.stream(Purpose.RESIDUAL, int(images[row]), int(positions[row]))
        sample = _residual(p[row], q[row], kind, stream)
        if sample is None:
            unreachable += 1
            sample = p.mean[row] + p.std[row] * stream.standard_normal(x.shape[1])
        tokens[row] = sample
    return Verdict(tokens, accepted, unreachable)


def _residual(
    p: Density, q: Density, kind: reference.AcceptanceKind, stream: np.random.Generator
) -> NDArray[np.float64] | None:
    pool = RELAXED_TRIES if kind == "relaxed" else POOL
    normals = stream.standard_normal((pool, 1, len(p.mean)))
    uniforms = stream.random((pool, 1))
    sample, done = reference.resample(p[None], q[None], normals, uniforms, kind=kind)
    if done[0]:
        return sample[0]
    if kind == "relaxed":
        return None
    return reference.continue_residual(p, q, stream, max_tries=PAPER_TRIES)
