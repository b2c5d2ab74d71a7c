from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from csd.models import load_mar
from csd.models.families import load_config
from csd.runtime import NumericsError, OptionError
from csd.runtime.head import SolverSampler, SolverSchedule
from csd.runtime.head.solver import solver_tables, step_orders

from ...helpers import DATA, assert_parity

STEPS = (1, 2, 3, 4, 6, 8, 14)


@pytest.fixture(scope="module")
def emigm():
    with np.load(DATA / "emigm" / "reference.npz") as arrays:
        recorded = dict(arrays)
    folder = DATA / "emigm"
    return load_mar(folder / "weights.pth", load_config(folder / "config.json")), recorded


@pytest.mark.parametrize("steps", STEPS)
def test_the_network_is_asked_at_the_recorded_times(emigm, steps):
    times = emigm[1][f"solver_times_{steps}"]
    tables = solver_tables("cosine", steps)
    # The released tables are in float32: near the end, 1 - alpha^2 has four digits there.
    np.testing.assert_allclose(tables.timesteps[::-1], times, atol=0.1, rtol=1e-4)


@pytest.mark.parametrize("cfg", [1.0, 2.5])
@pytest.mark.parametrize("steps", STEPS)
def test_tokens_are_those_of_the_released_solver(emigm, steps, cfg):
    model, recorded = emigm
    sampler = SolverSampler(SolverSchedule.named("cosine", steps))
    zs = [recorded["solver_z"], recorded["solver_z_uncond"]]

    def evaluate(x, step, token):
        x, t = torch.from_numpy(x), torch.from_numpy(sampler.timesteps[step])
        with torch.inference_mode():
            outs = [model.head(x, t, torch.from_numpy(z[token])) for z in zs]
        (eps, v), (free, _) = ((eps.numpy(), v.numpy()) for eps, v in outs)
        return np.float32(free + np.float32(cfg) * (eps - free)), v

    x = recorded["solver_x"]
    noise = x, np.zeros((len(x), steps, x.shape[1]), np.float32)
    tokens, report = sampler.sample(evaluate, n_tokens=6, channels=4, noise=noise)
    assert_parity(tokens, recorded[f"solved_{steps}_{cfg}"], f"{steps} evaluations")
    assert (report.rounds == steps).all()
    assert (report.evaluations, report.row_evaluations) == (steps, 6 * steps)
    np.testing.assert_array_equal(report.trajectory[steps], x)
    np.testing.assert_array_equal(report.trajectory[0], tokens)


def gaussian(schedule, mean, std):
    """The head of tokens that are Gaussian, `N(mean, std^2)`: its prediction is known."""
    alpha, sigma = (a[:, None] for a in (schedule.tables.alpha, schedule.tables.sigma))

    def evaluate(x, step, token):
        a, s = alpha[step], sigma[step]
        clean = mean + std**2 * a * (x - a * mean) / (a**2 * std**2 + s**2)
        return ((x - a * clean) / s).astype(np.float32), np.zeros_like(x)

    return evaluate


def solved_gaussians(schedule, mean=0.8):
    """Largest error over tokens of several standard deviations, between -2 and 2 at first."""
    x = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
    noise = x, np.zeros((9, schedule.steps, 1), np.float32)
    worst = 0.0
    for std in (0.2, 0.35, 0.5, 0.8, 1.3):
        tokens, _ = SolverSampler(schedule).sample(
            gaussian(schedule, mean, std), n_tokens=9, channels=1, noise=noise
        )
        # Along the equation a Gaussian keeps its quantiles.
        (a, s), (b, t) = solver_ends(0), solver_ends(1)
        exact = b * mean + np.hypot(b * std, t) * (x - a * mean) / np.hypot(a * std, s)
        worst = max(worst, float(np.abs(tokens - exact).max()))
    return worst


def solver_ends(which):
    """alpha, sigma where the solver begins and ends."""
    from csd.runtime.head.solver import _Path

    path = _Path("cosine")
    _, alpha, sigma = path.at(np.array([path.ends[which]]))
    return alpha[0], sigma[0]


def test_the_error_falls_with_the_third_power_of_the_steps_length():
    coarse, fine = (solved_gaussians(SolverSchedule.named("cosine", n)) for n in (14, 29))
    print(f"largest error with 14 evaluations {coarse:.1e}, with 29 {fine:.1e}")
    assert fine < 1e-3
    assert coarse / fine > 8


@pytest.mark.parametrize("field", ["from_first", "from_last", "from_state"])
def test_a_wrong_coefficient_is_seen(field):
    tables = solver_tables("cosine", 29)
    wrong = getattr(tables, field).copy()
    wrong[14] *= 1.05
    schedule = SolverSchedule(dataclasses.replace(tables, **{field: wrong}))
    assert solved_gaussians(schedule) > 3e-3


@pytest.mark.parametrize(
    ("evaluations", "orders"),
    [(1, [1]), (2, [2]), (3, [2, 1]), (4, [3, 1]), (5, [3, 2]), (6, [3, 2, 1]), (8, [3, 3, 2])],
)
def test_evaluations_are_spent_on_steps_of_order_three_first(evaluations, orders):
    assert step_orders(evaluations) == orders
    assert sum(orders) == evaluations == SolverSchedule.named("linear", evaluations).steps


def test_the_first_noise_alone_decides():
    schedule = SolverSchedule.named("linear", 8)
    x = np.ones((2, 1), np.float32)
    given = [
        SolverSampler(schedule).sample(
            gaussian(schedule, 0.0, 1.0), n_tokens=2, channels=1,
            noise=(x, np.full((2, 8, 1), value, np.float32)),
        )[0]
        for value in (0, 7)
    ]  # fmt: skip
    np.testing.assert_array_equal(*given)


def test_values_that_are_not_finite_are_found_at_their_head_step():
    def evaluate(x, step, token):
        return np.where(step[:, None] == 3, np.nan, x).astype(np.float32), x

    sampler = SolverSampler(SolverSchedule.named("cosine", 8))
    with pytest.raises(NumericsError, match="not finite at head step 3"):
        sampler.sample(evaluate, n_tokens=2, channels=1, rng=np.random.default_rng(0))


@pytest.mark.parametrize("steps", [0, 1001, 2.5])
def test_numbers_of_evaluations_out_of_range_are_refused(steps):
    with pytest.raises(OptionError, match="head steps is"):
        SolverSchedule.named("cosine", steps)


def test_outputs_that_could_be_spread_over_channels_are_an_error():
    with pytest.raises(ValueError, match=r"^evaluate gave \(2, 1\) for rows of \(2, 3\)$"):
        SolverSampler(SolverSchedule.named("cosine", 4)).sample(
            lambda x, step, token: (x[:, :1], x),
            n_tokens=2, channels=3, rng=np.random.default_rng(0),
        )  # fmt: skip
