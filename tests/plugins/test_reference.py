from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from csd.plugins import host, reference
from csd.plugins.reference import Density

from ..helpers import assert_parity
from ..pairwise import pairwise

# Every statistical test of this file rejects its hypothesis at this level, after Holm's correction
# over the statistics that it looks at. Seeds are fixed: a failure is a change, not bad luck.
SIGNIFICANCE = 1e-3


def holm(p_values) -> float:
    """Smallest p-value after Holm's correction."""
    ordered = np.sort(np.asarray(p_values))
    return float(np.min(ordered * np.arange(len(ordered), 0, -1)))


def density(mean, std, sum_log_std=0.0) -> Density:
    shape = np.broadcast_shapes(np.shape(mean), np.shape(std), np.shape(sum_log_std))
    return Density(*(np.broadcast_to(a, shape).astype(float) for a in (mean, std, sum_log_std)))


def pair(channels: int, distance: float, rng: np.random.Generator) -> tuple[Density, Density]:
    """Two densities of one token, `[C]` each; their total variation grows with `distance`."""
    mean, log_std = rng.standard_normal((2, channels))
    step = distance * rng.standard_normal((2, channels)) / math.sqrt(channels)
    return density(mean, np.exp(log_std)), density(
        mean + step[0] * np.exp(log_std), np.exp(log_std + 0.5 * step[1])
    )


def tiled(d: Density, count: int) -> Density:
    return Density(*(np.tile(a, (count, 1)) for a in (d.mean, d.std, d.sum_log_std)))


def log_ratio(x, p: Density, q: Density):
    return stats.norm.logpdf(x, p.mean, p.std).sum(-1) - stats.norm.logpdf(x, q.mean, q.std).sum(-1)


def p_value_of_law(x, p: Density, q: Density, rng: np.random.Generator) -> float:
    """Are rows of x drawn from p? Marginals, and the two directions that tell p from q."""
    drawn = p.mean + p.std * rng.standard_normal((4 * len(x), len(p.mean)))
    y, other = (x - p.mean) / p.std, (drawn - p.mean) / p.std
    values = [stats.kstest(column, "norm").pvalue for column in y.T]
    values.append(stats.ks_2samp(log_ratio(x, p, q), log_ratio(drawn, p, q)).pvalue)
    values.append(stats.ks_2samp((y**2).sum(1), (other**2).sum(1)).pvalue)
    return holm(values)


def p_value_of_equality(x, other, p: Density, q: Density) -> float:
    values = [stats.ks_2samp(a, b).pvalue for a, b in zip(x.T, other.T, strict=True)]
    values.append(stats.ks_2samp(log_ratio(x, p, q), log_ratio(other, p, q)).pvalue)
    return holm(values)


def brute_force_residual(p, q, count, rng, log_sigma=0.0):
    """Draws of max(0, p - q/Sigma)/Z, by rejection from p."""
    kept = []
    while sum(map(len, kept)) < count:
        x = p.mean + p.std * rng.standard_normal((1 << 16, len(p.mean)))
        keep = 1 - np.exp(-np.maximum(log_ratio(x, p, q) + log_sigma, 0))
        kept.append(x[rng.random(len(x)) < keep])
    return np.concatenate(kept)[:count]


def couple(p, q, count, rng, *, pool=4, always_accept=False, filtered=True):
    """Draws of q, accepted or replaced; the options break it on purpose."""
    many_p, many_q = tiled(p, count), tiled(q, count)
    x = q.mean + q.std * rng.standard_normal((count, len(q.mean)))
    accepted, _ = reference.accept(x, many_p, many_q, rng.random(count))
    if always_accept:
        return x
    rows = np.flatnonzero(~accepted)
    normals = rng.standard_normal((pool, len(rows), len(q.mean)))
    uniforms = rng.random((pool, len(rows)))
    if not filtered:
        x[rows] = p.mean + p.std * normals[0]
        return x
    x[rows], done = reference.resample(many_p[rows], many_q[rows], normals, uniforms)
    for row in rows[~done]:
        x[row] = reference.continue_residual(p, q, rng)
    return x


@pairwise("channels, distance, pool", [1, 2, 16], [0.3, 1.0, 4.0], [1, 16])
def test_accepted_and_resampled_draws_of_q_are_distributed_as_p(channels, distance, pool):
    rng = np.random.default_rng([channels, pool, int(10 * distance)])
    p, q = pair(channels, distance, rng)
    x = couple(p, q, 6000, rng, pool=pool)
    assert p_value_of_law(x, p, q, rng) > SIGNIFICANCE


