"""Rounds on the device, through the emulator, against the compiled host code of the runtime."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from csd.plugins import host, rounds
from csd.runtime.head import AffineDraft, SequentialSampler, SpeculativeSampler, fit_affine_draft

from ..runtime.head.analytic import Mixture, guided, linear, record
from .emulated_rounds import run, streams
from .emulation import compile_emulated

STEPS = 24


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_emulated(tmp_path_factory.mktemp("rounds") / "rounds.so")


def make_start(schedule, draft, window, count, channels, *, seed=3, temperature=0.95, scale=None):
    """The same inputs as `SpeculativeSampler.sample` makes of these streams."""
    rng = np.random.default_rng(seed)
    initial = rng.standard_normal((count, channels), dtype=np.float32)
    per_step = rng.standard_normal((count, schedule.steps, channels), dtype=np.float32)
    generators = streams(count)
    log_uniforms = np.log([stream.random(schedule.steps) for stream in generators])
    sampler = SpeculativeSampler(schedule, window, draft=draft)
    start = rounds.Start(
        tables=np.concatenate(schedule.columns, axis=1), weight=draft.weight, bias=draft.bias,
        share=draft.share, windows=sampler._windows, initial=initial, normals=per_step,
        log_uniforms=log_uniforms, generators=generators, guess=draft.first(initial),
        temperature=temperature, scale=scale,
    )  # fmt: skip
    return start, (sampler, initial, per_step)


def on_the_host(sampler, initial, per_step, evaluate, temperature=0.95):
    return sampler.sample(
        evaluate, n_tokens=len(initial), channels=initial.shape[1], temperature=temperature,
        noise=(initial, per_step), streams=streams(len(initial)),
    )[1]  # fmt: skip


def assert_same(made, report, share=1.0):
    """`share` of the chains are the same: rounding may turn a verdict, and a chain then differs."""
    wanted = report.trajectory
    same = (np.abs(made.states - wanted) <= 2e-3 * (1 + np.abs(wanted))).all(axis=(0, 2))
    print(f"chains that agree: {same.mean():.1%}")
    assert same.mean() >= share
    assert (made.rounds[same] == report.rounds[same]).all()
    for name in ("std", "sum_log_std"):
        np.testing.assert_allclose(
            getattr(made, name)[same], getattr(report, name)[same], rtol=1e-3, atol=2e-3
        )
    np.testing.assert_allclose(made.noise[same, 1:], report.noise[1][same, 1:], atol=2e-2)


@pytest.fixture(scope="module")
def fitted():
    made = {}

    def of(channels):
        if channels not in made:
            schedule, evaluate = linear(STEPS), Mixture(channels).evaluate(linear(STEPS))
            _, report = SequentialSampler(schedule).sample(
                evaluate, n_tokens=400, channels=channels, rng=np.random.default_rng(0)
            )
            made[channels] = fit_affine_draft(schedule, record(schedule, evaluate, report))
        return made[channels]

    return of


@pytest.mark.skipif(host.find_library() is None, reason="the host library is not built")
@pytest.mark.parametrize("channels", [1, 3, 16, 33, 64])
@pytest.mark.parametrize("window", [6, None], ids=["fixed window", "fitted windows"])
def test_rounds_on_the_device_make_the_chains_of_the_host(library, fitted, channels, window):
    schedule, draft = linear(STEPS), fitted(channels)
    evaluate = Mixture(channels).evaluate(schedule)
    start, given = make_start(schedule, draft, window, 13, channels)
    made, calls = run(library, start, evaluate)
    report = on_the_host(*given, evaluate)
    assert_same(made, report, share=0.9)
    assert calls == made.rounds.max()
    same = made.rounds == report.rounds
    assert made.rows[same].sum() <= report.row_evaluations


def test_guidance_is_mixed_on_the_device(library, fitted):
    schedule, draft, scale = linear(STEPS), fitted(3), 1.7
    conditional = Mixture(3).evaluate(schedule)
    other = Mixture(3, means=(0.2, -0.5)).evaluate(schedule)
    scales = np.full(9, scale, np.float32)
    start, given = make_start(schedule, draft, 5, 9, 3, scale=scales)
    made, _ = run(library, start, conditional, other)
    assert_same(made, on_the_host(*given, guided(conditional, other, scale)), share=0.8)


def test_a_draft_that_is_wrong_costs_rounds_and_residual_draws_from_the_tokens_own_streams(
    library,
):
    schedule = linear(STEPS)
    frozen = AffineDraft.frozen(STEPS, 4)
    evaluate = Mixture(4, share=0.3).evaluate(schedule)
    start, given = make_start(schedule, frozen, 4, 11, 4)
    made, _ = run(library, start, evaluate)
    # As the sampler does it, but from the draft's guess in place of a first evaluation.
    _, initial, per_step = given
    own = SpeculativeSampler(schedule, 4, draft=frozen)
    assert_same(made, on_the_host(own, initial, per_step, evaluate), share=0.8)
    assert made.rounds.mean() > STEPS / 3


def test_what_is_not_finite_is_named_with_its_head_step(library, fitted):
    schedule = linear(STEPS)
    evaluate = Mixture(3).evaluate(schedule)

    def broken(x, step, token):
        eps, v = evaluate(x, step, token)
        eps[(step == 9) & (token == 2)] = np.nan
        return eps, v

    start, _ = make_start(schedule, fitted(3), 4, 5, 3)
    with pytest.raises(rounds.RoundsError, match="not finite at head step 9"):
        run(library, start, broken)


def test_the_structure_is_that_of_the_kernels(library):
    library.size_of_rounds.restype = ctypes.c_int64
    assert library.size_of_rounds() == rounds.STRUCT_BYTES


def test_other_generators_and_too_many_channels_are_left_to_the_host():
    assert rounds.takes(streams(2), 64)
    assert not rounds.takes(streams(2), 65)
    assert not rounds.takes([*streams(1), np.random.default_rng(0)], 16)
    with pytest.raises(ValueError, match="channels is 65: the kernels take 1 to 64"):
        rounds.Rounds(1, 65, 2, 1, guided=False)
    with pytest.raises(ValueError, match="width is 3: give 1 to 2"):
        rounds.Rounds(1, 2, 2, 2, guided=False).draft(0, 3)
