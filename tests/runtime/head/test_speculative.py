"""The speculative sampler has the sequential sampler's law; planted bugs are found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from csd.runtime import NumericsError
from csd.runtime.head import SequentialSampler, SpeculativeSampler, draft, native, speculative

from ...pairwise import pairwise
from .analytic import linear
from .chains import STEPS, make_draft, network, sequential
from .laws import holm_smallest, same_law

# Probability that one test of a right sampler fails; seeds are fixed, so none does by chance.
SIGNIFICANCE = 1e-3


def sample(channels, count, *, window=8, kind="fitted", guidance=1.0, temperature=1.0, seed=2):
    schedule = linear(STEPS)
    sampler = SpeculativeSampler(schedule, window, make_draft(kind, channels))
    _, report = sampler.sample(
        network(channels, schedule, guidance), n_tokens=count, channels=channels,
        rng=np.random.default_rng(seed), temperature=temperature,
    )  # fmt: skip
    return report


# The first kind meets the most channels in the fewest tokens: wrong drafts are sampled slowly.
@pairwise("kind, channels, count", ["wrong", "frozen", "fitted"], [1, 2, 16], [3000, 1000, 300])
def test_the_law_is_the_sequential_one_for_any_draft(kind, channels, count):
    ours = sample(channels, count, kind=kind, seed=count)
    assert same_law(sequential(channels, count), ours) > SIGNIFICANCE


@pytest.mark.parametrize("window", [1, 2, 8, 64, None])
@pytest.mark.parametrize("kind", ["frozen", "wrong"])
def test_the_law_does_not_depend_on_the_window(window, kind):
    ours = sample(2, 3000, window=window, kind=kind, seed=11)
    assert same_law(sequential(2, 3000), ours) > SIGNIFICANCE


@pytest.mark.parametrize("channels", [2, 16])
def test_the_law_holds_under_guidance_and_temperature(channels):
    how = {"guidance": 2.5, "temperature": 0.95}
    ours = sample(channels, 3000, kind="fitted", seed=12, **how)
    assert same_law(sequential(channels, 3000, **how), ours) > SIGNIFICANCE


def skip_residual(monkeypatch):
    """A rejected transition is drawn from p and kept as it is."""

    def from_p(run, p, q, tokens):
        rng = np.random.default_rng(0)
        return p.mean + p.std * rng.standard_normal(p.mean.shape)

    monkeypatch.setattr(speculative._Run, "_residual", from_p)


def accept_always(monkeypatch):
    honest = speculative.log_acceptance

    def rigged(*args):
        ratio, standard = honest(*args)
        return np.zeros_like(ratio), standard

    monkeypatch.setattr(speculative, "log_acceptance", rigged)


def variance_of_the_draft(monkeypatch):
    honest = speculative._Run._evaluate

    def rigged(run, chains, active, index, inside, drafted):
        target = honest(run, chains, active, index, inside, drafted)
        return target._replace(log_std=drafted.log_std)

    monkeypatch.setattr(speculative._Run, "_evaluate", rigged)


def accept_always_compiled(monkeypatch):
    honest = native.speculate

    def rigged(*args):
        changed = list(args)
        changed[5] = np.full_like(args[5], -np.inf)
        return honest(*changed)

    monkeypatch.setattr(native, "speculate", rigged)


def uniforms_of_another_law_compiled(monkeypatch):
    honest = native.speculate

    def rigged(*args):
        changed = list(args)
        changed[5] = 0.3 * args[5]
        return honest(*changed)

    monkeypatch.setattr(native, "speculate", rigged)


@pytest.mark.parametrize(
    ("host_code", "bug"),
    [
        ("numpy", skip_residual),
        ("numpy", accept_always),
        ("numpy", variance_of_the_draft),
        ("compiled", accept_always_compiled),
        ("compiled", uniforms_of_another_law_compiled),
    ],
    indirect=["host_code"],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_planted_bug_is_found(bug, channels, monkeypatch):
    bug(monkeypatch)
    ours = sample(channels, 3000, kind="wrong", seed=2)
    assert same_law(sequential(channels, 3000), ours) < SIGNIFICANCE


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("ratio", [0.7, 1.0, 1.6])
def test_the_acceptance_probability_is_one_minus_the_total_variation(shift, ratio):
    count = 200_000
    rng = np.random.default_rng(3)
    column = np.ones((count, 1), dtype=np.float32)
    log_ratio, _ = draft.log_acceptance(
        rng.standard_normal((count, 1)),
        0 * column, 0 * column, shift * column, np.log(ratio).astype(np.float32) * column,
    )  # fmt: skip
    rate = (np.log(rng.random(count)) < log_ratio).mean()
    grid = np.linspace(-15, 15, 200_001)
    overlap = np.minimum(stats.norm.pdf(grid), stats.norm.pdf(grid, shift, ratio))
    wanted = overlap.sum() * (grid[1] - grid[0])
    assert abs(rate - wanted) < 5 * np.sqrt(0.25 / count)


def test_a_perfect_draft_accepts_everything():
    schedule = linear(STEPS)

    def constant(x, step, token):
        # x0hat = 1 and v = 0 everywhere: a frozen prediction is the truth.
        tables = schedule.tables
        eps = (tables.recip[step][:, None] * x - 1) / tables.recipm1[step][:, None]
        return eps.astype(np.float32), np.zeros_like(x)

    _, report = SpeculativeSampler(schedule, 64).sample(
        constant, n_tokens=100, channels=4, rng=np.random.default_rng(0)
    )
    # One evaluation to start from, then the whole chain in one window. Rounding of x0hat leaves
    # a total variation distance of about 1e-5 a transition.
    assert report.rounds.mean() < 2.05


def test_the_recorded_noise_replays_the_trajectory_sequentially():
    schedule = linear(STEPS)
    report = sample(4, 500, kind="fitted")
    _, replay = SequentialSampler(schedule).sample(
        network(4, schedule, 1.0), n_tokens=500, channels=4, noise=report.noise
    )
    np.testing.assert_allclose(replay.trajectory, report.trajectory, atol=5e-3)
    np.testing.assert_allclose(replay.sum_log_std, report.sum_log_std, atol=5e-3)
    assert np.abs(replay.trajectory - report.trajectory).mean() < 1e-5


def test_the_recorded_noise_is_standard_normal():
    report = sample(2, 3000, kind="wrong", seed=9)
    _, noise = report.noise
    p_values = [
        stats.kstest(noise[:, i, c], "norm").pvalue for i in range(1, STEPS) for c in (0, 1)
    ]
    assert holm_smallest(p_values) > SIGNIFICANCE


def test_a_fitted_draft_needs_fewer_rounds_than_a_frozen_one():
    rounds = {kind: sample(16, 1000, kind=kind).rounds.mean() for kind in ("frozen", "fitted")}
    assert rounds["fitted"] < 0.8 * rounds["frozen"] < 0.8 * STEPS


def test_with_streams_a_token_does_not_depend_on_its_batch():
    schedule = linear(STEPS)
    rng = np.random.default_rng(0)
    noise = (
        rng.standard_normal((6, 2), dtype=np.float32),
        rng.standard_normal((6, STEPS, 2), dtype=np.float32),
    )
    sampler = SpeculativeSampler(schedule, 8, make_draft("fitted", 2))

    def run(rows):
        streams = [np.random.default_rng(100 + row) for row in rows]
        part = noise[0][rows], noise[1][rows]
        tokens, _ = sampler.sample(
            network(2, schedule, 1.0), n_tokens=len(rows), channels=2, noise=part, streams=streams
        )
        return tokens

    together = run([0, 1, 2, 3, 4, 5])
    for row in range(6):
        np.testing.assert_allclose(run([row])[0], together[row], atol=1e-5)


def test_calibrated_windows_fit_the_chain_and_grow_with_free_rows():
    fitted = make_draft("fitted", 2)
    dear, cheap = fitted.windows(row_cost=1.0), fitted.windows(row_cost=1e-6)
    assert (fitted.windows() <= np.arange(1, STEPS + 1)).all()
    assert dear.sum() < cheap.sum()


@pytest.mark.parametrize("window", [0, [1] * (STEPS - 1) + [0]])
def test_a_window_below_one_is_refused(window):
    with pytest.raises(ValueError, match="window is 0"):
        SpeculativeSampler(linear(STEPS), window)


def test_a_draft_of_another_number_of_head_steps_is_refused():
    with pytest.raises(ValueError, match="head steps"):
        SpeculativeSampler(linear(STEPS + 1), 8, make_draft("fitted", 2))


def test_a_window_is_one_number_or_one_for_each_head_step_and_ends_with_the_chain():
    schedule = linear(5)
    for given, wanted in (
        (3, [1, 2, 3, 3, 3]), ([5, 1, 9, 2, 1], [1, 1, 3, 2, 1]), (np.int64(1), [1] * 5),
        (None, np.minimum(draft.AffineDraft.frozen(5, 1).windows(), [1, 2, 3, 4, 5])),
    ):  # fmt: skip
        sampler = SpeculativeSampler(schedule, given)
        np.testing.assert_array_equal(sampler.windows, wanted)
        assert sampler.largest_window == max(wanted)
    fitted = make_draft("fitted", 2)
    np.testing.assert_array_equal(
        SpeculativeSampler(linear(STEPS), draft=fitted).windows, fitted.windows()
    )


@pytest.mark.parametrize(
    ("window", "said"),
    [
        (2.5, r"^window is 2.5 \(float\): give a whole number$"),
        (True, r"^window is True \(bool\): give a whole number$"),
        ([1, 2], r"^window is \(2,\): give one number, or one for each of 5 head steps$"),
        ([[1] * 5], r"^window is \(1, 5\): give one number"),
        ([1.5] * 5, r"^window is an array of float64: give one of whole numbers$"),
        ([2, 2, 0, 2, 2], r"^window is 0: give at least 1$"),
    ],
)
def test_a_window_that_is_neither_is_named(window, said):
    with pytest.raises(ValueError, match=said):
        SpeculativeSampler(linear(5), window)


def test_a_rejection_whose_residual_is_not_hit_says_what_to_use(monkeypatch):
    """Equal densities accept any uniform below 1; what is above has nothing to be replaced by."""
    schedule = linear(4)
    monkeypatch.setattr(speculative, "log_uniforms_of", lambda request: (
        request.streams(), np.ones((len(request), 4))
    ))  # fmt: skip
    zeros = draft.AffineDraft(
        weight=np.zeros((4, 8, 2), np.float32), bias=np.zeros((4, 2), np.float32),
        share=np.zeros((4, 2), np.float32), start=np.zeros((3, 2), np.float32),
        survival=np.ones((4, draft.HORIZON), np.float32),
    )  # fmt: skip

    def nothing(x, step, token):
        return np.zeros_like(x), np.zeros_like(x)  # at 0 the prediction is 0, bit for bit

    noise = np.zeros((1, 2), np.float32), np.zeros((1, 4, 2), np.float32)
    with pytest.raises(NumericsError, match=r"residual of a rejected .* use --head sequential"):
        SpeculativeSampler(schedule, 2, zeros).sample(
            nothing, n_tokens=1, channels=2, noise=noise, rng=np.random.default_rng(0)
        )
