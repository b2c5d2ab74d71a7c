"""The parallel sampler gives the sequential sample itself."""

from __future__ import annotations

import numpy as np
import pytest

from csd.plugins import host
from csd.runtime.head import ParallelSampler, SequentialSampler, fit_affine_draft, slopes

from .analytic import Mixture, linear, record

STEPS, COUNT, CHANNELS = 24, 64, 4


@pytest.fixture(scope="module")
def case():
    schedule = linear(STEPS)
    evaluate = Mixture(CHANNELS).evaluate(schedule)
    tokens, report = SequentialSampler(schedule).sample(
        evaluate, n_tokens=COUNT, channels=CHANNELS, rng=np.random.default_rng(0)
    )
    fitted = fit_affine_draft(schedule, record(schedule, evaluate, report))
    return schedule, evaluate, tokens, report, fitted


def starts(report):
    shape = report.trajectory.shape
    rng = np.random.default_rng(4)
    return {
        "none": None,
        "zeros": np.zeros(shape, dtype=np.float32),
        "noise": rng.standard_normal(shape).astype(np.float32),
        "wrong": report.trajectory[:, ::-1] * 3,
        "truth": report.trajectory,
    }


@pytest.mark.parametrize("start", ["none", "zeros", "noise", "wrong", "truth"])
@pytest.mark.parametrize("window", [1, 5, None])
def test_with_tolerance_zero_it_is_the_sequential_sample_from_any_start(case, start, window):
    schedule, evaluate, tokens, report, _ = case
    ours, made = ParallelSampler(schedule, 0.0, window=window).sample(
        evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise,
        start=starts(report)[start],
    )  # fmt: skip
    np.testing.assert_allclose(ours, tokens, atol=1e-5)
    np.testing.assert_allclose(made.trajectory, report.trajectory, atol=1e-5)
    np.testing.assert_allclose(made.std, report.std, rtol=1e-5)
    np.testing.assert_allclose(made.sum_log_std, report.sum_log_std, atol=1e-4)


@pytest.mark.parametrize("jacobian", ["picard", "fitted", "wrong"])
def test_a_wrong_jacobian_only_costs_sweeps(case, jacobian):
    schedule, evaluate, tokens, report, fitted = case
    matrix = {
        "picard": None,
        "fitted": fitted.jacobian,
        "wrong": np.random.default_rng(1).standard_normal((STEPS, CHANNELS, CHANNELS)),
    }[jacobian]
    matrix = None if matrix is None else (matrix * 0.3).astype(np.float32)
    ours, made = ParallelSampler(schedule, 0.0, matrix).sample(
        evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise
    )
    np.testing.assert_allclose(ours, tokens, atol=1e-5)
    assert made.rounds.max() <= STEPS


def test_a_fitted_draft_saves_sweeps_and_the_tolerance_bounds_the_error(case):
    schedule, evaluate, tokens, report, fitted = case
    sweeps = {}
    for name, draft in (("picard", None), ("fitted", fitted)):
        ours, made = ParallelSampler(schedule, 0.01, draft=draft).sample(
            evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise
        )
        sweeps[name] = made.rounds.mean()
        assert np.abs(ours - tokens).mean() < 5e-3
    assert sweeps["fitted"] < sweeps["picard"] < STEPS


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_slopes_that_are_learned_save_sweeps_and_change_nothing_else(channels, monkeypatch):
    schedule = linear(60)
    evaluate = Mixture(channels).evaluate(schedule)
    tokens, report = SequentialSampler(schedule).sample(
        evaluate, n_tokens=COUNT, channels=channels, rng=np.random.default_rng(0)
    )
    how = {"n_tokens": COUNT, "channels": channels, "noise": report.noise}
    # The trajectory of a nearby model, as a draft's is.
    nearby = report.trajectory * 1.05 + 0.02
    sampler, sweeps = ParallelSampler(schedule, 1e-3), {}
    monkeypatch.setenv(host.ENVIRONMENT, "off")  # where learning can be switched off
    for name in ("learned", "fixed"):
        if name == "fixed":
            monkeypatch.setattr(slopes.Slopes, "improve", lambda *_: None)
        ours, made = sampler.sample(evaluate, **how, start=nearby)
        sweeps[name] = made.rounds.mean()
        assert np.abs(ours - tokens).mean() < 1e-3
    assert sweeps["learned"] < 0.95 * sweeps["fixed"]


