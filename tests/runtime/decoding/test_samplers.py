"""The choice of a head sampler: what each option takes, and where `auto` turns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from csd.runtime import GenerateOptions
from csd.runtime.decoding.samplers import (
    HOST_ROW,
    HOST_WEIGHTS,
    CallCosts,
    HeadSamplers,
    sampler_kind,
)
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
        made = sampler_kind(head, steps, CallCosts(0.01, 0.01), aligned=follows)
        assert made == ("sequential" if few else wanted)


# Costs at which the calls that are saved are worth the rows that come with them.
@pytest.mark.parametrize(
    ("kind", "aligned", "steps", "host", "row"),
    [
        # S (1 + c) = S (1/8 + 1.2 (c + h))
        ("speculative", False, 100, 0.0, 0.875 / 0.2),
        ("speculative", False, 16, 0.5, (0.875 - 0.6) / 0.2),
        # S (1 + c) = 7 + 2.5 S (c + h)
        ("parallel", True, 100, 0.0, 93 / 150),
        ("parallel", True, 16, 0.0, 0.375),
        ("parallel", True, 100, 0.1, (93 - 25) / 150),
    ],
)
def test_auto_turns_where_rows_cost_more_than_the_calls_that_they_save(
    kind, aligned, steps, host, row
):
    for factor, wanted in ((0.99, kind), (1.01, "sequential")):
        costs = CallCosts(factor * row, host)
        assert sampler_kind("auto", steps, costs, aligned=aligned) == wanted
        assert sampler_kind("parallel", steps, costs, aligned=aligned) == "parallel"
        assert sampler_kind("sequential", steps, costs, aligned=aligned) == "sequential"


@pytest.mark.parametrize("weights", [None, HOST_WEIGHTS, 10 * HOST_WEIGHTS])
def test_auto_counts_all_images_and_what_the_host_does(weights):
    samplers = HeadSamplers("linear", CHANNELS, HeadCalibration(None, COST), weights)
    host = 0.0 if weights is None else HOST_ROW * HOST_WEIGHTS / weights
    turn = next(
        images for images in range(1, 1000)
        if samplers.choose(options(), 40, 2, images, aligned=False, guided=True)[0] == "sequential"
    )  # fmt: skip
    assert turn == math.ceil(0.875 / 2 / (0.2 * 2 * COST + 1.2 * host))
    for images in (1, 999):
        given = samplers.choose(
            options(head="speculative"), 40, 2, images, aligned=False, guided=True
        )
        assert given[0] == "speculative"
        assert given == samplers.choose(
            options(head="speculative"), 40, 2, 1, aligned=False, guided=True
        )


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
        _, made = samplers.choose(
            options(**changes), 40, together, 1, aligned=False, guided="cfg" in changes
        )
        assert isinstance(made, SpeculativeSampler)
        np.testing.assert_array_equal(made.windows, a_draft(40).windows(rows * COST))
        assert made.draft is samplers._calibration.draft


def test_a_draft_of_another_number_of_head_steps_is_not_used(samplers):
    _, made = samplers.choose(options(), 41, 2, 1, aligned=False, guided=False)
    assert isinstance(made, SpeculativeSampler)
    assert made.draft is None
    wanted = AffineDraft.frozen(41, CHANNELS).windows(2 * COST)
    np.testing.assert_array_equal(made.windows, wanted)
    _, made = samplers.choose(options(head="parallel"), 41, 2, 1, aligned=False, guided=False)
    assert isinstance(made, ParallelSampler)
    assert made.draft is None


def test_the_parallel_sampler_has_the_draft_and_the_tolerance_of_the_options(samplers):
    _, made = samplers.choose(
        options(head="parallel", head_tolerance=0.2), 40, 1, 1, aligned=True, guided=False
    )
    assert isinstance(made, ParallelSampler)
    assert (made.draft, made.tolerance) == (samplers._calibration.draft, 0.2)
    _, other = samplers.choose(
        options(head="parallel", head_tolerance=0.1), 40, 1, 1, aligned=True, guided=False
    )
    assert isinstance(other, ParallelSampler)
    assert other.tolerance == 0.1


def test_samplers_and_schedules_are_made_once(samplers):
    _, one = samplers.choose(options(head="sequential"), 40, 1, 1, aligned=False, guided=False)
    assert isinstance(one, SequentialSampler)
    assert (
        samplers.choose(options(head="sequential"), 40, 1, 1, aligned=True, guided=False)[1] is one
    )
    assert samplers.schedule(40) is samplers.schedule(40) is one.schedule
    assert (
        samplers.choose(options(head="sequential"), 20, 1, 1, aligned=False, guided=False)[
            1
        ].schedule.steps
        == 20
    )


def test_schedules_are_of_the_model_s_betas():
    for name in ("linear", "cosine"):
        tables = HeadSamplers(name, CHANNELS, HeadCalibration()).schedule(10).tables
        assert (tables.steps, tables.beta.max() > 0.99) == (10, name == "cosine")