@pytest.mark.parametrize("channels", [1, 2, 16])
@pytest.mark.parametrize(
    "broken", [{"always_accept": True}, {"filtered": False}], ids=["no rejection", "no residual"]
)
def test_the_test_of_the_law_detects_broken_operators(channels, broken):
    rng = np.random.default_rng(channels)
    p, q = pair(channels, 1.0, rng)
    x = couple(p, q, 6000, rng, **broken)
    assert p_value_of_law(x, p, q, rng) < SIGNIFICANCE


@pytest.mark.parametrize("channels", [1, 2, 16])
@pytest.mark.parametrize("distance", [0.005, 0.1, 1.0])
def test_the_continued_residual_equals_brute_force_rejection(channels, distance):
    rng = np.random.default_rng([channels, int(1000 * distance)])
    p, q = pair(channels, distance, rng)
    x = np.stack([reference.continue_residual(p, q, rng) for _ in range(1500)])
    assert p_value_of_equality(x, brute_force_residual(p, q, 4000, rng), p, q) > SIGNIFICANCE


@pytest.mark.parametrize("channels", [1, 2, 16])
def test_the_test_of_the_residual_detects_draws_of_p(channels):
    rng = np.random.default_rng(channels)
    p, q = pair(channels, 0.005, rng)
    x = p.mean + p.std * rng.standard_normal((1500, channels))
    assert p_value_of_equality(x, brute_force_residual(p, q, 4000, rng), p, q) < SIGNIFICANCE


@pytest.mark.parametrize("kind", ["paper", "relaxed"])
@pytest.mark.parametrize("log_sigma", [-0.4, 0.7])
def test_residuals_with_sigma_equal_brute_force_rejection(kind, log_sigma):
    rng = np.random.default_rng(int(10 * log_sigma) % 100)
    p, q = pair(3, 1.0, rng)
    sign = 1 if kind == "paper" else -1
    p = density(p.mean, p.std, -sign * log_sigma / 3 + 5)
    q = density(q.mean, q.std, 5.0)
    expected = brute_force_residual(p, q, 4000, rng, log_sigma)
    x = np.stack([reference.continue_residual(p, q, rng, kind=kind) for _ in range(1500)])
    assert p_value_of_equality(x, expected, p, q) > SIGNIFICANCE
    normals, uniforms = rng.standard_normal((40, 1500, 3)), rng.random((40, 1500))
    x, done = reference.resample(tiled(p, 1500), tiled(q, 1500), normals, uniforms, kind=kind)
    assert done.mean() > 0.9
    assert p_value_of_equality(x[done], expected, p, q) > SIGNIFICANCE


def test_the_continued_residual_follows_its_exact_law_in_one_dimension():
    p, q = density([0.0], [1.0]), density([0.02], [1.01])
    x = np.linspace(-9, 9, 200_001)
    residual = np.maximum(stats.norm.pdf(x, 0, 1) - stats.norm.pdf(x, 0.02, 1.01), 0)
    distribution = np.cumsum(residual) / residual.sum()
    rng = np.random.default_rng(0)
    drawn = np.concatenate([reference.continue_residual(p, q, rng) for _ in range(3000)])
    law = stats.kstest(drawn, lambda value: np.interp(value, x, distribution))
    assert law.pvalue > SIGNIFICANCE


def test_the_acceptance_rate_is_one_minus_the_total_variation():
    p, q = density([0.0], [1.0]), density([0.5], [0.8])
    x = np.linspace(-9, 9, 200_001)
    overlap = np.minimum(stats.norm.pdf(x), stats.norm.pdf(x, 0.5, 0.8)).sum() * (x[1] - x[0])
    rng, count = np.random.default_rng(0), 40_000
    drafts = 0.5 + 0.8 * rng.standard_normal((count, 1))
    accepted, _ = reference.accept(drafts, tiled(p, count), tiled(q, count), rng.random(count))
    assert stats.binomtest(int(accepted.sum()), count, overlap).pvalue > SIGNIFICANCE


