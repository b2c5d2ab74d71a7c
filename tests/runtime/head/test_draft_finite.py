"""A fit of chains whose numbers are not finite, or run away."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from csd.runtime import NumericsError
from csd.runtime.head import HeadSchedule, Trajectories, fit_affine_draft

STEPS, COUNT, CHANNELS = 3, 40, 2
SCHEDULE = HeadSchedule.cosine(steps=STEPS)


@pytest.fixture(autouse=True)
def host_code():
    """Nothing here depends on the host side of the samplers."""


@pytest.fixture
def chains() -> Trajectories:
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((5, STEPS, COUNT, CHANNELS)).astype(np.float32)
    return Trajectories(*arrays)


def test_a_fit_of_finite_chains_is_finite(chains):
    draft = fit_affine_draft(SCHEDULE, chains)
    assert all(np.isfinite(array).all() for array in dataclasses.astuple(draft))
    assert (draft.survival[0, 0] > 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_fit_that_is_not_finite_is_an_error(value, chains):
    chains.x0hat[1, 5, 0] = value
    with np.errstate(invalid="ignore"), pytest.raises(NumericsError, match="the fitted draft's"):
        fit_affine_draft(SCHEDULE, chains)


def test_drafts_of_chains_that_run_away_do_not_survive(chains):
    chains.x[:, 32:] = 3e38  # held out: only the survival is measured on them
    chains.mean[:, 32:] = -3e38
    draft = fit_affine_draft(SCHEDULE, chains)
    assert np.isfinite(draft.survival).all()
    assert (draft.survival[1:, 0] == 0).all()
