"""Chains of the sequential sampler on analytic denoisers, and drafts that are fitted to them."""

from __future__ import annotations

from functools import cache

import numpy as np

from csd.runtime.head import AffineDraft, SequentialSampler, fit_affine_draft

from .analytic import Mixture, guided, linear, record

STEPS = 20


def branches(channels, schedule):
    """The conditional and the unconditional denoiser."""
    other = Mixture(channels, means=(-0.2, 0.1), stds=(0.8, 0.6))
    return Mixture(channels).evaluate(schedule), other.evaluate(schedule)


def network(channels, schedule, guidance):
    """The denoiser under guidance; 1 is without."""
    plain, other = branches(channels, schedule)
    return plain if guidance == 1.0 else guided(plain, other, guidance)


@cache
def sequential(channels, count, guidance=1.0, temperature=1.0):
    """Report of the sequential sampler."""
    schedule = linear(STEPS)
    _, report = SequentialSampler(schedule).sample(
        network(channels, schedule, guidance), n_tokens=count, channels=channels,
        rng=np.random.default_rng(1), temperature=temperature,
    )  # fmt: skip
    return report


@cache
def make_draft(kind, channels):
    """A draft: `fitted`, deliberately `wrong`, or None for `frozen`."""
    if kind == "frozen":
        return None
    schedule = linear(STEPS)
    report = sequential(channels, 2000)
    fitted = fit_affine_draft(schedule, record(schedule, network(channels, schedule, 1.0), report))
    if kind == "fitted":
        return fitted
    rng = np.random.default_rng(5)
    wrong = {
        name: 0.3 * rng.standard_normal(getattr(fitted, name).shape).astype(np.float32)
        for name in ("weight", "bias", "share", "start")
    }
    return AffineDraft(**wrong, survival=fitted.survival)
