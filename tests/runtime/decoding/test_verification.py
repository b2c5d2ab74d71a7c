"""Verdicts on drafted tokens: what is kept, and what is drawn in the place of the rest."""

from __future__ import annotations

import numpy as np
import pytest

from csd.plugins import reference
from csd.plugins.reference import Density
from csd.runtime import GenerateOptions, SeededNoise
from csd.runtime.decoding.verification import verify
from csd.runtime.noise import Purpose

CHANNELS, COUNT, SEED = 2, 12, 5
NOISE = SeededNoise(SEED)
IMAGES, POSITIONS = np.repeat([0, 3], COUNT // 2), np.tile(np.arange(COUNT // 2), 2)


def some_densities(distance, log_sigma=0.0, count=COUNT):
    """Target and draft, whose means are some standard deviations apart."""
    rng = np.random.default_rng(1)
    mean, zeros = rng.standard_normal((count, CHANNELS)), np.zeros((count, CHANNELS))
    std = np.exp(0.2 * rng.standard_normal((count, CHANNELS)))
    other = mean + distance * std * rng.choice([-1, 1], std.shape)
    return Density(mean, std, zeros), Density(other, 0.9 * std, zeros + log_sigma / CHANNELS)


def drafted(q):
    return (q.mean + q.std * np.random.default_rng(2).standard_normal(q.mean.shape)).astype(
        np.float32
    )


def judged(p, q, acceptance="paper", temperature=1.0, rows=slice(None)):
    options = GenerateOptions(mode="csd", acceptance=acceptance, inner_temperature=temperature)
    x = drafted(q)[rows]
    return x, verify(x, p[rows], q[rows], IMAGES[rows], POSITIONS[rows], NOISE, options)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("acceptance", ["paper", "relaxed"])
def test_drafts_are_accepted_by_the_density_ratio_and_the_token_s_own_uniform(
    acceptance, temperature
):
    p, q = some_densities(1.5 * temperature, log_sigma=0.7)
    x, verdict = judged(p, q, acceptance, temperature)
    sign = 1 if acceptance == "paper" else -1
    near, far = ((x - d.mean) / d.std / temperature for d in (p, q))
    ratio = sign * 0.7 + (np.log(q.std / p.std) + 0.5 * (far**2 - near**2)).sum(axis=1)
    uniforms = [
        NOISE.stream(Purpose.ACCEPT, image, position).random()
        for image, position in zip(IMAGES, POSITIONS, strict=True)
    ]
    wanted = np.log(uniforms) < np.minimum(ratio, 0)
    assert 0 < wanted.sum() < COUNT
    np.testing.assert_array_equal(verdict.accepted, wanted)
    np.testing.assert_array_equal(verdict.tokens[wanted], x[wanted])
    assert (verdict.tokens[~wanted] != x[~wanted]).all()
    assert verdict.tokens.dtype == np.float32
    assert verdict.tokens is not x


@pytest.mark.parametrize("acceptance", ["paper", "relaxed"])
def test_a_verdict_depends_on_the_token_and_not_on_those_beside_it(acceptance):
    p, q = some_densities(0.5)
    _, whole = judged(p, q, acceptance)
    for row in range(COUNT):
        _, alone = judged(p, q, acceptance, rows=slice(row, row + 1))
        np.testing.assert_array_equal(alone.tokens[0], whole.tokens[row])
        assert alone.accepted[0] == whole.accepted[row]


def drawn_plainly(p, q, row, tries, sign):
    """A pool of so many tries of a token, as numbers of its stream are taken; or the stream."""
    stream = NOISE.stream(Purpose.RESIDUAL, int(IMAGES[row]), int(POSITIONS[row]))
    proposals = p.mean[row] + p.std[row] * stream.standard_normal((tries, CHANNELS))
    uniforms = stream.random(tries)
    near, far = ((proposals - d.mean[row]) / d.std[row] for d in (p, q))
    ratio = (np.log(q.std[row] / p.std[row]) + 0.5 * (far**2 - near**2)).sum(axis=1)
    ratio += sign * (q.sum_log_std[row] - p.sum_log_std[row]).sum()
    kept = np.flatnonzero(uniforms < 1 - np.exp(-np.maximum(ratio, 0)))
    return proposals[kept[0]] if len(kept) else stream


# The pool of 16 tries is one batch of numbers, and what follows it continues their stream: one
# seed gives one image only while these stay.
POOLS = {"paper": 16, "relaxed": 100}


@pytest.mark.parametrize(("acceptance", "tries"), POOLS.items())
def test_a_rejected_token_is_the_first_try_of_its_pool_that_is_kept(acceptance, tries):
    p, q = some_densities(1.5)
    _, verdict = judged(p, q, acceptance)
    rows = np.flatnonzero(~verdict.accepted)
    assert len(rows) > 3
    for row in rows:
        wanted = drawn_plainly(p, q, row, tries, 1)
        np.testing.assert_allclose(verdict.tokens[row], wanted, rtol=1e-5, atol=1e-6)
    assert verdict.unreachable == 0


def test_where_the_pool_ends_the_residual_is_continued_exactly():
    p, q = some_densities(0.02, count=COUNT)
    # Far out on the side of the draft: rejected, whatever the uniform.
    x = (p.mean + 1e4 * (q.mean - p.mean)).astype(np.float32)
    near = Density(p.mean, p.std, p.sum_log_std), Density(q.mean, p.std, q.sum_log_std)
    options = GenerateOptions(mode="csd", inner_temperature=1.0)
    verdict = verify(x, *near, IMAGES, POSITIONS, NOISE, options)
    continued = 0
    for row in np.flatnonzero(~verdict.accepted):
        wanted = drawn_plainly(*near, row, POOLS["paper"], 1)
        if isinstance(wanted, np.random.Generator):
            wanted, continued = reference.continue_residual(
                near[0][row], near[1][row], wanted
            ), continued + 1  # fmt: skip
        np.testing.assert_allclose(verdict.tokens[row], wanted, rtol=1e-5, atol=1e-6)
    assert continued > 1
    assert verdict.unreachable == 0


@pytest.mark.parametrize(("acceptance", "tries"), POOLS.items())
def test_an_empty_residual_is_counted_and_drawn_from_the_last_step_of_the_target(acceptance, tries):
    sign = 1 if acceptance == "paper" else -1
    p, q = some_densities(0.0, log_sigma=-60 * sign)  # r is below 1 wherever p and q are
    q = Density(q.mean, p.std, q.sum_log_std)
    _, verdict = judged(p, q, acceptance)
    assert not verdict.accepted.any()
    assert verdict.unreachable == COUNT
    for row in range(COUNT):
        stream = drawn_plainly(p, q, row, tries, sign)
        wanted = p.mean[row] + p.std[row] * stream.standard_normal(CHANNELS)
        np.testing.assert_allclose(verdict.tokens[row], wanted, rtol=1e-5, atol=1e-6)


def test_a_residual_out_of_reach_is_given_up_after_some_hundred_tries():
    p, q = some_densities(1e-3, log_sigma=-30.0)
    q = Density(q.mean, p.std, q.sum_log_std)  # not empty: far out r is above 1
    _, verdict = judged(p, q)
    assert verdict.unreachable == (~verdict.accepted).sum() == COUNT


def test_a_residual_that_is_hardly_ever_hit_is_given_up_too():
    # One draw in some ten thousands lies where r is above 1: a longer search would find it.
    zeros, ones = np.zeros((COUNT, CHANNELS)), np.ones((COUNT, CHANNELS))
    p, q = Density(zeros, ones, zeros), Density(ones, ones, zeros - 7 / CHANNELS)
    _, verdict = judged(p, q)
    rejected = (~verdict.accepted).sum()
    assert rejected >= COUNT - 1
    assert verdict.unreachable > rejected / 2
    found = reference.continue_residual(p[0], q[0], np.random.default_rng(0))
    assert found is not None
