"""Images of a model in training, in batches: to look at, and to measure how far it is.

The runtime decodes what ships; this is the plain sampler of its target, with noise of PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...runtime.schedule import ARSchedule, DiffusionTables, diffusion_tables
from ..kl_decoder import KLDecoder
from ..mar import MAR, Backbone, gather_rows
from ..patches import unpatchify


def sample_latents(
    model: MAR, labels: Tensor, *, cfg: float, num_iter: int, head_steps: int, seed: int
) -> Tensor:
    """Return latents `[B, c, h, w]` of `labels [B]`, times the latent scale.

    Args:
        model: in evaluation mode.
        labels: classes.
        cfg: guidance scale, growing linearly with the share of known tokens.
        num_iter: AR steps.
        head_steps: of the head's chain.
        seed: of orders and noise.
    """
    config, rng = model.config, torch.Generator().manual_seed(seed)
    batch, length, channels = len(labels), config.seq_len, config.token_dim
    tables = diffusion_tables(config.beta_schedule, head_steps)
    schedule = ARSchedule(length, num_iter)
    order = torch.rand(batch, length, generator=rng).argsort(dim=1)
    tokens = torch.zeros(batch, length, channels)
    nobody = torch.full_like(labels, config.class_num)
    with torch.inference_mode():
        for (start, stop), scale in zip(
            schedule.bounds, schedule.guidance(cfg, "linear"), strict=True
        ):
            visible, query = order[:, stop:], order[:, start:stop]
            known = gather_rows(tokens, visible)
            z = Backbone.forward(model, known, visible, query, labels).flatten(0, 1)
            if cfg != 1:
                free = Backbone.forward(model, known, visible, query, nobody).flatten(0, 1)
                z = torch.cat([z, free])
            x = torch.randn(batch * (stop - start), channels, generator=rng)
            x = _chain(model, x, z, scale if cfg != 1 else None, tables, rng)
            rows = query.unsqueeze(-1).expand(-1, -1, channels)
            tokens = tokens.scatter(1, rows, x.reshape(batch, stop - start, channels))
    return unpatchify(tokens, config.patch_size, config.vae_embed_dim)


def _chain(
    model: MAR, x: Tensor, z: Tensor, scale: float | None, tables: DiffusionTables,
    rng: torch.Generator,
) -> Tensor:  # fmt: skip
    """Denoise `x [N, C]` given `z [N, D]`, or `[2 N, D]` with unconditional rows after them."""
    for index in reversed(range(tables.steps)):
        t = torch.full((len(z),), int(tables.timesteps[index]))
        eps, v = model.head(x if scale is None else torch.cat([x, x]), t, z)
        if scale is not None:
            conditional, free = eps.chunk(2)
            eps, v = free + scale * (conditional - free), v.chunk(2)[0]
        x0hat = tables.recip[index] * x - tables.recipm1[index] * eps
        x = tables.coef_x0[index] * x0hat + tables.coef_x[index] * x
        if index > 0:
            share = (v + 1) / 2
            logvar = share * tables.log_beta[index] + (1 - share) * tables.log_posterior[index]
            x = x + torch.exp(0.5 * logvar) * torch.randn(x.shape, generator=rng)
    return x


def decode_shown(decoder: KLDecoder, latents: Tensor, latent_scale: float) -> Tensor:
    """Grey images `[B, 1, H, W]` of `latents [B, c, h, w]`, rounded to bytes, in [-1, 1]."""
    with torch.inference_mode():
        parts = [decoder(part / latent_scale)[:, :1] for part in latents.split(250)]
    return as_bytes(torch.cat(parts))


def as_bytes(images: Tensor) -> Tensor:
    """Round images in [-1, 1] to the 256 values that a viewer shows."""
    return torch.round((images.clamp(-1, 1) + 1) * 127.5) / 127.5 - 1
