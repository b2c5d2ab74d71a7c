"""The baseline: MAR sampling in PyTorch, step for step as the released code does it.

Each AR step runs the backbone on all tokens with a mask and a chain of head steps, or the head's
solver where the options ask for it; each head step evaluates the whole diffusion head, timestep
embedding and adaLN layers included, and looks up its coefficients in float64 tables. Nothing is
hoisted, cached or drafted. With the same noise it makes the runtime's `target` images.

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
from ...runtime.decoding.plan import Plan
from ...runtime.errors import NumericsError
from ...runtime.head import SolverSchedule
from ...runtime.noise import Noise
from ...runtime.options import GenerateOptions
from ...runtime.schedule import DiffusionTables, diffusion_tables


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
            options: mode and CSD's own ones are ignored.
            noise: orders and normals, drawn beforehand.

        Raises:
            NumericsError: latents are not finite.
        """
        config = self.model.config
        options = options.resolved(config, config.num_sampling_steps)
        assert isinstance(options.head_steps, int)
        torch.set_num_threads(self._threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        on_device = self.device.type == "cuda"
        if on_device:
            torch.cuda.reset_peak_memory_stats(self.device)
        clock = _Clock(self.device)
        clock.mark("run")
        steps = options.head_steps
        batch, length, channels = len(labels), config.seq_len, config.token_dim
        images = np.repeat(np.arange(batch), length)
        positions = np.tile(np.arange(length), batch)
        initial = noise.initial(images, positions, channels).reshape(batch, length, channels)
        drawn_steps = 0 if options.solved else steps
        per_step = noise.per_step(images, positions, drawn_steps, channels)
        drawn = (
            torch.from_numpy(array).to(self.device)
            for array in (
                labels, noise.orders(np.arange(batch), length), initial,
                per_step.reshape(batch, length, drawn_steps, channels),
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
        assert isinstance(options.head_steps, int)
        batch, length = orders.shape
        tables = diffusion_tables(config.beta_schedule, options.head_steps)
        solver = SolverSchedule.named(config.beta_schedule, options.head_steps)
        plan = Plan.of(options, length)
        schedule = plan.schedule
        tokens = torch.zeros(batch, length, config.token_dim, device=self.device)
        mask = torch.ones(batch, length, device=self.device)
        clock = _Clock(self.device)
        for step, masked in enumerate(schedule.masked):
            given_tokens, given_mask, given_labels = tokens, mask, labels
            guided, scale = plan.guided(range(step, step + 1)), float(plan.guidance[step])
            if guided:
                nobody = torch.full_like(labels, config.class_num)
                given_tokens = torch.cat([tokens, tokens])
                given_mask = torch.cat([mask, mask])
                given_labels = torch.cat([labels, nobody])
            clock.mark("target backbone")
            z = self._condition(given_tokens, given_mask, given_labels).float()
            clock.mark("target head")

            remaining = masked if step < plan.num_iter - 1 else 0
            mask_next = torch.zeros_like(mask).scatter(1, orders[:, :remaining], 1.0)
            wanted = torch.logical_xor(mask.bool(), mask_next.bool())
            mask = mask_next
            chosen = torch.cat([wanted, wanted]) if guided else wanted
            given = z[chosen], initial[wanted], scale if guided else None
            if options.solved:
                sampled = self._solve(*given, solver)
            else:
                sampled = self._chain(*given, per_step[wanted], tables, options.temperature)
            tokens = tokens.clone()
            tokens[wanted] = sampled
        self.parts = clock.stop()
        return tokens

    def _chain(
        self,
        z: Tensor,
        x: Tensor,
        scale: float | None,
        noise: Tensor,
        tables: DiffusionTables,
        temperature: float,
    ) -> Tensor:
        """Ancestral sampling of the head: `x [N, C]`, `noise [N, S, C]` -> `[N, C]`."""
        for i in range(tables.steps - 1, -1, -1):
            eps, v = self._evaluate(x, int(tables.timesteps[i]), z, scale)
            at = torch.full((len(x),), i, dtype=torch.int64, device=self.device)
            x0hat = _look_up(tables.recip, at) * x - _look_up(tables.recipm1, at) * eps
            mean = _look_up(tables.coef_x0, at) * x0hat + _look_up(tables.coef_x, at) * x
            share = (v + 1) / 2
            lowest, highest = _look_up(tables.log_posterior, at), _look_up(tables.log_beta, at)
            logvar = share * highest + (1 - share) * lowest
            nonzero = (at != 0).float().unsqueeze(1)
            x = mean + nonzero * torch.exp(0.5 * logvar) * noise[:, i] * temperature
        return x

    def _solve(self, z: Tensor, x: Tensor, scale: float | None, schedule: SolverSchedule) -> Tensor:
        """The solver of the head: `x [N, C]` -> `[N, C]`."""
        tables = schedule.tables
        begin = clean = x
        for i in range(schedule.steps - 1, -1, -1):
            eps, _ = self._evaluate(x, float(tables.timesteps[i]), z, scale)
            last = (x - float(tables.sigma[i]) * eps) / float(tables.alpha[i])
            if tables.first[i]:
                begin, clean = x, last
            x = float(tables.from_state[i]) * begin + float(tables.from_first[i]) * clean
            x = x + float(tables.from_last[i]) * last
        return x

    def _evaluate(
        self, x: Tensor, timestep: float, z: Tensor, scale: float | None
    ) -> tuple[Tensor, Tensor]:
        """The head at one timestep, guided with a scale: `x [N, C]`, `z [N, D]` or `[2 N, D]`."""
        rows = x if scale is None else torch.cat([x, x])
        at = torch.full((len(z),), timestep, device=self.device)
        eps, v = (out.float() for out in self._head(rows, at, z))
        if scale is not None:
            conditional, unconditional = eps.chunk(2)
            eps = unconditional + scale * (conditional - unconditional)
        return eps, v[: len(x)]


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