def test_more_tokens_than_fit_at_once_are_the_same_tokens(case, monkeypatch):
    schedule, evaluate, _, report, fitted = case
    how = {"n_tokens": COUNT, "channels": CHANNELS, "noise": report.noise}
    start = report.trajectory * 1.1
    sampler = ParallelSampler(schedule, 0.1, draft=fitted)
    seen: list[int] = []

    def watched(x, step, token):
        seen.append(len(set(token.tolist())))
        return evaluate(x, step, token)

    for begin in (None, start):
        monkeypatch.setattr(slopes, "MOST_NUMBERS", 1 << 26)
        together, whole = sampler.sample(evaluate, **how, start=begin)
        monkeypatch.setattr(slopes, "MOST_NUMBERS", 10 * STEPS * CHANNELS**2)
        apart, parts = sampler.sample(watched, **how, start=begin)
        np.testing.assert_allclose(apart, together, atol=1e-6)
        np.testing.assert_allclose(parts.trajectory, whole.trajectory, atol=1e-6)
        np.testing.assert_array_equal(parts.rounds, whole.rounds)
        assert parts.row_evaluations == whole.row_evaluations
        assert parts.noise[1].shape == whole.noise[1].shape
    assert max(seen) == 10


@pytest.mark.parametrize("size", [1.0, 10.0, 1000.0])
def test_any_start_ends_at_the_sequential_sample(size):
    schedule = linear(100)
    evaluate = Mixture(16).evaluate(schedule)
    tokens, report = SequentialSampler(schedule).sample(
        evaluate, n_tokens=3, channels=16, rng=np.random.default_rng(0)
    )
    start = np.random.default_rng(1).standard_normal(report.trajectory.shape) * size
    ours, made = ParallelSampler(schedule, 0.0).sample(
        evaluate, n_tokens=3, channels=16, noise=report.noise, start=start.astype(np.float32)
    )
    np.testing.assert_allclose(ours, tokens, atol=1e-5)
    assert made.rounds.max() <= 100


def test_broydens_update_explains_the_last_move_and_leaves_the_rest():
    schedule, rng = linear(4), np.random.default_rng(0)
    learned = slopes.Slopes.of(schedule, None, tokens=2, channels=3)
    first = learned.value.copy()
    step, token = np.array([2]), np.array([1])
    x, mean = rng.standard_normal((2, 1, 3)).astype(np.float32)
    learned.improve(step, token, x, mean)
    np.testing.assert_array_equal(learned.value, first)  # nothing to compare with yet
    moved, change = rng.standard_normal((2, 1, 3)).astype(np.float32)
    learned.improve(step, token, x + moved, mean + change)
    np.testing.assert_allclose(moved @ learned.value[2, 1], change, rtol=1e-4, atol=1e-5)
    across = np.cross(moved[0], [1.0, 0.0, 0.0])
    np.testing.assert_allclose(across @ learned.value[2, 1], across @ first[2, 1], atol=1e-5)
    learned.value[2, 1] = first[2, 1]
    np.testing.assert_array_equal(learned.value, first)


def test_moves_of_the_size_of_rounding_teach_nothing():
    schedule = linear(4)
    learned = slopes.Slopes.of(schedule, None, tokens=1, channels=2)
    first = learned.value.copy()
    step, token = np.array([2]), np.array([0])
    x = np.ones((1, 2), dtype=np.float32)
    learned.improve(step, token, x, x)
    learned.improve(step, token, np.nextafter(x, np.float32(2)), x + 1)
    np.testing.assert_array_equal(learned.value, first)


def test_as_many_tokens_are_iterated_at_once_as_their_slopes_leave_room_for(monkeypatch):
    monkeypatch.setattr(slopes, "MOST_NUMBERS", 1000)
    assert slopes.tokens_at_once(steps=5, channels=4) == 1000 // (5 * 4 * 4)
    assert slopes.tokens_at_once(steps=100, channels=16) == 1  # at least


