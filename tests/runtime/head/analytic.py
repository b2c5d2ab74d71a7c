"""Denoisers whose exact output is known: Gaussian mixtures under the forward process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from csd.runtime.head import HeadSchedule, Trajectories
from csd.runtime.schedule import diffusion_tables


@dataclass(frozen=True)
class Mixture:
    """A mixture of isotropic Gaussians, its eps in closed form and a share v that varies with x."""

    channels: int
    means: tuple[float, ...] = (-1.0, 0.7)
    stds: tuple[float, ...] = (0.3, 0.5)
    weights: tuple[float, ...] = (0.4, 0.6)
    share: float = 0.8

    def evaluate(self, schedule):
        """Return `evaluate(x, step, token)` for chains of `schedule`."""
        alpha_bar = schedule.tables.alpha_bar

        def evaluate(x, step, token):
            a = alpha_bar[step][:, None]
            x = x.astype(np.float64)
            logs, scores = [], []
            for mean, std, weight in zip(self.means, self.stds, self.weights, strict=True):
                var = a * std**2 + 1 - a
                away = x - np.sqrt(a) * mean
                logs.append(np.log(weight) - 0.5 * (away**2 / var + np.log(var)).sum(axis=1))
                scores.append(-away / var)
            logs = np.array(logs)
            posterior = np.exp(logs - logs.max(axis=0))
            posterior /= posterior.sum(axis=0)
            score = sum(p[:, None] * s for p, s in zip(posterior, scores, strict=True))
            eps = -np.sqrt(1 - a) * score
            return eps.astype(np.float32), (self.share * np.tanh(x)).astype(np.float32)

        return evaluate


def guided(conditional, unconditional, scale):
    """Classifier-free guidance of two analytic denoisers."""

    def evaluate(x, step, token):
        eps, v = conditional(x, step, token)
        other, _ = unconditional(x, step, token)
        return other + np.float32(scale) * (eps - other), v

    return evaluate


def record(schedule, evaluate, report):
    """Turn a report of chains into the trajectories that a draft is fitted on."""
    states, steps = report.trajectory, schedule.steps
    count = states.shape[1]
    rows = {"mean": [], "log_std": [], "x0hat": [], "v": []}
    for i in range(steps):
        step, token = np.full(count, i), np.arange(count)
        eps, v = evaluate(states[i + 1], step, token)
        made = schedule.transition(states[i + 1], eps, v, i)
        for name, value in zip(rows, (made.mean, made.log_std, made.x0hat, v), strict=True):
            rows[name].append(value)
    return Trajectories(states[1:], *(np.array(rows[name]) for name in rows))


def linear(steps):
    return HeadSchedule(diffusion_tables("linear", steps))
