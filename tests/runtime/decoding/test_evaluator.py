"""Evaluators whose graphs stay bound make the numbers of those that hand arrays over."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from csd.plugins import host
from csd.runtime import GenerateOptions, NumericsError
from csd.runtime.decoding import bound
from csd.runtime.decoding.bound import BoundEvaluator
from csd.runtime.decoding.evaluator import Conditions, HeadEvaluator
from csd.runtime.head import ParallelSampler, SequentialSampler, SpeculativeSampler
from csd.runtime.head.request import RowsEvaluate

from ...helpers import NUM_ITER
from ...pairwise import pairwise

STEPS, TOKENS = 20, 5


@pytest.fixture
def make(tiny_session):
    """Make an evaluator of the tiny target: `make(seed, guided=False, tokens=TOKENS)`."""
    model = tiny_session.model("target")

    def of(seed, guided=False, tokens=TOKENS, bound=True):
        rng = np.random.default_rng(seed)
        z, other = rng.standard_normal((2, tokens, model.config.condition_dim), dtype=np.float32)
        scale = 1 + rng.random(tokens, dtype=np.float32)
        conditions = Conditions(z, other if guided else None, scale)
        timesteps = model.samplers.schedule(STEPS).timesteps
        if bound:
            made = model.evaluator(conditions, timesteps, "AR step 5")
            assert isinstance(made, BoundEvaluator)
            return made
        return HeadEvaluator(model.head_graphs, conditions, timesteps, "AR step 5")

    return of


@pytest.fixture
def schedule(tiny_session):
    return tiny_session.model("target").samplers.schedule(STEPS)


def evaluate_in_place(evaluate, x, step, token):
    rows = evaluate.rows(len(x))
    for place, values in zip(rows, (x, step, token), strict=False):
        place[: len(x)] = values
    evaluate.evaluate_rows(len(x))
    return rows.eps[: len(x)].copy(), rows.v[: len(x)].copy()


def some_rows(count, tokens=TOKENS, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 16), dtype=np.float32)
    return x, rng.integers(STEPS, size=count), rng.integers(tokens, size=count)


def assert_same(made, wanted):
    for a, b in zip(made, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("guided", [False, True])
def test_rows_in_place_make_the_same_outputs(make, guided):
    plain, bound = make(0, guided, bound=False), make(0, guided)
    assert not isinstance(plain, RowsEvaluate)
    for count in (1, 7, 40, 3, 7):  # the arrays grow, and are used again
        rows = some_rows(count, seed=count)
        assert_same(evaluate_in_place(bound, *rows), plain(*rows))


@pytest.mark.parametrize("guided", [False, True])
def test_evaluators_may_take_turns(make, guided):
    first, second = make(1, guided), make(2, guided, tokens=9)
    for count in (4, 11):
        rows = some_rows(count)
        for evaluate, seed, tokens in ((first, 1, TOKENS), (second, 2, 9)):
            wanted = make(seed, guided, tokens, bound=False)(*rows)
            assert_same(evaluate_in_place(evaluate, *rows), wanted)
            assert_same(evaluate(*rows), wanted)  # from here on with the values of this call
            assert_same(evaluate_in_place(evaluate, *rows), wanted)


def test_adaln_values_are_computed_once(make, monkeypatch, tiny_session):
    graph, calls = tiny_session.model("target").graphs["head_modulation"], []
    evaluate, plain = make(3), type(graph).run

    def run(self, feeds, rows=0, keep=()):
        calls.append(self is graph)
        return plain(self, feeds, rows, keep)

    monkeypatch.setattr(type(graph), "run", run)
    wanted = evaluate(*some_rows(6))
    evaluate(*some_rows(6))
    monkeypatch.setattr(bound.BoundHead, "modulate", None)
    assert_same(evaluate_in_place(evaluate, *some_rows(6)), wanted)
    assert sum(calls) == 1


@pytest.mark.skipif(host.library() is None, reason="the host library is not built")
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", ["sequential", "speculative", "frozen", "parallel"])
def test_samplers_make_the_same_tokens(tiny_session, make, schedule, kind, guided):
    fitted = tiny_session.bundle.head_draft("target")
    sampler = {
        "sequential": SequentialSampler(schedule),
        "speculative": SpeculativeSampler(schedule, window=4, draft=fitted),
        "frozen": SpeculativeSampler(schedule, window=4),
        "parallel": ParallelSampler(schedule, 0.0),
    }[kind]

    def tokens(evaluate):
        rng = np.random.default_rng(8)
        return sampler.sample(evaluate, n_tokens=TOKENS, channels=16, rng=rng)[0]

    made, wanted = tokens(make(4, guided)), tokens(make(4, guided, bound=False))
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)


def test_threads_take_turns_with_the_arrays(tiny_session):
    options = GenerateOptions(mode="target", head="auto", num_iter=NUM_ITER, cfg=2.0)
    wanted = [tiny_session.generate([1], options, seed=seed).tokens for seed in range(4)]
    made = {}

    def generate(seed):
        for _ in range(3):
            made[seed] = tiny_session.generate([1], options, seed=seed).tokens

    threads = [threading.Thread(target=generate, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, tokens in enumerate(wanted):
        np.testing.assert_array_equal(made[seed], tokens)


def test_bound_calls_are_not_kept_without_end(make, monkeypatch):
    monkeypatch.setattr(bound, "MOST_CALLS", 3)
    evaluate = make(6)
    evaluate.rows(20)
    evaluate._head._arena.calls.clear()  # of other tests of the session
    for count in (5, 6, 7, 8, 9, 5):
        rows = some_rows(count)
        assert_same(evaluate_in_place(evaluate, *rows), make(6, bound=False)(*rows))
        assert len(evaluate._head._arena.calls) <= 3


@pytest.mark.skipif(host.library() is None, reason="the host library is not built")
@pairwise(
    "output, value, head",
    ["eps", "v"], [np.nan, np.inf, -np.inf], ["sequential", "speculative", "parallel"],
)  # fmt: skip
def test_a_bound_head_that_is_not_finite_is_named_with_its_place(
    tiny_session, monkeypatch, output, value, head
):
    plain, seen = BoundEvaluator.evaluate_rows, []

    def spoiled(self, count):
        plain(self, count)
        rows = self._rows
        if self._where == "AR step 3" and (rows.step[:count] == 7).any():
            seen.append(self)
            getattr(rows, output)[np.flatnonzero(rows.step[:count] == 7), 2] = value

    monkeypatch.setattr(BoundEvaluator, "evaluate_rows", spoiled)
    options = GenerateOptions(mode="target", num_iter=NUM_ITER, head=head)
    with pytest.raises(NumericsError) as error:
        tiny_session.generate([1, 2], options)
    assert seen
    assert "target.head_step" in str(error.value)
    assert "AR step 3, head step 7" in str(error.value)


@pytest.mark.skipif(host.library() is None, reason="the host library is not built")
def test_rows_that_a_walk_does_not_reach_must_be_finite_too(tiny_session, monkeypatch):
    plain, spoilt = BoundEvaluator.evaluate_rows, []

    def spoiled(self, count):
        plain(self, count)
        if count > 3:
            self._rows.eps[count - 1] = np.nan
            spoilt.append(int(self._rows.step[count - 1]))

    monkeypatch.setattr(BoundEvaluator, "evaluate_rows", spoiled)
    options = GenerateOptions(mode="target", num_iter=NUM_ITER, head="speculative")
    with pytest.raises(NumericsError) as error:
        tiny_session.generate([1], options)
    assert f"AR step 0, head step {spoilt[0]}:" in str(error.value)


def test_chunks_of_tokens_follow_one_another(tiny_session, monkeypatch):
    options = GenerateOptions(mode="target", num_iter=2, head="speculative", cfg=2.0)
    wanted = tiny_session.generate([1, 2, 3], options, seed=5).tokens
    sizes, plain = [], bound.BoundHead.modulate

    def modulate(self, z, timesteps):
        sizes.append(len(z))
        plain(self, z, timesteps)

    monkeypatch.setattr(bound.BoundHead, "modulate", modulate)
    width = tiny_session.model("target").config.modulation_dim
    monkeypatch.setattr("csd.runtime.decoding.model.MODULATION_BYTES", 4 * STEPS * width * 2 * 5)
    made = tiny_session.generate([1, 2, 3], options, seed=5).tokens
    assert max(sizes) == 10
    assert len(sizes) > 4
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)


def test_rows_that_another_evaluator_took_are_not_evaluated(make):
    first, second = make(1), make(2)
    first.rows(4)
    second.rows(4)
    with pytest.raises(RuntimeError, match="taken by another evaluator: call rows again"):
        first.evaluate_rows(4)
    first.rows(4)