def test_slopes_start_from_the_jacobian_of_the_prediction():
    schedule = linear(3)
    jacobian = np.random.default_rng(0).standard_normal((3, 2, 2)).astype(np.float32)
    made = slopes.Slopes.of(schedule, jacobian, tokens=4, channels=2)
    tables = schedule.tables
    for i in range(3):
        wanted = tables.coef_x[i] * np.eye(2) + tables.coef_x0[i] * jacobian[i]
        for token in range(4):
            np.testing.assert_allclose(made.value[i, token], wanted, rtol=1e-5, atol=1e-6)
    assert np.isnan(made.x).all()
    assert np.isnan(made.mean).all()
    assert not np.shares_memory(made.x, made.mean)
    assert {array.dtype for array in vars(made).values()} == {np.dtype(np.float32)}
    plain = slopes.Slopes.of(schedule, None, tokens=1, channels=2)
    np.testing.assert_allclose(
        plain.value[:, 0], tables.coef_x[:, None, None] * np.eye(2), rtol=1e-5, atol=1e-7
    )


def test_started_at_the_truth_it_needs_one_sweep(case):
    schedule, evaluate, _, report, _ = case
    _, made = ParallelSampler(schedule, 0.01).sample(
        evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise, start=report.trajectory
    )
    assert (made.rounds == 1).all()
    assert made.row_evaluations == COUNT * STEPS


def test_finished_tokens_cost_nothing(case):
    schedule, evaluate, _, report, _ = case
    mixed = report.trajectory.copy()
    mixed[:, 0] = 5.0
    _, made = ParallelSampler(schedule, 0.01).sample(
        evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise, start=mixed
    )
    assert (made.rounds[1:] == 1).all()
    assert made.rounds[0] > 1
    assert made.row_evaluations < COUNT * STEPS + made.rounds[0] * STEPS


def test_temperature_reaches_the_noise_and_the_last_std(case):
    schedule, evaluate, _, report, _ = case
    how = {"n_tokens": COUNT, "channels": CHANNELS, "noise": report.noise, "temperature": 0.95}
    wanted, theirs = SequentialSampler(schedule).sample(evaluate, **how)
    ours, made = ParallelSampler(schedule, 0.0).sample(evaluate, **how)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    np.testing.assert_allclose(made.std, theirs.std, rtol=1e-5)


def test_bad_arguments_are_refused(case):
    schedule, evaluate, _, report, _ = case
    with pytest.raises(ValueError, match="tolerance"):
        ParallelSampler(schedule, -1.0)
    with pytest.raises(ValueError, match="window"):
        ParallelSampler(schedule, window=0)
    with pytest.raises(ValueError, match="jacobian"):
        ParallelSampler(schedule, jacobian=np.zeros((3, 2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="start"):
        ParallelSampler(schedule).sample(
            evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise,
            start=np.zeros((STEPS, COUNT, CHANNELS), dtype=np.float32),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"tolerance": "x"}, r"^tolerance is 'x' \(str\): give a number$"),
        ({"tolerance": -0.5}, r"^tolerance is -0.5: give 0 or more$"),
        ({"window": 0}, r"^window is 0: give at least 1$"),
        ({"window": 1.5}, r"^window is 1.5 \(float\): give a whole number$"),
        ({"jacobian": np.zeros((STEPS, 2))}, r"^jacobian is \(24, 2\), not \[24, C, C\]$"),
        ({"jacobian": np.zeros((3, 2, 2))}, r"^jacobian is \(3, 2, 2\), not \[24, C, C\]$"),
    ],
)
def test_what_it_cannot_be_made_with_is_named(how, said):
    with pytest.raises(ValueError, match=said):
        ParallelSampler(linear(STEPS), **how)


def test_a_sweep_has_a_window_of_rows_for_each_token_at_most(case):
    schedule, evaluate, _, report, _ = case
    for window, most in ((None, STEPS), (1, 1), (5, 5), (STEPS, STEPS), (1000, STEPS)):
        seen: list[int] = []

        def watched(x, step, token, seen=seen):
            seen.append(int(np.bincount(token).max()))
            return evaluate(x, step, token)

        sampler = ParallelSampler(schedule, window=window)
        assert sampler.largest_window == most
        sampler.sample(watched, n_tokens=COUNT, channels=CHANNELS, noise=report.noise)
        assert max(seen) == most
    assert SequentialSampler(schedule).largest_window == 1


def test_the_jacobian_is_the_draft_s_unless_one_is_given(case):
    schedule, evaluate, _, report, fitted = case
    how = {"n_tokens": COUNT, "channels": CHANNELS, "noise": report.noise}
    start = report.trajectory * 1.1

    def rounds(*args, **kwargs):
        sampler = ParallelSampler(schedule, 0.01, *args, **kwargs)
        return sampler.sample(evaluate, **how, start=start)[1].rounds.tolist()

    none = np.zeros_like(fitted.jacobian)
    assert rounds(draft=fitted) == rounds(fitted.jacobian) != rounds()
    assert rounds(none, draft=fitted) == rounds(none) == rounds()


