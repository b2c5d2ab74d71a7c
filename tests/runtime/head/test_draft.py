"""What drafts of head transitions predict, how they are fitted, and which windows follow."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from csd.runtime.head import AffineDraft, HeadCalibration, Trajectories, fit_affine_draft
from csd.runtime.head.draft import (
    FROZEN_ACCEPTANCE,
    HORIZON,
    ROW_COST,
    Rollout,
    log_acceptance,
)

from .analytic import linear

STEPS, CHANNELS = 5, 2
SCHEDULE = linear(STEPS)


@pytest.fixture(autouse=True)
def host_code():
    """Nothing here depends on the host side of the samplers."""


def some_draft(seed=0, size=0.2):
    rng = np.random.default_rng(seed)
    shapes = {
        "weight": (STEPS, 4 * CHANNELS, CHANNELS), "bias": (STEPS, CHANNELS),
        "share": (STEPS, CHANNELS), "start": (CHANNELS + 1, CHANNELS),
    }  # fmt: skip
    arrays = {
        name: (size * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    survival = np.cumprod(rng.uniform(0.5, 1, (STEPS, HORIZON)), axis=1).astype(np.float32)
    return AffineDraft(**arrays, survival=survival)


def chains_of(draft, count, seed, *, shift=0.0, spread=0.0):
    """Chains of a model that is just what a draft says, but for the means of its transitions.

    They are `shift` standard deviations away in the first channel. `spread` is the size of each
    token's own part of the variance share, which no draft knows before the first evaluation.
    """
    rng, rows = np.random.default_rng(seed), []
    x = rng.standard_normal((count, CHANNELS), dtype=np.float32)
    x0hat, v = draft.first(x)
    v = v + spread * rng.standard_normal(v.shape, dtype=np.float32)
    for i in range(STEPS - 1, -1, -1):
        made = SCHEDULE.from_x0hat(x, x0hat, v, i)
        std = np.exp(made.log_std)
        mean = made.mean + std * np.array([shift, 0], dtype=np.float32)
        rows.append((x, mean, made.log_std, x0hat, v))
        following = mean + std * rng.standard_normal(mean.shape, dtype=np.float32)
        if i:
            step = np.full(count, i)
            x0hat, v = draft.move(step, following - mean, x, x0hat, v)
            x = following
    return Trajectories(*(np.array(part[::-1]) for part in zip(*rows, strict=True)))


def joined(*parts):
    names = [field.name for field in dataclasses.fields(Trajectories)]
    return Trajectories(
        *(np.concatenate([getattr(part, name) for part in parts], axis=1) for name in names)
    )


def test_a_move_is_the_affine_map_of_its_head_step_and_the_share_moves_along_its_mean():
    draft, rng = some_draft(), np.random.default_rng(1)
    step = np.array([4, 0, 2])
    innovation, x, x0hat, v = rng.standard_normal((4, 3, CHANNELS)).astype(np.float32)
    moved, share = draft.move(step, innovation, x, x0hat, v)
    for row, i in enumerate(step):
        known = np.concatenate([part[row] for part in (innovation, x, x0hat, v)])
        wanted = x0hat[row] + known @ draft.weight[i] + draft.bias[i]
        np.testing.assert_allclose(moved[row], wanted, rtol=1e-5, atol=1e-6)
        before = draft.share[max(i - 1, 0)]  # nothing follows the last head step
        np.testing.assert_allclose(share[row], v[row] + before - draft.share[i], atol=1e-6)


def test_the_first_guess_is_an_affine_map_of_the_noise_and_the_first_mean_share():
    draft, x = some_draft(), np.random.default_rng(1).standard_normal((3, CHANNELS), np.float32)
    x0hat, v = draft.first(x)
    wanted = np.concatenate([x, np.ones((3, 1))], axis=1) @ draft.start
    np.testing.assert_allclose(x0hat, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(v, np.tile(draft.share[STEPS - 1], (3, 1)))


def test_the_jacobian_says_how_a_prediction_follows_the_state_that_it_belongs_to():
    draft, zeros = some_draft(), np.zeros((1, CHANNELS), dtype=np.float32)
    for i in range(STEPS - 1):
        for channel in range(CHANNELS):
            further = np.eye(CHANNELS, dtype=np.float32)[channel : channel + 1]
            step = np.array([i + 1])
            with_it, _ = draft.move(step, further, zeros, zeros, zeros)
            without, _ = draft.move(step, zeros, zeros, zeros, zeros)
            np.testing.assert_allclose(
                (with_it - without)[0], draft.jacobian[i, channel], rtol=1e-5, atol=1e-6
            )
    assert (draft.jacobian[STEPS - 1] == 0).all()
    assert draft.jacobian.dtype == np.float32


def test_a_frozen_draft_keeps_the_prediction_and_takes_a_chance_for_each_transition():
    frozen = AffineDraft.frozen(STEPS, CHANNELS)
    rng = np.random.default_rng(0)
    innovation, x, x0hat, v = rng.standard_normal((4, 3, CHANNELS)).astype(np.float32)
    moved, share = frozen.move(np.array([4, 1, 0]), innovation, x, x0hat, v)
    np.testing.assert_array_equal(moved, x0hat)
    np.testing.assert_array_equal(share, v)
    assert (frozen.first(x)[0] == 0).all()
    assert (frozen.steps, frozen.channels) == (STEPS, CHANNELS)
    chances = [FROZEN_ACCEPTANCE ** (j + 1) for j in range(HORIZON)]
    np.testing.assert_allclose(frozen.survival, np.tile(chances, (STEPS, 1)), rtol=1e-5)
    np.testing.assert_allclose(frozen.acceptance, FROZEN_ACCEPTANCE)
    assert {array.dtype for array in vars(frozen).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["weight", "bias", "share", "start", "survival"])
def test_arrays_that_do_not_fit_each_other_are_refused(name):
    draft = some_draft()
    longer = np.concatenate([getattr(draft, name)] * 2)
    with pytest.raises(ValueError, match=r"^draft (weight|share) is .*, not|^draft " + name):
        dataclasses.replace(draft, **{name: longer})


@pytest.mark.parametrize("row_cost", [None, 1e-3, 0.3, 5.0])
def test_a_window_has_the_most_expected_progress_for_what_it_costs(row_cost):
    draft = some_draft()
    made = draft.windows() if row_cost is None else draft.windows(row_cost)
    cost = ROW_COST if row_cost is None else row_cost
    for i in range(STEPS):
        worth = {
            length: draft.survival[i, :length].sum() / (1 + cost * length)
            for length in range(1, HORIZON + 1)
        }
        # A round that starts at index i has i + 1 transitions left.
        assert made[i] == min(max(worth, key=worth.__getitem__), i + 1)


def test_what_is_not_known_of_a_head_is_no_draft_and_the_usual_cost_of_rows():
    assert (HeadCalibration().draft, HeadCalibration().row_cost) == (None, ROW_COST)


def test_drafting_a_window_is_moving_step_by_step():
    draft, rng = some_draft(), np.random.default_rng(2)
    index = np.array([[4, 3, 2, 1], [2, 1, 0, 0]])  # beyond a chain's end nothing counts
    x, x0hat, v = rng.standard_normal((3, 2, CHANNELS)).astype(np.float32)
    normals = rng.standard_normal((2, 4, CHANNELS)).astype(np.float32)
    states, mean, log_std = Rollout(SCHEDULE, draft)(index, x, x0hat, v, normals, 0.9)
    assert states.shape == (2, 5, CHANNELS)
    for row, length in ((0, 4), (1, 2)):
        at, guess, share = x[row : row + 1], x0hat[row : row + 1], v[row : row + 1]
        np.testing.assert_array_equal(states[row, :1], at)
        for j in range(length):
            i = index[row, j]
            made = SCHEDULE.from_x0hat(at, guess, share, i)
            np.testing.assert_allclose(mean[row, j], made.mean[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(log_std[row, j], made.log_std[0], rtol=1e-4, atol=1e-5)
            innovation = np.float32(0.9) * np.exp(made.log_std) * normals[row, j]
            np.testing.assert_allclose(
                states[row, j + 1], (made.mean + innovation)[0], rtol=1e-4, atol=1e-5
            )
            guess, share = draft.move(np.array([i]), innovation, at, guess, share)
            at = made.mean + innovation


def test_a_fit_finds_the_maps_that_chains_follow():
    draft = some_draft()
    recorded = chains_of(draft, 600, seed=3, spread=0.3)
    fitted = fit_affine_draft(SCHEDULE, recorded, ridge=1e-10)
    np.testing.assert_allclose(fitted.start, draft.start, atol=1e-4)
    # The first prediction is a map of the first state, so that the weights of both are not told
    # apart: what counts is where they lead.
    others = chains_of(draft, 50, seed=4, spread=0.3)
    for i in range(1, STEPS):
        innovation = others.x[i - 1] - others.mean[i]
        known = np.full(50, i), innovation, others.x[i], others.x0hat[i], others.v[i]
        np.testing.assert_allclose(fitted.move(*known)[0], others.x0hat[i - 1], atol=1e-3)
    np.testing.assert_allclose(fitted.share, recorded.v[:, :480].mean(axis=1), atol=1e-5)
    assert (fitted.weight[0] == 0).all()
    assert (fitted.bias[0] == 0).all()
    assert {array.dtype for array in vars(fitted).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("share", [None, 0.5])
def test_tokens_that_are_held_out_are_the_last_ones_and_teach_nothing(share):
    draft, other = some_draft(), some_draft(seed=9)
    kept = 400 if share is None else 250
    recorded = joined(chains_of(draft, kept, 3), chains_of(other, 500 - kept, 4))
    how = {} if share is None else {"held_out": share}
    fitted = fit_affine_draft(SCHEDULE, recorded, ridge=1e-10, **how)
    np.testing.assert_allclose(fitted.start, draft.start, atol=1e-4)
    # One more token of the other kind spoils it, and one fewer of its own does not.
    spoiled = joined(chains_of(draft, kept - 1, 3), chains_of(other, 501 - kept, 4))
    assert np.abs(fit_affine_draft(SCHEDULE, spoiled, ridge=1e-10, **how).start
                  - draft.start).max() > 1e-3  # fmt: skip
    assert fitted.acceptance[1] < 0.5  # of the other kind


def test_one_token_is_fitted_and_nothing_is_held_out():
    fitted = fit_affine_draft(SCHEDULE, chains_of(some_draft(), 1, 3), held_out=1.0)
    assert all(np.isfinite(array).all() for array in vars(fitted).values())
    assert (fitted.survival == 0).all()
    # Of two, the last one may be.
    assert fit_affine_draft(SCHEDULE, chains_of(some_draft(), 2, 3), held_out=1.0).survival.any()


@pytest.mark.parametrize("ridge", [None, 0.1])
def test_the_penalty_is_a_share_of_the_tokens_on_standardised_features(ridge):
    rng = np.random.default_rng(5)
    recorded = chains_of(some_draft(), 100, 3)
    noisy = recorded.x0hat + rng.standard_normal(recorded.x0hat.shape, dtype=np.float32)
    recorded = dataclasses.replace(recorded, x0hat=noisy)
    how = {} if ridge is None else {"ridge": ridge}
    fitted = fit_affine_draft(SCHEDULE, recorded, held_out=0.0, **how)
    # The same as least squares with a row for each feature that pulls its weight to zero.
    x, wanted = recorded.x[-1].astype(np.float64), recorded.x0hat[-1].astype(np.float64)
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    pull = np.sqrt((1e-3 if ridge is None else ridge) * len(x)) * np.eye(CHANNELS)
    rows = np.concatenate([standard, pull])
    goals = np.concatenate([wanted - wanted.mean(axis=0), np.zeros((CHANNELS, CHANNELS))])
    weight = np.linalg.lstsq(rows, goals, rcond=None)[0] / x.std(axis=0)[:, None]
    np.testing.assert_allclose(fitted.start[:-1], weight, rtol=1e-4, atol=1e-6)
    offset = wanted.mean(axis=0) - x.mean(axis=0) @ weight
    np.testing.assert_allclose(fitted.start[-1], offset, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_survival_is_the_probability_that_all_drafts_so_far_are_accepted(shift):
    draft, count = some_draft(), 4000
    recorded = joined(chains_of(draft, count, 3), chains_of(draft, count, 4, shift=shift))
    fitted = fit_affine_draft(SCHEDULE, recorded, ridge=1e-10, held_out=0.5)
    # One minus the total variation distance of N(0, 1) and N(shift, 1).
    passes = 2 * stats.norm.cdf(-shift / 2)
    for i in range(STEPS):
        for j in range(HORIZON):
            # The transition at index 0 is deterministic, and nothing comes after it.
            wanted = passes ** min(j + 1, i) if j <= i else 0
            assert fitted.survival[i, j] == pytest.approx(wanted, abs=0.02)
    np.testing.assert_array_equal(fitted.acceptance, fitted.survival[:, 0])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_log_acceptance_is_the_ratio_of_the_densities_at_what_was_drawn(temperature):
    rng = np.random.default_rng(6)
    normals, mean_q, log_std_q, mean_p, log_std_p = rng.standard_normal((5, 3, 4, CHANNELS))
    arrays = [array.astype(np.float32) for array in (mean_q, log_std_q, mean_p, log_std_p)]
    how = () if temperature == 1 else (temperature,)
    ratio, standard = log_acceptance(normals, *arrays, *how)
    drawn = mean_q + temperature * np.exp(log_std_q) * normals
    std_p, std_q = temperature * np.exp(log_std_p), temperature * np.exp(log_std_q)
    wanted = stats.norm.logpdf(drawn, mean_p, std_p) - stats.norm.logpdf(drawn, mean_q, std_q)
    np.testing.assert_allclose(ratio, wanted.sum(axis=-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(standard, (drawn - mean_p) / std_p, rtol=1e-4, atol=1e-5)


def test_equal_densities_have_a_log_acceptance_of_zero_however_small_they_are():
    rng = np.random.default_rng(7)
    mean = rng.standard_normal((50, CHANNELS)).astype(np.float32)
    log_std = np.full_like(mean, -40)
    ratio, standard = log_acceptance(normals := rng.standard_normal(mean.shape), mean, log_std,
                                     mean, log_std)  # fmt: skip
    assert (ratio == 0).all()
    np.testing.assert_array_equal(standard, normals)


def test_drafts_of_bundles_that_exist_are_taken():
    """They hold survival for 64 transitions, and rows that cost a sixteenth of a call."""
    held = dataclasses.replace(some_draft(), survival=np.zeros((STEPS, 64), dtype=np.float32))
    assert held.acceptance.shape == (STEPS,)
    assert ROW_COST == 1 / 16
    assert FROZEN_ACCEPTANCE == 0.9  # windows, and with them the images of a seed, follow from both
