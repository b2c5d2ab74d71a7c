"""The speculative sampler on the shipped target, in fixed contexts."""

from __future__ import annotations

import numpy as np
import pytest

from csd.runtime import Bundle
from csd.runtime.backends import BACKENDS
from csd.runtime.decoding.evaluator import Conditions
from csd.runtime.head import ParallelSampler, SequentialSampler, SpeculativeSampler
from csd.tools.measure.head_curve import collect_conditions

from ...helpers import with_engines
from .laws import same_law

CONTEXTS, REPEATS = 4, 500
SIGNIFICANCE = 1e-3


@pytest.fixture(
    scope="module",
    params=[
        "onnxruntime",
        *(pytest.param(name, marks=pytest.mark.gpu) for name in BACKENDS if name != "onnxruntime"),
    ],
)
def network(request, zoo_bundle, tmp_path_factory):
    """`evaluate` of 2,000 tokens, 500 in each of four contexts, and what the samplers need."""
    bundle = Bundle.open(zoo_bundle)
    if request.param != "onnxruntime":
        bundle = with_engines(bundle, request.param, tmp_path_factory)
    with bundle.session(request.param) as session:
        model = session.model("target")
        few = collect_conditions(session, "target", CONTEXTS)
        schedule = model.samplers.schedule(bundle.manifest.head_steps)
        few_evaluate = model.evaluator(
            Conditions(few.z, None, few.scale), schedule.timesteps, "a test"
        )
        yield (
            schedule,
            lambda x, step, token: few_evaluate(x, step, token % CONTEXTS),
            bundle.head_draft("target"),
            model.config.token_dim,
        )


@pytest.fixture(scope="module")
def sequential(network):
    """The head report of 2,000 tokens, one head step after the other."""
    schedule, evaluate, _, channels = network
    how = {"n_tokens": CONTEXTS * REPEATS, "channels": channels}
    return SequentialSampler(schedule).sample(evaluate, rng=np.random.default_rng(1), **how)[1]


@pytest.mark.slow
def test_two_thousand_tokens_have_the_sequential_law_in_few_rounds(network, sequential):
    schedule, evaluate, draft, channels = network
    theirs = sequential
    _, ours = SpeculativeSampler(schedule, draft=draft).sample(
        evaluate, n_tokens=CONTEXTS * REPEATS, channels=channels, rng=np.random.default_rng(2)
    )
    assert same_law(theirs, ours) > SIGNIFICANCE
    assert ours.rounds.mean() <= 20
    assert ours.row_evaluations <= 3 * theirs.row_evaluations


@pytest.mark.slow
def test_the_parallel_sampler_reaches_the_sequential_sample_in_few_sweeps(network):
    schedule, evaluate, draft, channels = network
    how = {"n_tokens": 40, "channels": channels}
    tokens, report = SequentialSampler(schedule).sample(
        evaluate, rng=np.random.default_rng(1), **how
    )
    ours, made = ParallelSampler(schedule, 0.01, draft=draft).sample(
        evaluate, noise=report.noise, **how
    )
    assert made.rounds.mean() <= 12
    # Tokens span [-1, 1]: 45 dB of peak signal to noise is an rms of 2 / 178.
    assert np.sqrt(np.square(ours - tokens).mean()) < 2 / 178