def test_acceptance_equals_the_formula_written_out():
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((7, 50, 4)) * 0.3
    x, p, q = arrays[0], density(arrays[1], np.exp(arrays[2]), arrays[3]), None
    q = density(arrays[4], np.exp(arrays[5]), arrays[6])
    u = rng.random(50)
    for temperature in (1.0, 42.0):
        accepted, ratio = reference.accept(x, p, q, u, inner_temperature=temperature)
        for n in range(50):
            r = 1.0
            for c in range(4):
                r *= math.exp(q.sum_log_std[n, c]) / math.exp(p.sum_log_std[n, c])
                r *= q.std[n, c] / p.std[n, c]
                near = (x[n, c] - p.mean[n, c]) / p.std[n, c] / temperature
                far = (x[n, c] - q.mean[n, c]) / q.std[n, c] / temperature
                r *= math.exp(-0.5 * near**2 + 0.5 * far**2)
            assert math.exp(ratio[n]) == pytest.approx(r)
            assert accepted[n] == (u[n] < min(1, r))


def test_relaxed_acceptance_has_sigma_upside_down():
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((6, 20, 4)) * 0.3
    p = density(arrays[0], np.exp(arrays[1]), arrays[2])
    q = density(arrays[3], np.exp(arrays[4]), arrays[5])
    sigma = (q.sum_log_std - p.sum_log_std).sum(1)
    x = rng.standard_normal((20, 4))
    paper, relaxed = (reference.log_density_ratio(x, p, q, kind=k) for k in ("paper", "relaxed"))
    np.testing.assert_allclose(paper - relaxed, 2 * sigma)
    np.testing.assert_allclose(paper - sigma, log_ratio(x, p, q))


def _recorded_densities(recorded):
    x = recorded["cspd_x_1.0"][0]
    p = Density(*(recorded[f"cspd_t{part}_1.0"][0] for part in "msl"))
    q = Density(*(recorded[f"cspd_d{part}_1.0"][0] for part in "msl"))
    return x, p, q


def test_relaxed_acceptance_of_the_fixtures_is_reproduced(recorded):
    x, p, q = _recorded_densities(recorded)
    accepted, ratio = reference.accept(
        x, p, q, recorded["cspd_accept_u_1.0"][0], kind="relaxed", inner_temperature=42.0
    )
    # The recorded ratios underflow: the logarithms are held against the released formula.
    m_p, s_p, l_p = (recorded[f"cspd_t{part}_1.0"][0].astype(np.float64) for part in "msl")
    m_q, s_q, l_q = (recorded[f"cspd_d{part}_1.0"][0].astype(np.float64) for part in "msl")
    expected = (
        (l_p - l_q).sum(1)
        + np.log(s_q).sum(1)
        - np.log(s_p).sum(1)
        - 0.5 * (((x - m_p) / s_p / 42) ** 2).sum(1)
        + 0.5 * (((x - m_q) / s_q / 42) ** 2).sum(1)
    )
    assert_parity(ratio, expected, "relaxed log ratio", 1e-9)
    assert_parity(np.exp(ratio), recorded["cspd_ratio_1.0"][0], "relaxed ratio")
    recorded_verdict = recorded["cspd_ratio_1.0"][0] > recorded["cspd_accept_u_1.0"][0]
    np.testing.assert_array_equal(accepted, recorded_verdict)


def test_resampled_tokens_of_the_fixtures_lie_in_the_last_step_of_the_target(recorded):
    _, p, _ = _recorded_densities(recorded)
    # Float32 holds tokens of this size to half a hundredth, which is a standard deviation.
    slack = np.spacing(np.abs(p.mean).astype(np.float32))
    assert (np.abs(recorded["cspd_out_1.0"][0] - p.mean) <= 6 * p.std + slack).all()


def test_a_ratio_that_is_not_a_number_is_never_accepted():
    p, q = density([[math.nan]], [[1.0]]), density([[0.0]], [[1.0]])
    accepted, _ = reference.accept([[0.0]], p, q, [0.0])
    assert not accepted.any()


def test_a_draw_of_zero_accepts_and_equal_densities_always_accept():
    p = density(np.zeros((3, 2)), 1.0)
    u = [0.0, 0.5, np.nextafter(1.0, 0.0)]
    assert reference.accept(np.ones((3, 2)), p, p, u)[0].all()
    far = density(np.full((3, 2), 1e6), 1e-6)
    assert reference.accept(np.zeros((3, 2)), far, p, [0.0, 0.5, 1e-300])[0].tolist() == [1, 0, 0]


def test_the_first_kept_try_of_a_pool_is_taken():
    p, q = density(np.zeros((2, 1)), 1.0), density(np.full((2, 1), 5.0), 1.0)
    normals = np.array([[[4.0], [-1.0]], [[-2.0], [-3.0]]])  # a try at 4 is more probable under q
    x, done = reference.resample(p, q, normals, np.full((2, 2), 0.5))
    assert done.all()
    assert x.tolist() == [[-2.0], [-1.0]]
    x, done = reference.resample(p, q, normals[:1], np.full((1, 2), 0.5))
    assert done.tolist() == [False, True]


