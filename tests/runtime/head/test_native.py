"""Compiled and NumPy host code make the same chains from the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from csd.plugins import host
from csd.runtime.errors import BackendError
from csd.runtime.head import (
    ParallelSampler,
    SequentialSampler,
    SpeculativeSampler,
    fit_affine_draft,
)

from .analytic import Mixture, linear, record

STEPS, COUNT = 24, 40


def both(monkeypatch, sample):
    monkeypatch.delenv(host.ENVIRONMENT, raising=False)
    compiled = sample()
    monkeypatch.setenv(host.ENVIRONMENT, "off")
    return compiled, sample()


def assert_same(compiled, plain):
    assert (compiled.rounds == plain.rounds).all()
    assert compiled.row_evaluations == plain.row_evaluations
    assert compiled.evaluations == plain.evaluations
    for name in ("mean", "std", "trajectory"):
        np.testing.assert_allclose(
            getattr(compiled, name), getattr(plain, name), rtol=2e-4, atol=2e-4
        )
    np.testing.assert_allclose(compiled.sum_log_std, plain.sum_log_std, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(compiled.noise[1][:, 1:], plain.noise[1][:, 1:], atol=1e-2)


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("sampler", ["sequential", "frozen", "fitted", "parallel", "picard"])
@pytest.mark.parametrize("host_code", ["compiled"], indirect=True)
def test_both_implementations_make_the_same_chains(sampler, channels, monkeypatch):
    schedule = linear(STEPS)
    evaluate = Mixture(channels).evaluate(schedule)
    _, report = SequentialSampler(schedule).sample(
        evaluate, n_tokens=500, channels=channels, rng=np.random.default_rng(0)
    )
    fitted = fit_affine_draft(schedule, record(schedule, evaluate, report))
    made = {
        "sequential": SequentialSampler(schedule),
        "frozen": SpeculativeSampler(schedule, 6),
        "fitted": SpeculativeSampler(schedule, draft=fitted),
        "parallel": ParallelSampler(schedule, 0.01, draft=fitted),
        "picard": ParallelSampler(schedule, 0.01, window=7),
    }[sampler]

    def sample():
        rng = np.random.default_rng(3)
        return made.sample(evaluate, n_tokens=COUNT, channels=channels, rng=rng, temperature=0.95)[
            1
        ]

    assert_same(*both(monkeypatch, sample))


def test_no_tokens_are_no_work():
    schedule = linear(STEPS)
    tokens, report = SpeculativeSampler(schedule).sample(
        Mixture(2).evaluate(schedule), n_tokens=0, channels=2, rng=np.random.default_rng(0)
    )
    assert tokens.shape == (0, 2)
    assert report.row_evaluations == 0


def test_a_library_that_is_not_there_is_an_error_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv(host.ENVIRONMENT, str(tmp_path / "gone.so"))
    schedule = linear(4)
    with pytest.raises(BackendError, match=r"gone\.so.*csd\.plugins\.build --host-only"):
        SequentialSampler(schedule).sample(
            Mixture(2).evaluate(schedule), n_tokens=1, channels=2, rng=np.random.default_rng(0)
        )


def test_outputs_of_another_shape_are_an_error():
    schedule = linear(4)
    with pytest.raises(ValueError, match=r"shape|operands|evaluate gave"):
        SequentialSampler(schedule).sample(
            lambda x, step, token: (x[:, :1], x[:, :1, None]),
            n_tokens=2, channels=2, rng=np.random.default_rng(0),
        )  # fmt: skip
