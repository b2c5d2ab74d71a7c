"""Chains of sampled tokens are parted and joined with all that verification needs."""

from __future__ import annotations

import numpy as np

from csd.plugins.reference import Density
from csd.runtime.decoding.chains import Chains
from csd.runtime.head import HeadReport

CHANNELS = 2


def some_chains(count, steps, seed):
    rng = np.random.default_rng(seed)
    tokens, mean, std, logs = rng.random((4, count, CHANNELS)).astype(np.float32)
    return Chains(
        tokens, Density(mean, std, logs),
        rng.random((steps + 1, count, CHANNELS), dtype=np.float32),
        rng.random((count, steps, CHANNELS), dtype=np.float32),
    )  # fmt: skip


def assert_token_is(chains, row, other, at, steps):
    np.testing.assert_array_equal(chains.tokens[row], other.tokens[at])
    for name in ("mean", "std", "sum_log_std"):
        np.testing.assert_array_equal(
            getattr(chains.density, name)[row], getattr(other.density, name)[at]
        )
    np.testing.assert_array_equal(chains.trajectory[: steps + 1, row], other.trajectory[:, at])
    np.testing.assert_array_equal(chains.noise[row, :steps], other.noise[at])


def test_rows_that_were_sampled_apart_come_to_their_places_whatever_their_head_steps():
    parts = [(np.array([4, 0]), some_chains(2, 3, 1)), (np.array([1, 3, 2]), some_chains(3, 5, 2))]
    whole = Chains.scattered(parts)
    assert whole.tokens.shape == (5, CHANNELS)
    assert (whole.trajectory.shape, whole.noise.shape) == ((6, 5, CHANNELS), (5, 5, CHANNELS))
    assert {whole.tokens.dtype, whole.trajectory.dtype, whole.noise.dtype} == {np.dtype(np.float32)}
    for rows, part in parts:
        steps = part.noise.shape[1]
        for at, row in enumerate(rows):
            assert_token_is(whole, row, part, at, steps)
            # Beyond its own head steps a chain has nothing.
            assert (whole.trajectory[steps + 1 :, row] == 0).all()
            assert (whole.noise[row, steps:] == 0).all()


def test_one_part_is_the_whole():
    part = some_chains(3, 4, 1)
    assert Chains.scattered([(np.arange(3), part)]) is part


def test_some_tokens_have_their_own_chains():
    whole, rows = some_chains(5, 3, 1), np.array([3, 0])
    some = whole[rows]
    for at, row in enumerate(rows):
        assert_token_is(some, at, whole, row, 3)


def test_chains_are_what_a_sampler_reports():
    made = some_chains(3, 4, 1)
    report = HeadReport(
        rounds=np.ones(3, dtype=np.int64), row_evaluations=1, evaluations=1, mean=made.tokens,
        std=made.density.std, sum_log_std=made.density.sum_log_std, trajectory=made.trajectory,
        noise=(made.tokens + 1, made.noise),
    )  # fmt: skip
    chains = Chains.of(report)
    np.testing.assert_array_equal(chains.tokens, report.mean)
    np.testing.assert_array_equal(chains.density.mean, report.mean)
    np.testing.assert_array_equal(chains.density.std, report.std)
    np.testing.assert_array_equal(chains.density.sum_log_std, report.sum_log_std)
    np.testing.assert_array_equal(chains.trajectory, report.trajectory)
    np.testing.assert_array_equal(chains.noise, report.noise[1])
