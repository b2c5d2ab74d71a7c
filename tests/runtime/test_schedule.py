from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csd.runtime import OptionError
from csd.runtime.schedule import (
    MASK_SCHEDULES,
    ARSchedule,
    annealed_head_steps,
    diffusion_tables,
    masked_counts,
    respaced_timesteps,
    training_betas,
)

from ..helpers import DATA, NUM_ITER
from ..mar_reference import masked_after, respaced


@pytest.mark.parametrize("cfg", ["1.0", "3.0"])
@pytest.mark.parametrize("kind", ["linear", "constant"])
def test_masks_of_the_fixtures_are_reproduced_after_every_step(recorded, cfg, kind):
    expected = recorded[f"ar_masks_{cfg}_{kind}"]
    schedule, orders = ARSchedule(16, NUM_ITER), recorded["orders"]
    # MAR's last mask keeps one token, although that step predicts it.
    for step, masked in enumerate(schedule.masked):
        mask = np.zeros(orders.shape, dtype=bool)
        np.put_along_axis(mask, orders[:, :masked], True, axis=1)
        np.testing.assert_array_equal(mask, expected[step], err_msg=f"after step {step}")


def test_positions_of_every_step_are_those_that_the_recorded_masks_lose(recorded):
    masks, orders = recorded["ar_masks_1.0_linear"], recorded["orders"]
    before = np.ones(orders.shape, dtype=bool)
    for step, (start, stop) in enumerate(ARSchedule(16, NUM_ITER).bounds):
        after = masks[step] if step < NUM_ITER - 1 else np.zeros_like(before)
        for image, order in enumerate(orders):
            lost = np.flatnonzero(before[image] & ~after[image])
            assert sorted(order[start:stop]) == lost.tolist()
        before = after


@settings(derandomize=True)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_every_step_predicts_at_least_one_token_and_together_they_predict_all(sizes):
    length, num_iter = sizes
    schedule = ARSchedule(length, num_iter)
    assert schedule.masked == masked_after(length, num_iter) == masked_counts(length, num_iter)
    assert len(schedule.sizes) == num_iter
    assert min(schedule.sizes) >= 1
    assert sum(schedule.sizes) == length
    stops = [length] + [start for start, _ in schedule.bounds]
    assert [stop for _, stop in schedule.bounds] == stops[:-1]
    assert stops[-1] == 0


@pytest.mark.parametrize("num_iter", [0, -1, 17])
def test_more_steps_than_tokens_or_none_are_refused(num_iter):
    with pytest.raises(OptionError, match=f"num-iter is {num_iter}: give 1 to 16"):
        ARSchedule(16, num_iter)


def test_guidance_grows_with_the_share_of_known_tokens():
    schedule = ARSchedule(64, 5)
    scales = schedule.guidance(3.0, "linear")
    expected = [1 + 2 * (64 - left) / 64 for left in masked_after(64, 5)]
    assert scales == pytest.approx(expected)
    assert schedule.guidance(3.0, "constant") == [3.0] * 5
    assert schedule.guidance(1.0, "linear") == [1.0] * 5
    with pytest.raises(OptionError, match="cfg-schedule is 'cubic'"):
        schedule.guidance(3.0, "cubic")


def test_guidance_is_left_out_where_too_much_or_too_little_is_left():
    # After the steps are left 3/4, 1/2, 1/4 and nothing.
    scales = ARSchedule(64, 4).guidance(3.0, "constant", (0.25, 0.6))
    assert scales == [1.0, 3.0, 3.0, 1.0]
    whole = ARSchedule(64, 4).guidance(3.0, "linear", (0.0, 1.0))
    assert whole == ARSchedule(64, 4).guidance(3.0, "linear")


@settings(derandomize=True)
@given(
    st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.sampled_from(MASK_SCHEDULES),
)
def test_every_mask_schedule_predicts_all_tokens_and_some_in_each_step(sizes, kind):
    length, num_iter = sizes
    schedule = ARSchedule(length, num_iter, kind)
    assert len(schedule.sizes) == num_iter
    assert min(schedule.sizes) >= 1
    assert sum(schedule.sizes) == length


@pytest.mark.parametrize("kind", ["linear", "poly-0.5", "exp", "log"])
@pytest.mark.parametrize("num_iter", [16, 40])
def test_mask_schedules_are_the_released_sampler_on_average(kind, num_iter):
    """It unmasks at random; recorded are means of 600 runs before each step but the first."""
    with np.load(DATA / "emigm" / "reference.npz") as arrays:
        average = arrays[f"average_masked_{kind}_{num_iter}"]
    masked = np.array(ARSchedule(64, num_iter, kind).masked[:-1])
    print(f"{kind}, {num_iter} AR steps: at most {np.abs(masked - average).max():.2f} tokens off")
    # Half a token of rounding, a standard error of 0.16, and those that each later step must have.
    held = np.arange(num_iter - 1, 0, -1)
    assert (np.abs(masked - np.maximum(average, held)) <= 1.0).all()


