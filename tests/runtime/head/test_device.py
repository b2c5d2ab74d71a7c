"""Where a head sampler runs, and what goes to rounds on a device and comes back from them."""

from __future__ import annotations

import numpy as np
import pytest

from csd.plugins import host
from csd.plugins.rounds import Finished
from csd.runtime.head import (
    AffineDraft,
    HeadReport,
    HeadRequest,
    ParallelSampler,
    SequentialSampler,
    SpeculativeSampler,
)
from csd.runtime.head.request import DeviceEvaluate
from csd.runtime.head.sampler import ChainSampler

from .analytic import Mixture, linear
from .chains import STEPS, make_draft

TOKENS, CHANNELS = 3, 2
SCHEDULE = linear(STEPS)


class Device(DeviceEvaluate):
    """A network with rounds beside it, which make what they are told to."""

    def __init__(self, made=None, scale=None):
        self._made, self._scale = made, scale
        self._plain = Mixture(CHANNELS).evaluate(SCHEDULE)
        self.starts, self.calls = [], 0

    def __call__(self, x, step, token):
        self.calls += 1
        return self._plain(x, step, token)

    @property
    def scale(self):
        return self._scale

    def run_rounds(self, start):
        self.starts.append(start())
        return self._made


def a_request(count=TOKENS):
    rng = np.random.default_rng(1)
    streams = [np.random.default_rng(k) for k in range(count)]
    return HeadRequest.drawn(SCHEDULE, count, CHANNELS, rng, 0.9, None, streams=streams)


def finished():
    rng = np.random.default_rng(2)
    return Finished(
        states=rng.random((STEPS + 1, TOKENS, CHANNELS), dtype=np.float32),
        noise=rng.random((TOKENS, STEPS, CHANNELS), dtype=np.float32),
        sum_log_std=rng.random((TOKENS, CHANNELS), dtype=np.float32),
        std=rng.random((TOKENS, CHANNELS), dtype=np.float32),
        rounds=np.array([4, 5, 6]), rows=np.array([7, 8, 9]),
    )  # fmt: skip


@pytest.mark.parametrize("scale", [None, np.array([1.0, 2.0, 3.0], dtype=np.float32)])
def test_rounds_start_from_what_the_host_would_draw(scale):
    draft, device = make_draft("fitted", CHANNELS), Device(scale=scale)
    sampler, request = SpeculativeSampler(SCHEDULE, 6, draft), a_request()
    sampler.run(device, request)
    (start,) = device.starts
    initial, per_step = request.noise
    np.testing.assert_array_equal(start.tables, np.concatenate(SCHEDULE.columns, axis=1))
    assert start.tables.shape == (STEPS, 6)
    for name in ("weight", "bias", "share"):
        np.testing.assert_array_equal(getattr(start, name), getattr(draft, name))
    np.testing.assert_array_equal(start.windows, np.minimum(6, np.arange(1, STEPS + 1)))
    np.testing.assert_array_equal(start.initial, initial)
    np.testing.assert_array_equal(start.normals, per_step)
    for made, wanted in zip(start.guess, draft.first(initial), strict=True):
        np.testing.assert_array_equal(made, wanted)
    wanted = [np.log(np.random.default_rng(k).random(STEPS)) for k in range(TOKENS)]
    np.testing.assert_array_equal(start.log_uniforms, wanted)
    assert (len(start.generators), start.temperature) == (TOKENS, 0.9)
    assert (start.scale is None) if scale is None else (start.scale == scale).all()


def test_what_the_rounds_made_is_the_report():
    made, request = finished(), a_request()
    device = Device(made=(made, 11, 24))
    report = SpeculativeSampler(SCHEDULE, 6, make_draft("fitted", CHANNELS)).run(device, request)
    assert device.calls == 0
    assert (report.evaluations, report.row_evaluations) == (11, 24)
    np.testing.assert_array_equal(report.rounds, [4, 5, 6])
    np.testing.assert_array_equal(report.mean, made.states[0])
    assert not np.shares_memory(report.mean, made.states)
    for name, wanted in (
        ("std", made.std), ("sum_log_std", made.sum_log_std), ("trajectory", made.states),
    ):  # fmt: skip
        np.testing.assert_array_equal(getattr(report, name), wanted)
    np.testing.assert_array_equal(report.noise[0], request.noise[0])
    np.testing.assert_array_equal(report.noise[1], made.noise)


@pytest.mark.parametrize(("kind", "count"), [("frozen", TOKENS), ("fitted", 0)])
def test_without_a_fitted_draft_or_a_token_the_host_does_it(kind, count):
    device = Device()
    report = SpeculativeSampler(SCHEDULE, 6, make_draft(kind, CHANNELS)).run(
        device, a_request(count)
    )
    assert device.starts == [None]
    assert len(report.rounds) == count


@pytest.mark.parametrize("make", [SequentialSampler, ParallelSampler])
def test_samplers_without_rounds_use_the_device_as_any_network(make):
    device, request = Device(made=(finished(), 1, 1)), a_request()
    report = make(SCHEDULE).run(device, request)
    assert device.starts == []
    assert report.evaluations == device.calls > 0


class Named(ChainSampler):
    """Says which code ran."""

    largest_window = 1

    def _compiled(self, evaluate, request):
        return "compiled"

    def _plain(self, evaluate, request):
        return "numpy"


def test_compiled_code_runs_where_the_library_is_and_numpy_elsewhere(host_code):
    assert (host.library() is not None) == (host_code == "compiled")
    assert Named(SCHEDULE).run(Device(), a_request()) == host_code


def test_a_frozen_draft_is_evaluated_once_before_its_first_round():
    plain, seen = Mixture(CHANNELS).evaluate(SCHEDULE), []

    def evaluate(x, step, token):
        seen.append((x.copy(), step.copy(), token.copy()))
        return plain(x, step, token)

    request = a_request()
    report: HeadReport = SpeculativeSampler(SCHEDULE, 6).run(evaluate, request)
    x, step, token = seen[0]
    np.testing.assert_array_equal(x, request.noise[0])
    assert step.tolist() == [STEPS - 1] * TOKENS
    assert token.tolist() == list(range(TOKENS))
    assert report.evaluations == len(seen)
    assert report.row_evaluations == sum(len(x) for x, _, _ in seen)
    assert report.rounds.max() == len(seen)


def test_one_head_step_is_evaluated_once_by_a_frozen_draft_too():
    schedule = linear(1)
    rng = np.random.default_rng(0)
    _, report = SpeculativeSampler(schedule).sample(
        Mixture(CHANNELS).evaluate(schedule), n_tokens=2, channels=CHANNELS, rng=rng
    )
    assert (report.rounds.tolist(), report.evaluations, report.row_evaluations) == ([1, 1], 1, 2)
    assert AffineDraft.frozen(1, CHANNELS).windows().tolist() == [1]