def test_the_residual_of_equal_densities_is_empty():
    p = density(np.zeros(4), np.ones(4))
    assert reference.continue_residual(p, p, np.random.default_rng(0)) is None


def test_a_residual_that_is_not_hit_ends_after_the_tries_given():
    p, q = density([0.0], [1.0], [40.0]), density([1e-3], [1.0], [0.0])  # Sigma = exp(-40)
    rng = np.random.default_rng(0)
    assert reference.continue_residual(p, q, rng, max_tries=100) is None


CHAIN_P = (0.8, 0.3, 0.5)  # y' ~ N(a y + b, s)
CHAIN_Q = (0.7, 0.45, 0.6)


def _speculative_chains(count, steps, window, rng, broken=False):
    """Chains of p, drafted by q window after window and verified; `[N, steps + 1]`."""
    (a, b, s), (qa, qb, qs) = CHAIN_P, CHAIN_Q
    chains, length = np.zeros((count, steps + window + 1)), np.zeros(count, dtype=int)
    while (active := np.flatnonzero(length < steps)).size:
        y = chains[active, length[active]]
        before, proposed = [], []
        for _ in range(window):
            before.append(y)
            y = qa * y + qb + qs * rng.standard_normal(len(y))
            proposed.append(y)
        before, proposed = (np.stack(part, axis=1)[..., None] for part in (before, proposed))
        uniforms = np.zeros(proposed.shape[:2]) if broken else rng.random(proposed.shape[:2])
        accepted, states = reference.verify_window(
            proposed, a * before + b, np.full_like(before, s), qa * before + qb,
            np.full_like(before, qs), uniforms, rng,
        )  # fmt: skip
        emitted = np.minimum(accepted + 1, window)
        for offset in range(window):
            rows = emitted > offset
            chains[active[rows], length[active[rows]] + offset + 1] = states[rows, offset, 0]
        length[active] += emitted
    return chains[:, : steps + 1]


def _p_value_of_chains(chains):
    a, b, s = CHAIN_P
    innovations = (chains[:, 1:] - a * chains[:, :-1] - b) / s
    values = [stats.kstest(column, "norm").pvalue for column in innovations.T]
    mean = variance = 0.0
    for _ in range(chains.shape[1] - 1):
        mean, variance = a * mean + b, a**2 * variance + s**2
    values.append(stats.kstest(chains[:, -1], "norm", (mean, math.sqrt(variance))).pvalue)
    following = [stats.pearsonr(*pair).pvalue for pair in zip(innovations.T, innovations.T[1:])]  # noqa: B905
    return holm([*values, *following])


@pytest.mark.parametrize("window", [1, 3, 8])
def test_verified_windows_emit_chains_of_p(window):
    rng = np.random.default_rng(window)
    assert _p_value_of_chains(_speculative_chains(3000, 6, window, rng)) > SIGNIFICANCE


def test_the_test_of_the_chains_detects_a_verification_that_accepts_everything():
    rng = np.random.default_rng(0)
    assert _p_value_of_chains(_speculative_chains(3000, 6, 3, rng, broken=True)) < SIGNIFICANCE


def test_a_window_stops_at_the_first_rejection_and_keeps_what_was_accepted():
    proposed = np.arange(6.0).reshape(1, 3, 2)
    mean_p = proposed.copy()
    mean_p[0, 1] += 100
    std, u = np.ones_like(proposed), np.full((1, 3), 0.5)
    count, states = reference.verify_window(
        proposed, mean_p, std, proposed, std, u, np.random.default_rng(0)
    )
    assert count.tolist() == [1]
    np.testing.assert_array_equal(states[0, 0], proposed[0, 0])
    assert np.abs(states[0, 1] - mean_p[0, 1]).max() < 8
    np.testing.assert_array_equal(proposed, np.arange(6.0).reshape(1, 3, 2))


def test_a_window_with_equal_densities_is_accepted_whole():
    rng = np.random.default_rng(0)
    proposed, std = rng.standard_normal((5, 4, 3)), np.ones((5, 4, 3))
    args = (proposed, np.zeros_like(std), std, np.zeros_like(std), std)
    count, states = reference.verify_window(*args, np.full((5, 4), 0.999), rng)
    assert count.tolist() == [4] * 5
    np.testing.assert_array_equal(states, proposed)


