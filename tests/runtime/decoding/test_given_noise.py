from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from csd.runtime.head import HeadSchedule, SequentialSampler

SIGNIFICANCE = 1e-3


class GaussianData:
    """The exact denoiser of tokens N(mean, std), and the exact law of its chain."""

    def __init__(self, schedule, mean, std):
        self.schedule, self.mean, self.std = schedule, np.asarray(mean), np.asarray(std)
        self.share = schedule.tables.alpha_bar

    def __call__(self, x, step, token):
        share = self.share[step][:, None]
        variance = share * self.std**2 + 1 - share
        eps = np.sqrt(1 - share) * (x - np.sqrt(share) * self.mean) / variance
        return eps.astype(np.float32), np.full_like(x, 0.2)

    def law(self, temperature):
        """Mean and std of the chain's result: each step is linear in x, and adds noise."""
        tables = self.schedule.tables
        mean, variance = np.zeros_like(self.mean), np.ones_like(self.mean)
        for i in range(tables.steps - 1, -1, -1):
            a = self.share[i]
            gain = np.sqrt(1 - a) / (a * self.std**2 + 1 - a)
            x_slope = tables.recip[i] - tables.recipm1[i] * gain
            offset = tables.recipm1[i] * gain * np.sqrt(a) * self.mean
            slope = tables.coef_x0[i] * x_slope + tables.coef_x[i]
            mean = slope * mean + tables.coef_x0[i] * offset
            variance = slope**2 * variance
            if i:
                logvar = 0.6 * tables.log_beta[i] + 0.4 * tables.log_posterior[i]
                variance = variance + temperature**2 * np.exp(logvar)
        return mean, np.sqrt(variance)


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize(("steps", "temperature"), [(50, 1.0), (7, 1.0), (50, 0.8)])
def test_samples_of_a_gaussian_denoiser_follow_the_exact_law_of_the_chain(name, steps, temperature):
    schedule = getattr(HeadSchedule, name)(steps=steps)
    denoiser = GaussianData(schedule, [0.5, -1.0, 0.0], [0.7, 0.2, 1.5])
    tokens, _ = SequentialSampler(schedule).sample(
        denoiser, n_tokens=20_000, channels=3, rng=np.random.default_rng(0), temperature=temperature
    )
    for values, mean, std in zip(tokens.T, *denoiser.law(temperature), strict=True):
        assert stats.kstest(values, "norm", (mean, std)).pvalue > SIGNIFICANCE / 3


def test_many_steps_reproduce_the_data():
    schedule = HeadSchedule.cosine(steps=1000)
    mean, std = GaussianData(schedule, [0.5, -1.0], [0.7, 0.2]).law(1.0)
    np.testing.assert_allclose(mean, [0.5, -1.0], atol=0.01)
    np.testing.assert_allclose(std, [0.7, 0.2], atol=0.02)


def test_given_noise_is_used_entry_i_for_head_step_i_and_the_report_says_what_it_took():
    schedule, rng = HeadSchedule.linear(steps=6), np.random.default_rng(1)
    initial = rng.standard_normal((4, 2), dtype=np.float32)
    per_step = rng.standard_normal((4, 6, 2), dtype=np.float32)
    seen = []

    def evaluate(x, step, token):
        seen.append((step.tolist(), token.tolist()))
        return 0.3 * x + token[:, None].astype(np.float32), -0.5 * np.ones_like(x)

    tokens, report = SequentialSampler(schedule).sample(
        evaluate, n_tokens=4, channels=2, temperature=0.5, noise=(initial, per_step)
    )
    x, total = initial.astype(np.float64), np.zeros((4, 2))
    for i in range(5, -1, -1):
        eps = 0.3 * x + np.arange(4)[:, None]
        mean, log_std, _ = schedule.transition(x, eps, np.full((4, 2), -0.5), i)
        total += log_std if i else 0
        x = mean + (0.5 * np.exp(log_std) * per_step[:, i] if i else 0)
    np.testing.assert_allclose(tokens, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(report.mean, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(report.std, 0.5 * np.exp(log_std), rtol=1e-5)
    np.testing.assert_allclose(report.sum_log_std, total, rtol=1e-5)
    assert seen == [([i] * 4, [0, 1, 2, 3]) for i in range(5, -1, -1)]
    assert report.rounds.tolist() == [6] * 4
    assert (report.row_evaluations, report.evaluations) == (24, 6)
    assert tokens.dtype == np.float32


def test_one_step_returns_the_mean_without_noise():
    schedule = HeadSchedule.linear(steps=1)
    noise = np.ones((2, 3), np.float32), np.full((2, 1, 3), 9.0, np.float32)
    tokens, report = SequentialSampler(schedule).sample(
        lambda x, step, token: (np.zeros_like(x), np.zeros_like(x)),
        n_tokens=2, channels=3, noise=noise,
    )  # fmt: skip
    np.testing.assert_array_equal(tokens, report.mean)
    assert (report.sum_log_std == 0).all()
    assert np.isfinite(report.std).all()


def test_a_generator_gives_reproducible_samples():
    schedule = HeadSchedule.linear(steps=5)
    denoiser = GaussianData(schedule, [0.0], [1.0])
    args = {"n_tokens": 3, "channels": 1}
    made = [
        SequentialSampler(schedule).sample(denoiser, rng=np.random.default_rng(s), **args)[0]
        for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).all()


@pytest.mark.parametrize(
    ("initial", "per_step"), [((3, 2), (3, 4, 2)), ((3, 1), (3, 5, 2)), ((2, 2), (3, 5, 2))]
)
def test_noise_of_the_wrong_shape_is_refused(initial, per_step):
    sampler = SequentialSampler(HeadSchedule.linear(steps=5))
    with pytest.raises(ValueError, match=r"noise has shapes .* not \(3, 2\) and \(3, 5, 2\)"):
        sampler.sample(
            lambda x, step, token: (x, x), n_tokens=3, channels=2,
            noise=(np.zeros(initial), np.zeros(per_step)),
        )  # fmt: skip


def test_a_sampler_without_a_source_of_noise_is_refused():
    with pytest.raises(ValueError, match="give rng or noise"):
        SequentialSampler(HeadSchedule.linear(steps=5)).sample(
            lambda x, step, token: (x, x), n_tokens=3, channels=2
        )
