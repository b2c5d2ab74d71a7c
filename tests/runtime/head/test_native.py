"""Compiled and NumPy host code make the same chains from the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from csd.plugins import host
from csd.runtime.errors import BackendError, NumericsError
from csd.runtime.head import (
    ParallelSampler,
    SequentialSampler,
    SpeculativeSampler,
    fit_affine_draft,
)
from csd.runtime.head.request import HeadRows, RowsEvaluate

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
    with pytest.raises(ValueError, match=r"^evaluate gave \(2, 1\) for rows of \(2, 2\)$"):
        SequentialSampler(schedule).sample(
            lambda x, step, token: (x[:, :1], x[:, :1, None]),
            n_tokens=2, channels=2, rng=np.random.default_rng(0),
        )  # fmt: skip


class InPlace(RowsEvaluate):
    """A network that evaluates rows where they lie, and may know where its outputs go wrong."""

    def __init__(self, evaluate, said=None):
        self._evaluate, self._said, self.checked = evaluate, said, []

    def __call__(self, x, step, token):
        return self._evaluate(x, step, token)

    def rows(self, capacity):
        self._rows = HeadRows.empty(capacity, CHANNELS)
        return self._rows

    def evaluate_rows(self, count):
        x, step, token, eps, v = (array[:count] for array in self._rows)
        eps[:], v[:] = self._evaluate(x.copy(), step.copy(), token.copy())

    def check_rows(self, count):
        self.checked.append(count)
        if self._said:
            raise NumericsError(self._said)


CHANNELS = 2
SAMPLERS = (SequentialSampler, SpeculativeSampler, ParallelSampler)


def sampled(make, evaluate, steps=10):
    return make(linear(steps)).sample(
        evaluate, n_tokens=3, channels=CHANNELS, rng=np.random.default_rng(0)
    )[0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_that_are_evaluated_where_they_lie_make_the_same_tokens(sampler):
    evaluate = Mixture(CHANNELS).evaluate(linear(10))
    network = InPlace(evaluate)
    np.testing.assert_array_equal(sampled(sampler, network), sampled(sampler, evaluate))
    assert network.checked == []


@pytest.mark.parametrize("sampler", [SequentialSampler, ParallelSampler])
@pytest.mark.parametrize("said", [None, "the graph says so"])
@pytest.mark.parametrize("host_code", ["compiled"], indirect=True)
def test_a_network_that_knows_where_it_went_wrong_says_so(sampler, said):
    plain = Mixture(CHANNELS).evaluate(linear(10))

    def spoiled(x, step, token):
        eps, v = plain(x, step, token)
        eps[step == 4] = np.nan
        return eps, v

    network = InPlace(spoiled, said)
    with pytest.raises(NumericsError, match=said or "head step 4"):
        sampled(sampler, network)
    assert network.checked == [3 if sampler is SequentialSampler else 30]


@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_outputs_that_could_be_spread_over_channels_are_an_error_too(sampler, narrow):
    def evaluate(x, step, token):
        return tuple(x[:, :1] if index == narrow else x for index in range(2))

    with pytest.raises(ValueError, match=r"^evaluate gave \(\d+, 1\) for rows of \(\d+, 2\)$"):
        sampled(sampler, evaluate)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_network_may_keep_what_it_is_given(sampler):
    evaluate, kept = Mixture(CHANNELS).evaluate(linear(10)), []

    def keeping(x, step, token):
        kept.append((x, x.copy(), step, step.copy(), token, token.copy()))
        return evaluate(x, step, token)

    sampled(sampler, keeping)
    for x, x_then, step, step_then, token, token_then in kept:
        np.testing.assert_array_equal(x, x_then)
        np.testing.assert_array_equal(step, step_then)
        np.testing.assert_array_equal(token, token_then)