def test_a_window_with_a_density_that_is_not_finite_is_refused():
    one = np.ones((1, 2, 1))
    with pytest.raises(ArithmeticError, match="not finite"):
        reference.verify_window(
            one, one * math.nan, one, one, one, np.ones((1, 2)), np.random.default_rng(0)
        )


@settings(derandomize=True)
@given(st.lists(st.booleans(), max_size=20))
def test_the_accepted_prefix_ends_at_the_first_rejection(accepted):
    expected = accepted.index(False) if False in accepted else len(accepted)
    assert reference.accepted_prefix(accepted) == expected
    both = reference.accepted_prefix([[accepted, accepted]])
    assert both.tolist() == [[expected, expected]]


values = st.floats(-1e6, 1e6)
sizes = st.floats(-12, 6).map(lambda exponent: 10.0**exponent)
densities = st.tuples(
    *(st.lists(kind, min_size=3, max_size=3) for kind in (values, sizes, st.floats(-2000, 2000)))
).map(lambda parts: density(*map(np.array, parts)))


@pytest.mark.parametrize("kind", ["paper", "relaxed"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(p=densities, q=densities, x=st.lists(values, min_size=3, max_size=3), u=st.floats(0, 1))
@pytest.mark.filterwarnings("error")
def test_extreme_densities_give_finite_ratios_and_probabilities(kind, p, q, x, u):
    for temperature in (1.0, 42.0):
        accepted, ratio = reference.accept(
            [x], p[None], q[None], [u], kind=kind, inner_temperature=temperature
        )
        assert np.isfinite(ratio).all()
        assert accepted.dtype == bool
    keep = reference.residual_keep(np.array([x]), p[None], q[None], kind=kind)
    assert ((keep >= 0) & (keep <= 1)).all()


@pytest.mark.parametrize("kind", ["paper", "relaxed"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(p=densities, q=densities, seed=st.integers(0, 99))
@pytest.mark.filterwarnings("error")
def test_extreme_residuals_are_finite_or_given_up(kind, p, q, seed):
    rng = np.random.default_rng(seed)
    sample = reference.continue_residual(p, q, rng, kind=kind, max_tries=64)
    assert sample is None or np.isfinite(sample).all()
    normals, uniforms = rng.standard_normal((4, 1, 3)), rng.random((4, 1))
    sample, _ = reference.resample(p[None], q[None], normals, uniforms, kind=kind)
    assert np.isfinite(sample).all()


def test_a_transition_equals_the_formulas_of_the_design():
    rng = np.random.default_rng(0)
    x, eps, v = rng.standard_normal((3, 5, 2))
    now, before = 0.6, 0.7
    beta = 1 - now / before
    posterior = beta * (1 - before) / (1 - now)
    mean, log_std, x0hat = reference.transition(
        x, eps, v, recip=math.sqrt(1 / now), recipm1=math.sqrt(1 / now - 1),
        coef_x0=beta * math.sqrt(before) / (1 - now),
        coef_x=(1 - before) * math.sqrt(1 - beta) / (1 - now),
        log_beta=math.log(beta), log_posterior=math.log(posterior),
    )  # fmt: skip
    start = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
    np.testing.assert_allclose(x0hat, start)
    # The posterior mean of x_{i-1} given x_i and x_0, as a product of two Gaussians.
    alpha = 1 - beta
    precision = alpha / beta + 1 / (1 - before)
    expected = (math.sqrt(alpha) * x / beta + math.sqrt(before) * start / (1 - before)) / precision
    np.testing.assert_allclose(mean, expected)
    np.testing.assert_allclose(posterior, 1 / precision)
    logvar = (v + 1) / 2 * math.log(beta) + (1 - v) / 2 * math.log(posterior)
    np.testing.assert_allclose(log_std, logvar / 2)


def test_densities_and_what_follows_from_them_are_float64_whatever_is_given():
    rng = np.random.default_rng(0)
    x, mean, log_std, eps, v = rng.standard_normal((5, 20, 3)).astype(np.float32)
    std = np.exp(log_std)
    kept = Density(mean, std, log_std)
    assert {array.dtype for array in vars(kept).values()} == {np.dtype(np.float64)}
    assert Density([[1]], [[2]], [[0]]).mean.dtype == np.float64
    wanted = stats.norm.logpdf(x.astype(float), mean.astype(float), std.astype(float)).sum(axis=1)
    np.testing.assert_allclose(reference.log_normal(x, mean, std), wanted, rtol=1e-12)
    names = ("recip", "recipm1", "coef_x0", "coef_x", "log_beta", "log_posterior")
    made = reference.transition(x, eps, v, **dict.fromkeys(names, np.float32(0.5)))
    assert {array.dtype for array in made} == {np.dtype(np.float64)}


def test_the_paper_s_formulas_are_meant_unless_the_others_are_named():
    rng = np.random.default_rng(1)
    means, logs, sums = rng.standard_normal((3, 2, 8, 3))
    p, q = (density(means[k], np.exp(logs[k]), 5 * sums[k]) for k in range(2))
    x, u = p.mean + 0.1, rng.random(8)
    normals, uniforms = rng.standard_normal((5, 8, 3)), rng.random((5, 8))

    def continued(**how):
        rngs = [np.random.default_rng(row) for row in range(8)]
        made = [
            reference.continue_residual(p[k], q[k], rngs[k], max_tries=64, **how) for k in range(8)
        ]
        return np.array([np.full(3, np.nan) if one is None else one for one in made])

    for call in (
        lambda **how: reference.log_sigma(p, q, **how),
        lambda **how: reference.log_density_ratio(x, p, q, **how),
        lambda **how: reference.accept(x, p, q, u, **how)[1],
        lambda **how: reference.resample(p, q, normals, uniforms, **how)[1],
        continued,
    ):
        np.testing.assert_array_equal(call(), call(kind="paper"))
        assert not np.array_equal(call(kind="relaxed"), call(), equal_nan=call is continued)


@pytest.mark.filterwarnings("error")
def test_a_draw_of_zero_is_no_warning_and_keeps_nothing_that_may_not_be_kept():
    p = density(np.zeros((1, 1)), 1.0)
    assert reference.accept([[0.0]], p, p, [0.0])[0].all()
    q = density(np.full((1, 1), 5.0), 1.0)
    # More probable under q: kept with probability 0, which a uniform of 0 is not below.
    _, done = reference.resample(p, q, np.full((1, 1, 1), 4.0), np.zeros((1, 1)))
    assert not done.any()


def test_uniforms_are_compared_in_float64_whatever_their_type():
    u = np.float32(0.3)
    single, double = float(np.log(u)), float(np.log(np.float64(u)))
    assert single != double
    between = (single + double) / 2
    p, q = density([[0.0]], [[1.0]]), density([[0.0]], [[1.0]], [[between]])
    accepted, ratio = reference.accept([[0.0]], p, q, np.array([u]))
    assert ratio[0] == between
    assert accepted[0] == (double < between)


class Counting:
    """Uniforms of a seed, and how many tries they were drawn for."""

    def __init__(self):
        self._rng, self.tries = np.random.default_rng(0), 0

    def random(self, shape):
        self.tries += shape[0]
        return self._rng.random(shape)


@pytest.mark.parametrize(("most", "drawn"), [(0, 0), (16, 16), (17, 48), (48, 48), (49, 112)])
def test_tries_come_in_batches_that_double_until_there_were_enough(most, drawn):
    p, q = density([0.0], [1.0], [40.0]), density([1e-3], [1.0], [0.0])  # Sigma = exp(-40)
    rng = Counting()
    assert reference.continue_residual(p, q, rng, max_tries=most) is None
    assert rng.tries == drawn


def test_every_implementation_gives_up_after_as_many_tries():
    default = inspect.signature(reference.continue_residual).parameters["max_tries"].default
    assert default == host.MAX_TRIES


@pytest.mark.filterwarnings("error")
def test_a_window_takes_any_type_and_a_uniform_of_zero():
    proposed = np.zeros((1, 2, 1), dtype=np.int64)
    ones, u = np.ones((1, 2, 1), dtype=np.float32), np.array([[0.0, 0.9]])
    count, states = reference.verify_window(
        proposed, 9 * ones, ones, 0 * ones, ones, u, np.random.default_rng(0)
    )
    assert count.tolist() == [1]
    assert states.dtype == np.float64
    assert states[0, 1, 0] % 1 != 0  # a sample of the residual, which is no whole number


def test_a_rejection_whose_residual_is_empty_is_an_error():
    one = np.ones((1, 1, 1))
    with pytest.raises(ArithmeticError, match="residual of a rejected transition was not hit"):
        reference.verify_window(one, one, one, one, one, [[2.0]], np.random.default_rng(0))