def test_an_unknown_mask_schedule_is_refused_with_the_known_ones():
    with pytest.raises(OptionError, match="mask-schedule is 'arccos': give one of cosine, linear"):
        ARSchedule(16, 4, "arccos")


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50, 100, 250, 999, 1000])
def test_tables_equal_the_formulas_of_the_design(name, steps):
    tables = diffusion_tables(name, steps)
    timesteps, alpha_bar = respaced(name, steps)
    assert tables.steps == steps
    assert tables.timesteps.tolist() == timesteps
    for i, now in enumerate(alpha_bar):
        before = alpha_bar[i - 1] if i else 1.0
        beta = 1 - now / before
        assert tables.alpha_bar[i] == pytest.approx(now)
        assert tables.beta[i] == pytest.approx(beta, rel=1e-6)
        assert tables.recip[i] == pytest.approx(math.sqrt(1 / now))
        assert tables.recipm1[i] == pytest.approx(math.sqrt(1 / now - 1), rel=1e-6)
        assert tables.coef_x0[i] == pytest.approx(beta * math.sqrt(before) / (1 - now), rel=1e-6)
        assert tables.coef_x[i] == pytest.approx(
            (1 - before) * math.sqrt(1 - beta) / (1 - now), rel=1e-6
        )
        assert tables.log_beta[i] == pytest.approx(math.log(beta), rel=1e-6)
        if i:
            posterior = beta * (1 - before) / (1 - now)
            assert tables.log_posterior[i] == pytest.approx(math.log(posterior), rel=1e-6)
    # beta~_0 is 0 and has the next one's logarithm, or beta's own where there is none.
    clipped = tables.log_posterior[1] if steps > 1 else tables.log_beta[0]
    assert tables.log_posterior[0] == clipped
    assert all(np.isfinite(getattr(tables, field)).all() for field in tables.__dataclass_fields__)


def test_betas_are_capped_and_have_the_published_ends():
    cosine, linear = training_betas("cosine"), training_betas("linear")
    assert cosine.max() == cosine[-1] == 0.999
    assert (linear[0], linear[-1]) == pytest.approx((1e-4, 0.02))
    assert ((cosine > 0) & (linear > 0)).all()


@settings(derandomize=True)
@given(st.integers(2, 1000))
def test_respaced_steps_include_both_ends_and_never_repeat(steps):
    timesteps = respaced_timesteps(steps)
    assert len(timesteps) == steps
    assert (timesteps[0], timesteps[-1]) == (0, 999)
    assert (np.diff(timesteps) >= 1).all()


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_head_steps_out_of_range_are_refused(steps):
    with pytest.raises(OptionError, match=f"head steps is {steps}: give 1 to 1000"):
        diffusion_tables("cosine", steps)


def test_an_unknown_beta_schedule_is_refused_with_the_known_ones():
    with pytest.raises(OptionError, match="'sigmoid': give one of cosine, linear"):
        diffusion_tables("sigmoid", 10)


@pytest.mark.parametrize(
    ("first", "last", "num_iter", "expected"),
    [(50, 5, 4, [50, 35, 20, 5]), (20, 5, 1, [20]), (7, 7, 3, [7] * 3), (5, 9, 3, [5, 7, 9])],
)
def test_head_steps_are_annealed_linearly(first, last, num_iter, expected):
    assert annealed_head_steps(first, last, num_iter) == expected


def test_the_runtime_and_pytorch_agree_on_the_coefficients_in_float32():
    from csd.runtime.head import HeadSchedule

    schedule = HeadSchedule.cosine(steps=20)
    rng = np.random.default_rng(0)
    x, eps, v = rng.standard_normal((3, 20, 4)).astype(np.float32)
    mean, log_std, x0hat = schedule.transition(x, eps, v, np.arange(20))
    _, alpha_bar = respaced("cosine", 20)
    share = torch.tensor(alpha_bar)[:, None].numpy()
    expected = (x - np.sqrt(1 - share) * eps) / np.sqrt(share)
    np.testing.assert_allclose(x0hat, expected, rtol=2e-3)
    for step in range(20):
        row = slice(step, step + 1)
        one = schedule.transition(x[row], eps[row], v[row], step)
        for together, alone in zip((mean, log_std, x0hat), one, strict=True):
            np.testing.assert_array_equal(together[row], alone)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: training_betas("sigmoid"), "beta schedule is 'sigmoid': give one of"),
        (lambda: diffusion_tables("sigmoid"), "beta schedule is 'sigmoid': give one of"),
        (lambda: respaced_timesteps(0), "head steps is 0: give 1 to 1000"),
        (lambda: respaced_timesteps(1001), "head steps is 1001: give 1 to 1000"),
        (lambda: diffusion_tables("linear", 2.5), "head steps is 2.5 (float): give a whole number"),
        (lambda: ARSchedule(0, 1), "seq-len is 0: give at least 1"),
        (lambda: ARSchedule(16, 2.5), "num-iter is 2.5 (float): give a whole number"),
        (lambda: ARSchedule(16, 4).guidance("x", "linear"), "cfg is 'x' (str): give a number"),
        (lambda: annealed_head_steps(0, 5, 4), "head-steps is 0: give 1 to 1000"),
        (lambda: annealed_head_steps(5, 1001, 4), "head-steps is 1001: give 1 to 1000"),
        (lambda: annealed_head_steps(5, 5, 0), "num-iter is 0: give at least 1"),
    ],
)
def test_what_a_schedule_cannot_take_is_named(call, said):
    with pytest.raises(OptionError) as error:
        call()
    assert str(error.value).startswith(said)


def test_the_ends_of_what_schedules_take_are_taken():
    assert diffusion_tables("linear").steps == len(training_betas("linear")) == 1000
    assert annealed_head_steps(1, 1000, 1) == [1]
    assert annealed_head_steps(1000, 1, 2) == [1000, 1]
    assert ARSchedule(16, 16).sizes == [1] * 16
    assert ARSchedule(1, 1).bounds == [(0, 1)]
