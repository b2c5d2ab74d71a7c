from __future__ import annotations

import numpy as np
import pytest

from csd.plugins import reference
from csd.runtime.errors import NumericsError
from csd.runtime.head import HeadSchedule, ParallelSampler, SequentialSampler, SpeculativeSampler

from .analytic import Mixture, linear

SAMPLERS = (SequentialSampler, SpeculativeSampler, ParallelSampler)


@pytest.mark.parametrize("make", [HeadSchedule.cosine, HeadSchedule.linear])
def test_the_float32_transition_is_the_reference_operator(make):
    schedule, rng = make(steps=50), np.random.default_rng(0)
    x, eps, v = rng.standard_normal((3, 50, 8)).astype(np.float32)
    step = np.arange(50)
    got = schedule.transition(x, eps, v, step)
    tables = schedule.tables
    names = ("recip", "recipm1", "coef_x0", "coef_x", "log_beta", "log_posterior")
    wanted = reference.transition(
        x, eps, v, **{name: getattr(tables, name)[:, None] for name in names}
    )
    for a, b in zip(got, wanted, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * max(1, np.abs(b).max())


@pytest.mark.parametrize("steps", [1, 2, 1000])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_head_steps_ends_with_finite_tokens(sampler, steps):
    schedule = linear(steps)
    tokens, report = sampler(schedule).sample(
        Mixture(2).evaluate(schedule), n_tokens=3, channels=2, rng=np.random.default_rng(0)
    )
    assert tokens.shape == (3, 2)
    assert np.isfinite(tokens).all()
    assert (report.rounds >= 1).all()
    assert report.trajectory.shape == (steps + 1, 3, 2)
    np.testing.assert_array_equal(report.trajectory[0], tokens)


@pytest.mark.parametrize("count", [1, 4096])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_token_and_very_many_tokens_are_sampled(sampler, count):
    schedule = linear(10)
    tokens, report = sampler(schedule).sample(
        Mixture(3).evaluate(schedule), n_tokens=count, channels=3, rng=np.random.default_rng(0)
    )
    assert np.isfinite(tokens).all()
    assert report.row_evaluations >= count * 10


@pytest.mark.parametrize("share", [-60.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tiny_and_large_variances_give_finite_tokens(sampler, share):
    schedule = linear(20)
    plain = Mixture(4).evaluate(schedule)

    def evaluate(x, step, token):
        eps, v = plain(x, step, token)
        return eps, np.full_like(v, share)

    tokens, report = sampler(schedule).sample(
        evaluate, n_tokens=50, channels=4, rng=np.random.default_rng(0)
    )
    assert np.isfinite(tokens).all()
    assert np.isfinite(report.sum_log_std).all()
    assert np.abs(tokens).sum(axis=1).min() > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_output_that_is_not_finite_is_an_error_that_names_the_head_step(sampler, bad):
    schedule = linear(10)
    plain = Mixture(2).evaluate(schedule)

    def evaluate(x, step, token):
        eps, v = plain(x, step, token)
        eps[step == 4] = bad
        return eps, v

    with pytest.raises(NumericsError, match="head step 4"):
        sampler(schedule).sample(evaluate, n_tokens=3, channels=2, rng=np.random.default_rng(0))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_missing_or_misshaped_noise_is_refused(sampler):
    schedule = linear(5)
    evaluate = Mixture(2).evaluate(schedule)
    with pytest.raises(ValueError, match="give rng"):
        sampler(schedule).sample(evaluate, n_tokens=2, channels=2)
    noise = np.zeros((2, 2)), np.zeros((2, 4, 2))
    with pytest.raises(ValueError, match="noise has shapes"):
        sampler(schedule).sample(
            evaluate, n_tokens=2, channels=2, noise=noise, rng=np.random.default_rng(0)
        )


def test_schedules_have_a_hundred_head_steps_unless_told_otherwise():
    assert HeadSchedule.cosine().steps == HeadSchedule.linear().steps == 100
    timesteps = HeadSchedule.linear(steps=7).timesteps
    assert (timesteps[0], timesteps[-1], len(timesteps)) == (0, 999, 7)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_report_of_any_sampler_adds_up(sampler):
    """Tokens, rounds, rows and the densities that acceptance needs, from the trajectory itself."""
    schedule, seen = linear(12), []
    plain = Mixture(2).evaluate(schedule)

    def evaluate(x, step, token):
        seen.append(token)
        return plain(x, step, token)

    tokens, report = sampler(schedule).sample(
        evaluate, n_tokens=5, channels=2, rng=np.random.default_rng(3), temperature=0.8
    )
    assert report.evaluations == len(seen)
    assert report.row_evaluations == sum(map(len, seen))
    asked = [sum((calls == token).any() for calls in seen) for token in range(5)]
    assert report.rounds.tolist() == asked
    np.testing.assert_array_equal(report.mean, tokens)
    total = np.zeros_like(tokens)
    for i in range(12):
        state, index = report.trajectory[i + 1], np.full(5, i)
        made = schedule.transition(state, *plain(state, index, np.arange(5)), index)
        std = np.float32(0.8) * np.exp(made.log_std)
        if i == 0:
            np.testing.assert_allclose(tokens, made.mean, atol=1e-2)
            np.testing.assert_allclose(report.std, std, rtol=1e-2)
        else:
            total += made.log_std
            innovation = report.trajectory[i] - made.mean
            np.testing.assert_allclose(report.noise[1][:, i], innovation / std, atol=0.05)
    np.testing.assert_allclose(report.sum_log_std, total, atol=0.05)
    np.testing.assert_array_equal(report.trajectory[12], report.noise[0])
    arrays = (tokens, report.std, report.sum_log_std, report.trajectory, *report.noise)
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_has_its_own_size_unless_a_temperature_is_given(sampler):
    schedule, evaluate = linear(6), Mixture(2).evaluate(linear(6))

    def tokens(**how):
        rng = np.random.default_rng(0)
        return sampler(schedule).sample(evaluate, n_tokens=2, channels=2, rng=rng, **how)[0]

    np.testing.assert_array_equal(tokens(), tokens(temperature=1.0))
    assert (tokens() != tokens(temperature=0.5)).any()
