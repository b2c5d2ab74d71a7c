"""The choice of a head sampler: what each option takes, and where `auto` turns."""

from __future__ import annotations

import numpy as np
import pytest

from csd.runtime import GenerateOptions
from csd.runtime.decoding.samplers import HeadSamplers, sampler_kind
from csd.runtime.head import (
    AffineDraft,
    HeadCalibration,
    ParallelSampler,
    SequentialSampler,
    SpeculativeSampler,
)

CHANNELS, COST = 3, 1 / 32


@pytest.mark.parametrize(
    ("head", "alone", "aligned"),
    [
        ("sequential", "sequential", "sequential"),
        ("speculative", "speculative", "parallel"),
        ("parallel", "parallel", "parallel"),
        ("auto", "speculative", "parallel"),
    ],
)
@pytest.mark.parametrize("steps", [15, 16, 100])
def test_an_option_names_its_sampler_and_what_verifies_it(head, steps, alone, aligned):
    few = head == "auto" and steps < 16
    for wanted, follows in ((alone, False), (aligned, True)):
        made = sampler_kind(head, steps, 0.01, aligned=follows)
        assert made == ("sequential" if few else wanted)


@pytest.mark.parametrize(("steps", "cost"), [(16, 0.375), (19, 12 / 28.5), (100, 93 / 150)])
def test_auto_sweeps_until_its_rows_cost_more_than_the_calls_that_it_saves(steps, cost):
    # 7 sweeps of 2.5 S rows a token in all, against S calls of one row.
    for factor, wanted in ((0.99, "parallel"), (1.01, "sequential")):
        assert sampler_kind("auto", steps, factor * cost, aligned=True) == wanted
        assert sampler_kind("parallel", steps, factor * cost, aligned=True) == "parallel"
        assert sampler_kind("auto", steps, factor * cost, aligned=False) == "speculative"
    assert sampler_kind("auto", 16, 0.375, aligned=True) == "parallel"  # a draw saves calls


def a_draft(steps):
    frozen = AffineDraft.frozen(steps, CHANNELS)
    arrays = {name: array.copy() for name, array in vars(frozen).items()}
    arrays["survival"] = np.cumprod(np.full_like(frozen.survival, 0.97), axis=1)
    return AffineDraft(**arrays)


@pytest.fixture
def samplers():
    return HeadSamplers("linear", CHANNELS, HeadCalibration(a_draft(40), COST))


def options(**changes):
    return GenerateOptions(**{"mode": "target", "head": "auto", **changes})


def test_windows_follow_from_what_the_rows_of_a_transition_cost(samplers):
    for together, changes, rows in ((1, {}, 1), (6, {}, 6), (6, {"cfg": 2.0}, 12)):
        made = samplers.choose(
            options(**changes), 40, together, aligned=False, guided="cfg" in changes
        )
        assert isinstance(made, SpeculativeSampler)
        np.testing.assert_array_equal(made.windows, a_draft(40).windows(rows * COST))
        assert made.draft is samplers._calibration.draft


def test_a_draft_of_another_number_of_head_steps_is_not_used(samplers):
    made = samplers.choose(options(), 41, 2, aligned=False, guided=False)
    assert isinstance(made, SpeculativeSampler)
    assert made.draft is None
    wanted = AffineDraft.frozen(41, CHANNELS).windows(2 * COST)
    np.testing.assert_array_equal(made.windows, wanted)
    made = samplers.choose(options(head="parallel"), 41, 2, aligned=False, guided=False)
    assert isinstance(made, ParallelSampler)
    assert made.draft is None


def test_the_parallel_sampler_has_the_draft_and_the_tolerance_of_the_options(samplers):
    made = samplers.choose(
        options(head="parallel", head_tolerance=0.2), 40, 1, aligned=True, guided=False
    )
    assert isinstance(made, ParallelSampler)
    assert (made.draft, made.tolerance) == (samplers._calibration.draft, 0.2)
    other = samplers.choose(
        options(head="parallel", head_tolerance=0.1), 40, 1, aligned=True, guided=False
    )
    assert isinstance(other, ParallelSampler)
    assert other.tolerance == 0.1


def test_samplers_and_schedules_are_made_once(samplers):
    one = samplers.choose(options(head="sequential"), 40, 1, aligned=False, guided=False)
    assert isinstance(one, SequentialSampler)
    assert samplers.choose(options(head="sequential"), 40, 1, aligned=True, guided=False) is one
    assert samplers.schedule(40) is samplers.schedule(40) is one.schedule
    assert (
        samplers.choose(
            options(head="sequential"), 20, 1, aligned=False, guided=False
        ).schedule.steps
        == 20
    )


def test_schedules_are_of_the_model_s_betas():
    for name in ("linear", "cosine"):
        tables = HeadSamplers(name, CHANNELS, HeadCalibration()).schedule(10).tables
        assert (tables.steps, tables.beta.max() > 0.99) == (10, name == "cosine")
