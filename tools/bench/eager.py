"""The baseline: MAR sampling in PyTorch, step for step as the released code does it.

Each AR step runs the backbone on all tokens with a mask and a chain of head steps; each head step
evaluates the whole diffusion head, timestep embedding and adaLN layers included, and looks up its
coefficients in float64 tables. Nothing is hoisted, cached or drafted. With the same noise it
makes the runtime's `target` images.

| baseline | arithmetic |
| --- | --- |
| `eager` | float32, TF32 off |
| `eager-bf16` | autocast to bfloat16 |
| `compile` | float32, TF32 off, backbone and head through `torch.compile` |
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...models.mar import MAR
from ...models.patches import unpatchify
from ...runtime.errors import NumericsError
from ...runtime.noise import Noise
from ...runtime.options import GenerateOptions
from ...runtime.schedule import ARSchedule, DiffusionTables, diffusion_tables


class EagerSampler:
    """Samples a PyTorch model.

    Args:
        model: in evaluation mode; moved to the device.
        threads: CPU threads of PyTorch.
        baseline: of the table at the head of this file.
        device: `cpu` or `cuda`.

    Attributes:
        parts: seconds of the last run, in the backbone and in the head; on a CUDA device between
            events of its stream.
        device_seconds: of the whole last run on a CUDA device, noise and copies included, between
            an event before it and one after it, as the runtime's `Stats.device_seconds`.
        device_memory_peak: bytes that tensors took on a CUDA device at most in the last run.
    """

    def __init__(
        self, model: MAR, threads: int, baseline: str = "eager", device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.parts: dict[str, float] = {}
        self.device_seconds: float | None = None
        self.device_memory_peak: int | None = None
        self._threads = threads
        self._half = baseline == "eager-bf16"
        self._condition, self._head = self.model.condition, self.model.head
        if baseline == "compile":
            self._condition = torch.compile(self.model.condition, dynamic=True)
            self._head = torch.compile(self.model.head, dynamic=True)

    def generate(
        self, labels: NDArray[np.int64], options: GenerateOptions, noise: Noise
    ) -> NDArray[np.float32]:
        """Return latents `[B, c, h, w]`.

        Args:
            labels: `[B]`.
            options: resolved options; mode and CSD's own ones are ignored.
            noise: orders and normals, drawn beforehand.

        Raises:
            NumericsError: latents are not finite.
        """
        assert options.num_iter is not None
        assert isinstance(options.head_steps, int)
        torch.set_num_threads(self._threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        on_device = self.device.type == "cuda"
        if on_device:
            torch.cuda.reset_peak_memory_stats(self.device)
        clock = _Clock(self.device)
        clock.mark("run")
        config, steps = self.model.config, options.head_steps
        batch, length, channels = len(labels), config.seq_len, config.token_dim
        images = np.repeat(np.arange(batch), length)
        positions = np.tile(np.arange(length), batch)
        initial = noise.initial(images, positions, channels).reshape(batch, length, channels)
        per_step = noise.per_step(images, positions, steps, channels)
        drawn = (
            torch.from_numpy(array).to(self.device)
            for array in (
                labels, noise.orders(np.arange(batch), length), initial,
                per_step.reshape(batch, length, steps, channels),
            )
        )  # fmt: skip
        half = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._half)
        with torch.inference_mode(), half:
            tokens = self._decode(options, *drawn)
            latents = unpatchify(tokens, config.patch_size, config.vae_embed_dim).cpu().numpy()
        if not np.isfinite(latents).all():
            raise NumericsError(
                "PyTorch's target returned values that are not finite: check the weights, or lower "
                "temperature or cfg"
            )
        if on_device:
            self.device_seconds = clock.stop()["run"]
            self.device_memory_peak = torch.cuda.max_memory_allocated(self.device)
        return latents

    def _decode(
        self,
        options: GenerateOptions,
        labels: Tensor,
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
        tokens = torch.zeros(batch, length, config.token_dim, device=self.device)
        mask = torch.ones(batch, length, device=self.device)
        clock = _Clock(self.device)
        for step, masked in enumerate(schedule.masked):
            given_tokens, given_mask, given_labels = tokens, mask, labels
            if options.guided:
                nobody = torch.full_like(labels, config.class_num)
                given_tokens = torch.cat([tokens, tokens])
                given_mask = torch.cat([mask, mask])
                given_labels = torch.cat([labels, nobody])
            clock.mark("target backbone")
            z = self._condition(given_tokens, given_mask, given_labels).float()
            clock.mark("target head")

            remaining = masked if step < options.num_iter - 1 else 0
            mask_next = torch.zeros_like(mask).scatter(1, orders[:, :remaining], 1.0)
            wanted = torch.logical_xor(mask.bool(), mask_next.bool())
            mask = mask_next
            chosen = torch.cat([wanted, wanted]) if options.guided else wanted
            sampled = self._chain(
                z[chosen], initial[wanted], per_step[wanted], tables, guidance[step], options
            )
            tokens = tokens.clone()
            tokens[wanted] = sampled
        self.parts = clock.stop()
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
        timesteps = torch.from_numpy(tables.timesteps).to(self.device)
        for i in range(tables.steps - 1, -1, -1):
            at = torch.full((len(z),), i, dtype=torch.int64, device=self.device)
            rows = torch.cat([x, x]) if options.guided else x
            eps, v = (out.float() for out in self._head(rows, timesteps[at], z))
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
    return torch.from_numpy(table).to(index.device)[index].float().unsqueeze(1)


class _Clock:
    """Seconds between marks, by the name of the mark that they follow; on CUDA by events."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """What follows belongs to `name`."""
        now: Any = time.perf_counter()
        if self._device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._marks.append((name, now))

    def stop(self) -> dict[str, float]:
        """Wait for the device and return the sums."""
        self.mark("")
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        parts: dict[str, float] = {}
        for (name, began), (_, ended) in itertools.pairwise(self._marks):
            took = began.elapsed_time(ended) / 1e3 if self._device.type == "cuda" else ended - began
            parts[name] = parts.get(name, 0.0) + took
        return parts
