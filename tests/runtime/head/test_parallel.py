"""The parallel sampler gives the sequential sample itself."""

from __future__ import annotations

import numpy as np
import pytest

from csd.runtime.head import ParallelSampler, SequentialSampler, fit_affine_draft

from .analytic import Mixture, linear, record

STEPS, COUNT, CHANNELS = 24, 64, 4


@pytest.fixture(scope="module")
def case():
    schedule = linear(STEPS)
    evaluate = Mixture(CHANNELS).evaluate(schedule)
    tokens, report = SequentialSampler(schedule).sample(
        evaluate, n_tokens=COUNT, channels=CHANNELS, rng=np.random.default_rng(0)
    )
    fitted = fit_affine_draft(schedule, record(schedule, evaluate, report))
    return schedule, evaluate, tokens, report, fitted


def starts(report):
    shape = report.trajectory.shape
    rng = np.random.default_rng(4)
    return {
        "none": None,
        "zeros": np.zeros(shape, dtype=np.float32),
        "noise": rng.standard_normal(shape).astype(np.float32),
        "wrong": report.trajectory[:, ::-1] * 3,
        "truth": report.trajectory,
    }


@pytest.mark.parametrize("start", ["none", "zeros", "noise", "wrong", "truth"])
@pytest.mark.parametrize("window", [1, 5, None])
def test_with_tolerance_zero_it_is_the_sequential_sample_from_any_start(case, start, window):
    schedule, evaluate, tokens, report, _ = case
    ours, made = ParallelSampler(schedule, 0.0, window=window).sample(
        evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise,
        start=starts(report)[start],
    )  # fmt: skip
    np.testing.assert_allclose(ours, tokens, atol=1e-5)
    np.testing.assert_allclose(made.trajectory, report.trajectory, atol=1e-5)
    np.testing.assert_allclose(made.std, report.std, rtol=1e-5)
    np.testing.assert_allclose(made.sum_log_std, report.sum_log_std, atol=1e-4)


@pytest.mark.parametrize("jacobian", ["picard", "fitted", "wrong"])
def test_a_wrong_jacobian_only_costs_sweeps(case, jacobian):
    schedule, evaluate, tokens, report, fitted = case
    matrix = {
        "picard": None,
        "fitted": fitted.jacobian,
        "wrong": np.random.default_rng(1).standard_normal((STEPS, CHANNELS, CHANNELS)),
    }[jacobian]
    matrix = None if matrix is None else (matrix * 0.3).astype(np.float32)
    ours, made = ParallelSampler(schedule, 0.0, matrix).sample(
        evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise
    )
    np.testing.assert_allclose(ours, tokens, atol=1e-5)
    assert made.rounds.max() <= STEPS


def test_a_fitted_draft_saves_sweeps_and_the_tolerance_bounds_the_error(case):
    schedule, evaluate, tokens, report, fitted = case
    sweeps = {}
    for name, draft in (("picard", None), ("fitted", fitted)):
        ours, made = ParallelSampler(schedule, 0.01, draft=draft).sample(
            evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise
        )
        sweeps[name] = made.rounds.mean()
        assert np.abs(ours - tokens).mean() < 5e-3
    assert sweeps["fitted"] < sweeps["picard"] < STEPS


def test_started_at_the_truth_it_needs_one_sweep(case):
    schedule, evaluate, _, report, _ = case
    _, made = ParallelSampler(schedule, 0.01).sample(
        evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise, start=report.trajectory
    )
    assert (made.rounds == 1).all()
    assert made.row_evaluations == COUNT * STEPS


def test_finished_tokens_cost_nothing(case):
    schedule, evaluate, _, report, _ = case
    mixed = report.trajectory.copy()
    mixed[:, 0] = 5.0
    _, made = ParallelSampler(schedule, 0.01).sample(
        evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise, start=mixed
    )
    assert (made.rounds[1:] == 1).all()
    assert made.rounds[0] > 1
    assert made.row_evaluations < COUNT * STEPS + made.rounds[0] * STEPS


def test_temperature_reaches_the_noise_and_the_last_std(case):
    schedule, evaluate, _, report, _ = case
    how = {"n_tokens": COUNT, "channels": CHANNELS, "noise": report.noise, "temperature": 0.95}
    wanted, theirs = SequentialSampler(schedule).sample(evaluate, **how)
    ours, made = ParallelSampler(schedule, 0.0).sample(evaluate, **how)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    np.testing.assert_allclose(made.std, theirs.std, rtol=1e-5)


def test_bad_arguments_are_refused(case):
    schedule, evaluate, _, report, _ = case
    with pytest.raises(ValueError, match="tolerance"):
        ParallelSampler(schedule, -1.0)
    with pytest.raises(ValueError, match="window"):
        ParallelSampler(schedule, window=0)
    with pytest.raises(ValueError, match="jacobian"):
        ParallelSampler(schedule, jacobian=np.zeros((3, 2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="start"):
        ParallelSampler(schedule).sample(
            evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise,
            start=np.zeros((STEPS, COUNT, CHANNELS), dtype=np.float32),
        )  # fmt: skip
