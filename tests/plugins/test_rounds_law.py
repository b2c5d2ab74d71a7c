"""Rounds on the device have the sequential sampler's law; planted bugs are found.

The kernels run in the emulator, on analytic denoisers. The sequential sampler makes the same law
with none of their code: no draft, no verdict, no residual.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from csd.plugins import rounds
from csd.runtime.head import AffineDraft, SpeculativeSampler
from csd.runtime.head.device import report_of, start_of
from csd.runtime.head.request import HeadRequest

from ..runtime.head.analytic import linear
from ..runtime.head.chains import STEPS, branches, make_draft, sequential
from ..runtime.head.laws import energy_p_value, holm_smallest, same_law
from .emulated_rounds import run, streams
from .emulation import compile_emulated, plant

# Probability that one test of right kernels fails; seeds are fixed, so none does by chance.
SIGNIFICANCE = 1e-3


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_emulated(tmp_path_factory.mktemp("rounds") / "rounds.so")


def sample(
    library, channels, count, *, window=8, kind="wrong", guidance=1.0, temperature=1.0, seed=2
):
    """As `SpeculativeSampler.sample`, with the rounds of the device."""
    schedule = linear(STEPS)
    sampler = SpeculativeSampler(schedule, window, make_draft(kind, channels))
    request = HeadRequest.drawn(
        schedule, count, channels, np.random.default_rng(seed), temperature, None,
        streams=streams(count, seed),
    )  # fmt: skip
    conditional, unconditional = branches(channels, schedule)
    guided = guidance != 1.0
    start = start_of(
        schedule, sampler.draft, sampler.windows, request,
        np.full(count, guidance, np.float32) if guided else None,
    )  # fmt: skip
    made, calls = run(library, start, conditional, unconditional if guided else None)
    return report_of(made, calls, int(made.rows.sum()), request.noise[0])


def p_value_of(library, channels, count, *, guidance=1.0, temperature=1.0, **settings):
    ours = sample(library, channels, count, guidance=guidance, temperature=temperature, **settings)
    p_value = same_law(sequential(channels, count, guidance, temperature), ours)
    print(f"smallest corrected p-value {p_value:.2g}, {ours.rounds.mean():.1f} rounds a token")
    return p_value


@pytest.mark.parametrize("temperature", [1.0, 0.95])
@pytest.mark.parametrize("guidance", [1.0, 2.5], ids=["plain", "guided"])
@pytest.mark.parametrize("kind", ["fitted", "wrong"])
def test_the_law_is_the_sequential_one_for_any_draft(library, kind, guidance, temperature):
    how = {"kind": kind, "guidance": guidance, "temperature": temperature}
    assert p_value_of(library, 2, 2000, **how) > SIGNIFICANCE


@pytest.mark.parametrize("window", [1, 2, 64, None])
def test_the_law_does_not_depend_on_the_window(library, window):
    assert p_value_of(library, 2, 2000, window=window, seed=11) > SIGNIFICANCE


@pytest.mark.parametrize("channels", [1, 16, 33])
def test_the_law_does_not_depend_on_how_lanes_share_the_channels(library, channels):
    assert p_value_of(library, channels, 600, window=4, seed=channels) > SIGNIFICANCE


def test_the_recorded_noise_is_standard_normal(library):
    _, noise = sample(library, 2, 2000, seed=9).noise
    p_values = [
        stats.kstest(noise[:, i, c], "norm").pvalue for i in range(1, STEPS) for c in (0, 1)
    ]
    assert holm_smallest(p_values) > SIGNIFICANCE


def residual_draws(library, shift, ratio, count=2000):
    """Residual samples that the device makes of `p = N(0, 1)` and `q = N(shift, ratio^2)`, `[C]`.

    Chains of two head steps, whose first transition is always rejected.
    """
    schedule, channels = linear(2), len(shift)
    draft = AffineDraft.frozen(2, channels)
    _, _, coef_x0, _, base, slope = (float(column[1, 0]) for column in schedule.columns)
    zeros = np.zeros((count, channels), np.float32)
    guess = (
        (zeros + np.array(shift) * np.exp(base) / coef_x0).astype(np.float32),
        (zeros + np.log(ratio) / slope).astype(np.float32),
    )
    start = rounds.Start(
        tables=np.concatenate(schedule.columns, axis=1), weight=draft.weight, bias=draft.bias,
        share=draft.share, windows=np.ones(2, np.int64), initial=zeros,
        normals=np.zeros((count, 2, channels), np.float32),
        log_uniforms=np.full((count, 2), np.inf), generators=streams(count), guess=guess,
        temperature=1.0,
    )  # fmt: skip
    made, _ = run(library, start, lambda x, step, token: (0 * x, 0 * x))
    return made.noise[:, 1]


def residual_by_rejection(shift, ratio, count=2000):
    """The same by the definition: draws of p, each kept with probability `max(0, 1 - q/p)`."""
    rng, kept = np.random.default_rng(4), []
    while sum(map(len, kept)) < count:
        y = rng.standard_normal((100_000, len(shift)))
        away = (y - shift) / ratio
        log_ratio = (0.5 * (y**2 - away**2) - np.log(ratio)).sum(axis=1)
        kept.append(y[rng.random(len(y)) < 1 - np.exp(np.minimum(log_ratio, 0))])
    return np.concatenate(kept)[:count]


PAIRS = {
    "far": ((0.5, 0.0), (1.0, 1.3)),
    "q is narrower": ((0.0, 0.0), (0.97, 1.0)),
    "q is wider": ((0.0, 0.0), (1.03, 1.0)),
    "q is shifted": ((0.03, 0.0), (1.0, 1.0)),
    "one channel": ((0.02,), (0.99,)),
}


def residual_p_value(library, pair):
    ours, theirs = residual_draws(library, *PAIRS[pair]), residual_by_rejection(*PAIRS[pair])
    p_values = [stats.ks_2samp(*both).pvalue for both in zip(ours.T, theirs.T, strict=True)]
    p_values.append(energy_p_value(ours, theirs, np.random.default_rng(0), limit=500))
    return holm_smallest(p_values)


@pytest.mark.parametrize("pair", PAIRS)
def test_residual_samples_have_the_law_of_their_definition(library, pair):
    assert residual_p_value(library, pair) > SIGNIFICANCE


def test_densities_without_a_residual_end_the_chain(library):
    with pytest.raises(rounds.RoundsError, match="residual of a rejected head transition"):
        residual_draws(library, (0.0, 0.0), (1.0, 1.0), count=3)


NEITHER = {"guidance": 1.0, "temperature": 1.0}
BUGS = {
    "the residual is skipped": (
        {"number < block && tries.kept(stream, place, number)": "number < block"}, NEITHER,
    ),
    "always accepted": (
        {"run.log_uniforms[int64_t(at.token) * run.steps + i] < ratio": "true"}, NEITHER,
    ),
    "the draft's variance is taken for the target's": (
        {"const Move<float> move = transition(step, run.x[row + c], eps, run.network_v[row + c]);":
         "Move<float> move = transition(step, run.x[row + c], eps, run.network_v[row + c]);"
         "move.log_std = run.log_std[row + c];"}, NEITHER,
    ),
    "a residual takes the words of the one before": (
        {"run.drawn[at.token] = place + block * draws;": "{}"}, NEITHER,
    ),
    "the residual has no temperature": (
        {"features[channels + c] = run.temperature * real_exp(own_log_std[count]);":
         "features[channels + c] = real_exp(own_log_std[count]);"},
        {"guidance": 1.0, "temperature": 0.8},
    ),
    "guidance takes one branch for the other": (
        {"guided(predicted, run.eps[other + row + c], scale)":
         "guided(run.eps[other + row + c], predicted, scale)"},
        {"guidance": 2.5, "temperature": 1.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug, tmp_path):
    changes, how = BUGS[bug]
    library = compile_emulated(tmp_path / "broken.so", plant(tmp_path, changes))
    assert p_value_of(library, 2, 2000, **how) < SIGNIFICANCE


def test_a_planted_bug_of_the_residual_draws_is_found(tmp_path):
    """Tries with a tilted channel are kept as often as the others."""
    source = plant(tmp_path, {"if (number % 2 == 0) bound = 1.0f;": "bound = 1.0f;"})
    library = compile_emulated(tmp_path / "broken.so", source)
    assert residual_p_value(library, "q is narrower") < SIGNIFICANCE