def test_a_transition_is_settled_within_a_hundredth_of_its_std_unless_told_otherwise(case):
    schedule, evaluate, _, report, _ = case
    how = {"n_tokens": COUNT, "channels": CHANNELS, "noise": report.noise}
    plain, _ = ParallelSampler(schedule).sample(evaluate, **how)
    np.testing.assert_array_equal(ParallelSampler(schedule, 0.01).sample(evaluate, **how)[0], plain)
    assert (ParallelSampler(schedule, 0.02).sample(evaluate, **how)[0] != plain).any()


def test_a_start_is_not_written_to_and_begins_with_the_noise(case):
    schedule, evaluate, _, report, _ = case
    start = report.trajectory * 1.1
    kept = start.copy()
    _, made = ParallelSampler(schedule, 0.01).sample(
        evaluate, n_tokens=COUNT, channels=CHANNELS, noise=report.noise, start=start
    )
    np.testing.assert_array_equal(start, kept)
    np.testing.assert_array_equal(made.trajectory[STEPS], report.noise[0])


def test_a_start_may_be_of_any_type_and_order(case):
    schedule, evaluate, _, report, _ = case
    how = {"n_tokens": COUNT, "channels": CHANNELS, "noise": report.noise}
    start = (report.trajectory * 1.1).astype(np.float32)
    plain, _ = ParallelSampler(schedule, 0.01).sample(evaluate, **how, start=start)
    for same in (start.astype(np.float64), np.asfortranarray(start)):
        made, _ = ParallelSampler(schedule, 0.01).sample(evaluate, **how, start=same)
        np.testing.assert_array_equal(made, plain)


def test_one_token_at_a_time_is_as_many_tokens(case, monkeypatch):
    schedule, evaluate, _, report, _ = case
    monkeypatch.setattr(slopes, "MOST_NUMBERS", 1)
    for count in (0, 1, 3):
        noise = report.noise[0][:count], report.noise[1][:count]
        tokens, made = ParallelSampler(schedule, 0.01).sample(
            evaluate, n_tokens=count, channels=CHANNELS, noise=noise
        )
        assert tokens.shape == (count, CHANNELS)
        assert len(made.rounds) == count
        np.testing.assert_allclose(tokens, report.trajectory[0, :count], atol=0.05)


def test_where_nothing_moves_at_all_a_tolerance_of_zero_is_satisfied(case):
    schedule, evaluate, _, report, _ = case
    how = {"n_tokens": COUNT, "channels": CHANNELS, "noise": report.noise}
    _, exact = SequentialSampler(schedule).sample(evaluate, **how)
    _, made = ParallelSampler(schedule, 0.0).sample(evaluate, **how, start=exact.trajectory)
    assert np.median(made.rounds) == 1


def test_what_is_of_the_size_of_rounding_is_seen_token_by_token():
    learned = slopes.Slopes.of(linear(4), None, tokens=2, channels=2)
    first, step, token = learned.value.copy(), np.array([2, 2]), np.array([0, 1])
    x = np.array([[1e4, 1e4], [1.0, 1.0]], dtype=np.float32)
    learned.improve(step, token, x, x)
    learned.improve(step, token, x + np.float32(0.05), x + 1)
    np.testing.assert_array_equal(learned.value[2, 0], first[2, 0])  # of the size of rounding there
    assert (learned.value[2, 1] != first[2, 1]).any()
    nothing = np.zeros_like(x)
    learned.improve(step, token, nothing, nothing)
    learned.improve(step, token, nothing, nothing)
    assert np.isfinite(learned.value).all()


def test_tokens_keep_their_numbers_in_every_part(case, monkeypatch):
    schedule, evaluate, _, report, _ = case
    noise = report.noise[0][:7], report.noise[1][:7]

    def conditioned(x, step, token):
        assert token.min() >= 0
        return evaluate(x + 0.1 * token[:, None].astype(np.float32), step, token)

    def tokens():
        sampler = ParallelSampler(schedule, 1e-3)
        return sampler.sample(conditioned, n_tokens=7, channels=CHANNELS, noise=noise)[0]

    together = tokens()
    monkeypatch.setattr(slopes, "MOST_NUMBERS", 3 * STEPS * CHANNELS**2)
    np.testing.assert_allclose(tokens(), together, atol=1e-4)
