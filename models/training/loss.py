"""The hybrid diffusion loss: eps mean squared error plus the variational bound for the variance.

Nichol & Dhariwal, arXiv 2102.09672, equations 15 and 16, at the weight that MAR trains with (1).
The bound does not move the mean. The last step's term is the Gaussian negative log-likelihood:
tokens are continuous, so there are no pixel bins to integrate over.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...runtime.schedule import TRAIN_STEPS, DiffusionTables, diffusion_tables


class DiffusionLoss:
    """Loss of a diffusion head over all 1000 training timesteps."""

    def __init__(self, beta_schedule: str, device: torch.device) -> None:
        tables: DiffusionTables = diffusion_tables(beta_schedule, TRAIN_STEPS)
        names = ("alpha_bar", "recip", "recipm1", "coef_x0", "coef_x", "log_beta", "log_posterior")
        self._table = {
            name: torch.from_numpy(getattr(tables, name)).float().to(device) for name in names
        }

    def _at(self, name: str, t: Tensor) -> Tensor:
        return self._table[name][t].unsqueeze(-1)

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw `x_t` given `x_0`, `[N, C]`."""
        share = self._at("alpha_bar", t)
        return share.sqrt() * x0 + (1 - share).sqrt() * noise

    def __call__(
        self, eps: Tensor, v: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return `(mse, bound)`, each a scalar; the bound is in bits per dimension.

        Args:
            eps: predicted noise `[N, C]`.
            v: predicted variance share `[N, C]`.
            x0: clean tokens `[N, C]`.
            x_t: noised tokens `[N, C]`.
            t: timesteps `[N]` in 0..999.
            noise: the noise in `x_t`, `[N, C]`.
        """
        eps, v = eps.float(), v.float()
        coef_x0, coef_x = self._at("coef_x0", t), self._at("coef_x", t)
        x0hat = self._at("recip", t) * x_t - self._at("recipm1", t) * eps.detach()
        mean = coef_x0 * x0hat + coef_x * x_t
        share = (v + 1) / 2
        posterior = self._at("log_posterior", t)
        logvar = share * self._at("log_beta", t) + (1 - share) * posterior
        true_mean = coef_x0 * x0 + coef_x * x_t
        kl = 0.5 * (
            logvar - posterior - 1
            + torch.exp(posterior - logvar)
            + (true_mean - mean) ** 2 * torch.exp(-logvar)
        )  # fmt: skip
        nll = 0.5 * (math.log(2 * math.pi) + logvar + (x0 - mean) ** 2 * torch.exp(-logvar))
        bound = torch.where((t == 0).unsqueeze(-1), nll, kl).mean() / math.log(2)
        return ((eps - noise) ** 2).mean(), bound
