"""What samplers are asked for and what they report."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from csd.runtime import NumericsError, OptionError
from csd.runtime.head import HeadReport, HeadRequest, ParallelSampler, SpeculativeSampler
from csd.runtime.head.request import HeadRows, draw_noise, evaluated, log_uniforms_of

from .analytic import linear

STEPS, TOKENS, CHANNELS = 4, 3, 2
SCHEDULE = linear(STEPS)


@pytest.fixture(autouse=True)
def host_code():
    """Nothing here depends on the host side of the samplers."""


def some_noise(count=TOKENS):
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((count, CHANNELS), dtype=np.float32),
        rng.standard_normal((count, STEPS, CHANNELS), dtype=np.float32),
    )


def drawn(rng=None, noise=None, temperature=1.0, tokens=TOKENS, channels=CHANNELS, **how):
    return HeadRequest.drawn(SCHEDULE, tokens, channels, rng, temperature, noise, **how)


def test_noise_is_drawn_from_the_generator_initial_first():
    request = drawn(np.random.default_rng(5))
    rng = np.random.default_rng(5)
    wanted = (
        rng.standard_normal((TOKENS, CHANNELS), dtype=np.float32),
        rng.standard_normal((TOKENS, STEPS, CHANNELS), dtype=np.float32),
    )
    for made, array in zip(request.noise, wanted, strict=True):
        assert made.dtype == np.float32
        np.testing.assert_array_equal(made, array)
    assert (len(request), request.channels) == (TOKENS, CHANNELS)


def test_noise_that_is_given_is_taken_as_it_is():
    initial, per_step = some_noise()
    request = drawn(None, (initial.tolist(), per_step.astype(np.float64)), 0.5)
    np.testing.assert_array_equal(request.noise[0], initial)
    np.testing.assert_array_equal(request.noise[1], per_step)
    assert {array.dtype for array in request.noise} == {np.dtype(np.float32)}
    assert (request.temperature, request.start) == (0.5, None)


def test_every_token_draws_from_its_stream_or_all_from_the_generator():
    rng, noise = np.random.default_rng(5), some_noise()
    streams = [np.random.default_rng(k) for k in range(TOKENS)]
    assert list(drawn(rng, noise, streams=streams).streams()) == streams
    assert list(drawn(rng, noise).streams()) == [rng] * TOKENS
    with pytest.raises(OptionError, match=r"^give rng or streams$"):
        drawn(None, noise).streams()


def test_a_part_makes_the_streams_of_its_own_chains_alone():
    asked = []
    request = HeadRequest(
        some_noise(), 1.0, lambda chains: asked.append(list(chains)) or [None for _ in chains]
    )
    assert request[1:][1:].streams() == [None]
    assert request[:2].streams() == [None, None]
    assert request[3:].streams() == []
    assert asked == [[2], [0, 1], []]


def test_a_part_of_a_request_is_the_request_of_some_tokens():
    streams = [np.random.default_rng(k) for k in range(TOKENS)]
    start = np.random.default_rng(1).standard_normal((STEPS + 1, TOKENS, CHANNELS))
    whole = drawn(None, some_noise(), 0.7, streams=streams, start=start)
    part = whole[1:3]
    assert (len(part), part.temperature) == (2, 0.7)
    np.testing.assert_array_equal(part.noise[0], whole.noise[0][1:3])
    np.testing.assert_array_equal(part.noise[1], whole.noise[1][1:3])
    np.testing.assert_array_equal(part.start, start[:, 1:3])
    assert list(part.streams()) == streams[1:3]
    assert drawn(None, some_noise(), streams=streams)[1:3].start is None


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"rng": None}, "^give rng or noise$"),
        ({"rng": 3}, r"^rng is 3 \(int\): give a NumPy generator \(numpy.random.default_rng\)$"),
        ({"tokens": -1}, "^n_tokens is -1: give at least 0$"),
        ({"channels": 0}, "^channels is 0: give at least 1$"),
        ({"temperature": 0.0}, "^temperature is 0.0"),
        (
            {"noise": "fixed"},
            r"^noise is 'fixed' \(str\): give a pair \(initial \[N, C\], per_step \[N, S, C\]\)$",
        ),
        ({"noise": (*some_noise(), 1)}, "^noise is .*: give a pair"),
        ({"noise": some_noise()[:1]}, "^noise is .*: give a pair"),
        ({"noise": ("a", "b")}, "^noise is an array of .*: give one of numbers"),
        (
            {"noise": some_noise(2)},
            r"^noise has shapes \(2, 2\) and \(2, 4, 2\), not \(3, 2\) and ",
        ),
        ({"noise": (some_noise()[0], some_noise(2)[1])}, "^noise has shapes"),
        ({"noise": (some_noise(2)[0], some_noise()[1])}, "^noise has shapes"),
        (
            {"start": np.zeros((STEPS, TOKENS, CHANNELS))},
            r"^start is \(4, 3, 2\), not \(5, 3, 2\)$",
        ),
    ],
)
def test_what_does_not_fit_is_named(how, said):
    with pytest.raises(OptionError, match=said):
        drawn(**{"rng": np.random.default_rng(0), **how})


def test_the_least_that_can_be_asked_for_is_no_token_of_one_channel():
    initial, per_step = draw_noise(SCHEDULE, 0, 1, np.random.default_rng(0), None)
    assert (initial.shape, per_step.shape) == ((0, 1), (0, STEPS, 1))


def test_rows_are_arrays_of_their_own():
    rows = HeadRows.empty(5, CHANNELS)
    for array in (rows.x, rows.eps, rows.v):
        assert (array.shape, array.dtype) == ((5, CHANNELS), np.float32)
    for array in (rows.step, rows.token):
        assert (array.shape, array.dtype) == ((5,), np.int64)
    assert len({array.ctypes.data for array in rows}) == 5


def report_of(count, seed):
    rng = np.random.default_rng(seed)
    return HeadReport(
        rounds=rng.integers(1, 9, count), row_evaluations=10 * seed, evaluations=seed,
        mean=rng.random((count, CHANNELS)), std=rng.random((count, CHANNELS)),
        sum_log_std=rng.random((count, CHANNELS)),
        trajectory=rng.random((STEPS + 1, count, CHANNELS)),
        noise=(rng.random((count, CHANNELS)), rng.random((count, STEPS, CHANNELS))),
    )  # fmt: skip


def test_parts_are_reported_together_token_after_token():
    parts = [report_of(2, 1), report_of(1, 2), report_of(3, 3)]
    whole = HeadReport.joined(parts)
    assert (whole.row_evaluations, whole.evaluations) == (60, 6)
    for rows, part in zip((slice(0, 2), slice(2, 3), slice(3, 6)), parts, strict=True):
        for name in ("rounds", "mean", "std", "sum_log_std"):
            np.testing.assert_array_equal(getattr(whole, name)[rows], getattr(part, name))
        np.testing.assert_array_equal(whole.trajectory[:, rows], part.trajectory)
        for made, wanted in zip(whole.noise, part.noise, strict=True):
            np.testing.assert_array_equal(made[rows], wanted)
    assert len(whole.rounds) == 6


def test_evaluations_that_were_made_before_count_for_every_token():
    plain = report_of(3, 2)
    later = plain.after(2)
    np.testing.assert_array_equal(later.rounds, plain.rounds + 2)
    assert (later.row_evaluations, later.evaluations) == (20 + 2 * 3, 2 + 2)
    assert later.mean is plain.mean
    np.testing.assert_array_equal(plain.after(0).rounds, plain.rounds)


@pytest.mark.parametrize("output", ["eps", "v"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_head_step_of_a_bad_output_is_named_without_a_warning(output, bad):
    x = np.ones((3, CHANNELS), dtype=np.float32)
    outputs = {"eps": np.zeros_like(x), "v": np.zeros_like(x)}
    outputs[output][1, 1] = bad
    step, token = np.array([3, 2, 1]), np.arange(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NumericsError, match=r"output is not finite at head step 2:"):
            evaluated(SCHEDULE, lambda *_: (outputs["eps"], outputs["v"]), x, step, token)


def test_large_outputs_whose_sum_overflows_are_no_error():
    x = np.full((3, CHANNELS), 3e38, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made, v = evaluated(SCHEDULE, lambda *_: (0 * x, 0 * x), x, np.zeros(3, int), np.arange(3))
    assert np.isfinite(made.mean).all()
    np.testing.assert_array_equal(v, 0 * x)


def test_uniforms_are_the_first_numbers_of_each_stream_and_zero_is_no_warning():
    class Zero:
        def random(self, count):
            return np.zeros(count)

    streams = [np.random.default_rng(k) for k in range(2)]
    request = drawn(None, some_noise(), streams=[*streams, Zero()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given, logs = log_uniforms_of(request)
    wanted = [np.log(np.random.default_rng(k).random(STEPS)) for k in range(2)]
    np.testing.assert_array_equal(logs[:2], wanted)
    assert (logs[2] == -np.inf).all()
    assert list(given[:2]) == streams
    empty = drawn(np.random.default_rng(0), tokens=0)
    assert log_uniforms_of(empty)[1].shape == (0, STEPS)


@pytest.mark.parametrize("sampler", [SpeculativeSampler, ParallelSampler])
def test_no_tokens_are_no_work_for_any_sampler(sampler):
    tokens, report = sampler(SCHEDULE).sample(
        lambda x, step, token: (x, x), n_tokens=0, channels=CHANNELS, rng=np.random.default_rng(0)
    )
    assert (tokens.shape, report.row_evaluations) == ((0, CHANNELS), 0)


def test_infinities_of_both_signs_are_no_warning_but_the_error():
    x = np.ones((2, CHANNELS), dtype=np.float32)
    eps = np.array([[np.inf, 0], [-np.inf, 0]], dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NumericsError, match="at head step 3"):
            evaluated(SCHEDULE, lambda *_: (eps, 0 * x), x, np.array([3, 3]), np.arange(2))


def test_two_parts_are_joined_and_one_is_itself():
    parts = [report_of(2, 1), report_of(1, 2)]
    assert len(HeadReport.joined(parts).rounds) == 3
    assert HeadReport.joined(parts[:1]) is parts[0]
