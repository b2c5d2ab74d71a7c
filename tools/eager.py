"""The baseline: MAR sampling in PyTorch eager mode, step for step as the released code does it.

Each AR step runs the backbone on all tokens with a mask and a chain of head steps; each head step
evaluates the whole diffusion head, timestep embedding and adaLN layers included, and looks up its
coefficients in float64 tables. Nothing is hoisted, cached or drafted. With the same noise it
makes the runtime's `target` images.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.mar import MAR
from ..models.patches import unpatchify
from ..runtime.noise import Noise
from ..runtime.options import GenerateOptions
from ..runtime.schedule import ARSchedule, DiffusionTables, diffusion_tables


class EagerSampler:
    """Samples a PyTorch model.

    Args:
        model: in evaluation mode.
        threads: CPU threads of PyTorch.

    Attributes:
        parts: seconds of the last run, in the backbone and in the head.
    """

    def __init__(self, model: MAR, threads: int) -> None:
        self.model = model
        self.parts: dict[str, float] = {}
        self._threads = threads

    def generate(
        self, labels: NDArray[np.int64], options: GenerateOptions, noise: Noise
    ) -> NDArray[np.float32]:
        """Return latents `[B, c, h, w]`.

        Args:
            labels: `[B]`.
            options: resolved options; mode and CSD's own ones are ignored.
            noise: orders and normals, drawn beforehand.
        """
        assert options.num_iter is not None
        assert isinstance(options.head_steps, int)
        torch.set_num_threads(self._threads)
        self.parts = {"target backbone": 0.0, "target head": 0.0}
        config, steps = self.model.config, options.head_steps
        batch, length, channels = len(labels), config.seq_len, config.token_dim
        images = np.repeat(np.arange(batch), length)
        positions = np.tile(np.arange(length), batch)
        orders = torch.from_numpy(noise.orders(np.arange(batch), length))
        initial = torch.from_numpy(noise.initial(images, positions, channels))
        initial = initial.reshape(batch, length, channels)
        per_step = torch.from_numpy(noise.per_step(images, positions, steps, channels))
        per_step = per_step.reshape(batch, length, steps, channels)
        with torch.inference_mode():
            tokens = self._decode(torch.from_numpy(labels), options, orders, initial, per_step)
            return unpatchify(tokens, config.patch_size, config.vae_embed_dim).numpy()

    def _decode(
        self,
        labels: Tensor,
        options: GenerateOptions,
        orders: Tensor,
        initial: Tensor,
        per_step: Tensor,
    ) -> Tensor:
        config = self.model.config
        assert options.num_iter is not None
        batch, length = orders.shape
        tables = diffusion_tables(config.beta_schedule, per_step.shape[2])
        schedule = ARSchedule(length, options.num_iter)
        guidance = schedule.guidance(options.cfg, options.cfg_schedule)
        tokens = torch.zeros(batch, length, config.token_dim)
        mask = torch.ones(batch, length)
        for step, masked in enumerate(schedule.masked):
            given_tokens, given_mask, given_labels = tokens, mask, labels
            if options.guided:
                nobody = torch.full_like(labels, config.class_num)
                given_tokens = torch.cat([tokens, tokens])
                given_mask = torch.cat([mask, mask])
                given_labels = torch.cat([labels, nobody])
            began = time.perf_counter()
            z = self.model.condition(given_tokens, given_mask, given_labels)
            predicted = time.perf_counter()

            remaining = masked if step < options.num_iter - 1 else 0
            mask_next = torch.zeros(batch, length).scatter(1, orders[:, :remaining], 1.0)
            wanted = torch.logical_xor(mask.bool(), mask_next.bool())
            mask = mask_next
            chosen = torch.cat([wanted, wanted]) if options.guided else wanted
            sampled = self._chain(
                z[chosen], initial[wanted], per_step[wanted], tables, guidance[step], options
            )
            tokens = tokens.clone()
            tokens[wanted] = sampled
            self.parts["target backbone"] += predicted - began
            self.parts["target head"] += time.perf_counter() - predicted
        return tokens

    def _chain(
        self,
        z: Tensor,
        x: Tensor,
        noise: Tensor,
        tables: DiffusionTables,
        scale: float,
        options: GenerateOptions,
    ) -> Tensor:
        """Ancestral sampling of the head: `x [N, C]`, `noise [N, S, C]` -> `[N, C]`."""
        timesteps = torch.from_numpy(tables.timesteps)
        for i in range(tables.steps - 1, -1, -1):
            at = torch.full((len(z),), i, dtype=torch.int64)
            rows = torch.cat([x, x]) if options.guided else x
            eps, v = self.model.head(rows, timesteps[at], z)
            if options.guided:
                conditional, unconditional = eps.chunk(2)
                eps = unconditional + scale * (conditional - unconditional)
                v = v[: len(x)]
            at = at[: len(x)]
            x0hat = _look_up(tables.recip, at) * x - _look_up(tables.recipm1, at) * eps
            mean = _look_up(tables.coef_x0, at) * x0hat + _look_up(tables.coef_x, at) * x
            share = (v + 1) / 2
            lowest, highest = _look_up(tables.log_posterior, at), _look_up(tables.log_beta, at)
            logvar = share * highest + (1 - share) * lowest
            nonzero = (at != 0).float().unsqueeze(1)
            x = mean + nonzero * torch.exp(0.5 * logvar) * noise[:, i] * options.temperature
        return x


def _look_up(table: NDArray[np.float64], index: Tensor) -> Tensor:
    return torch.from_numpy(table)[index].float().unsqueeze(1)
