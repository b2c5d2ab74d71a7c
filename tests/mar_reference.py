"""MAR and its sampling written out plainly, in float64, from a state dict with released names.

It shares no code with the package: boolean masks as in the released backbone, attention as matrix
products, and the formulas of the diffusion tables one step at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csd.runtime import MARConfig


class Chain(NamedTuple):
    tokens: Tensor
    mean: Tensor
    std: Tensor
    sum_log_std: Tensor


class Reference:
    def __init__(self, config: MARConfig, state: Mapping[str, Tensor]) -> None:
        self.config = config
        self.state = {name: tensor.double() for name, tensor in state.items()}

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        weight, bias = self.state.get(f"{name}.weight"), self.state.get(f"{name}.bias")
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def block(self, x: Tensor, name: str, heads: int) -> Tensor:
        eps = self.config.norm_eps
        batch, length, width = x.shape
        qkv = self.linear(self.norm(x, f"{name}.norm1", eps), f"{name}.attn.qkv")
        q, k, v = qkv.reshape(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // heads)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.linear(mixed, f"{name}.attn.proj")
        hidden = self.linear(self.norm(x, f"{name}.norm2", eps), f"{name}.mlp.fc1")
        activated = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        return x + self.linear(activated, f"{name}.mlp.fc2")

    def condition(self, tokens: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """`[B, L, C]`, `[B, L]` (1 = unknown, as many in each row), `[B]` -> `[B, L, D]`."""
        config, state = self.config, self.state
        batch, buffer = len(tokens), config.buffer_size
        classes = torch.cat([state["class_emb.weight"], state["fake_latent"]])[labels]
        slots = classes[:, None].repeat(1, buffer, 1)
        x = torch.cat([slots, self.linear(tokens.double(), "z_proj")], dim=1)
        x = self.norm(x + state["encoder_pos_embed_learned"], "z_proj_ln", 1e-6)
        known = torch.cat([torch.ones(batch, buffer), 1 - mask], dim=1).bool()
        x = x[known].reshape(batch, -1, x.shape[-1])
        for index in range(config.encoder_depth):
            x = self.block(x, f"encoder_blocks.{index}", config.encoder_num_heads)
        x = self.linear(self.norm(x, "encoder_norm", config.norm_eps), "decoder_embed")
        full = state["mask_token"].repeat(batch, known.shape[1], 1)
        full[known] = x.reshape(-1, x.shape[-1])
        x = full + state["decoder_pos_embed_learned"]
        for index in range(config.decoder_depth):
            x = self.block(x, f"decoder_blocks.{index}", config.decoder_num_heads)
        x = self.norm(x, "decoder_norm", config.norm_eps)[:, buffer:]
        return x + state["diffusion_pos_embed_learned"]

    def head(self, x: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, C]`, `[N]` in 0..999, `[N, D]` -> `(eps [N, C], v [N, C])`."""
        net = "diffloss.net"
        rates = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
        angles = t.double()[:, None] * rates
        time = self.linear(
            torch.cat([angles.cos(), angles.sin()], dim=1), f"{net}.time_embed.mlp.0"
        )
        time = self.linear(F.silu(time), f"{net}.time_embed.mlp.2")
        y = F.silu(time + self.linear(z.double(), f"{net}.cond_embed"))
        x = self.linear(x.double(), f"{net}.input_proj")
        for index in range(self.config.diffloss_d):
            name = f"{net}.res_blocks.{index}"
            shift, scale, gate = self.linear(y, f"{name}.adaLN_modulation.1").chunk(3, dim=1)
            h = self.norm(x, f"{name}.in_ln", 1e-6) * (1 + scale) + shift
            x = x + gate * self.linear(F.silu(self.linear(h, f"{name}.mlp.0")), f"{name}.mlp.2")
        name = f"{net}.final_layer"
        shift, scale = self.linear(y, f"{name}.adaLN_modulation.1").chunk(2, dim=1)
        out = self.linear(self.norm(x, "none", 1e-6) * (1 + scale) + shift, f"{name}.linear")
        eps, v = out.chunk(2, dim=1)
        return eps, v

    def chain(
        self, z: Tensor, x: Tensor, noise: Tensor, temperature: float, other: Tensor | None = None,
        scale: float = 1.0,
    ) -> Chain:  # fmt: skip
        """Ancestral sampling: `z [N, D]`, `x [N, C]`, `noise [N, S, C]`; `other` for guidance."""
        steps = noise.shape[1]
        timesteps, alpha_bar = respaced(self.config.beta_schedule, steps)
        x, total = x.double(), torch.zeros(x.shape, dtype=torch.float64)
        for i in reversed(range(steps)):
            t = torch.full((len(x),), timesteps[i])
            eps, v = self.head(x, t, z)
            if other is not None:
                without, _ = self.head(x, t, other)
                eps = without + scale * (eps - without)
            before = alpha_bar[i - 1] if i else 1.0
            beta = 1 - alpha_bar[i] / before
            x0 = math.sqrt(1 / alpha_bar[i]) * x - math.sqrt(1 / alpha_bar[i] - 1) * eps
            mean = (
                beta * math.sqrt(before) / (1 - alpha_bar[i]) * x0
                + (1 - before) * math.sqrt(1 - beta) / (1 - alpha_bar[i]) * x
            )
            share = (v + 1) / 2
            lowest = max(i, 1)  # the posterior variance of the last step is 0: clipped
            beta_1 = 1 - alpha_bar[lowest] / alpha_bar[lowest - 1]
            posterior = beta_1 * (1 - alpha_bar[lowest - 1]) / (1 - alpha_bar[lowest])
            log_std = 0.5 * (share * math.log(beta) + (1 - share) * math.log(posterior))
            if i > 0:
                total += log_std
                x = mean + temperature * log_std.exp() * noise[:, i].double()
        return Chain(mean, mean, temperature * log_std.exp(), total)

    def decode(
        self, labels: Tensor, orders: Tensor, initial: Tensor, per_step: Tensor, *, num_iter: int,
        cfg: float = 1.0, kind: str = "linear", temperature: float = 1.0,
        head_steps: list[int] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """Decode all AR steps; returns `(tokens [B, L, C], masks after each step)`."""
        batch, length = orders.shape
        tokens = torch.zeros(initial.shape, dtype=torch.float64)
        mask, masks = torch.ones(batch, length), []
        unknown = torch.full_like(labels, self.config.class_num)
        for step, left in enumerate(masked_after(length, num_iter)):
            after = torch.zeros(batch, length)
            after.scatter_(1, orders[:, :left], 1)
            wanted = mask.bool() if step == num_iter - 1 else mask.bool() & ~after.bool()
            scale = cfg if kind == "constant" else 1 + (cfg - 1) * (length - left) / length
            z = self.condition(tokens, mask, labels)[wanted]
            other = None if cfg == 1 else self.condition(tokens, mask, unknown)[wanted]
            steps = per_step.shape[2] if head_steps is None else head_steps[step]
            noise = per_step[wanted][:, :steps]
            tokens[wanted] = self.chain(z, initial[wanted], noise, temperature, other, scale).tokens
            mask = after
            masks.append(mask)
        return tokens, masks


def masked_after(length: int, num_iter: int) -> list[int]:
    left, out = length, []
    for step in range(num_iter):
        share = math.cos(math.pi / 2 * (step + 1) / num_iter)
        left = max(1, min(left - 1, math.floor(length * share)))
        out.append(left)
    return out


def respaced(name: str, steps: int) -> tuple[list[int], list[float]]:
    """Timesteps and cumulated signal shares of a respaced schedule."""
    if name == "linear":
        betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    else:

        def share(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [min(1 - share((i + 1) / 1000) / share(i / 1000), 0.999) for i in range(1000)]
    stride = 999 / (steps - 1) if steps > 1 else 1
    timesteps, position = [], 0.0
    for _ in range(steps):
        timesteps.append(round(position))
        position += stride
    alpha_bar, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        alpha_bar.append(product)
    return timesteps, [alpha_bar[t] for t in timesteps]


def unpatchified(tokens: np.ndarray, patch: int, channels: int) -> np.ndarray:
    """Tokens `[B, L, C]` to latents `[B, c, h, w]`, one patch after another."""
    batch, length, _ = tokens.shape
    side = math.isqrt(length)
    out = np.zeros((batch, channels, side * patch, side * patch), tokens.dtype)
    for index in range(length):
        row, column = index // side * patch, index % side * patch
        piece = tokens[:, index].reshape(batch, channels, patch, patch)
        out[:, :, row : row + patch, column : column + patch] = piece
    return out


def random_state(config: MARConfig, seed: int) -> dict[str, Tensor]:
    """Random weights with released names and of a size that keeps activations about 1."""
    from csd.models import MAR

    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in MAR(config).state_dict().items():
        values = torch.randn(tensor.shape, generator=rng)
        if name.endswith("weight") and tensor.ndim == 2 and "class_emb" not in name:
            values /= math.sqrt(tensor.shape[1])
        elif name.endswith("weight") and tensor.ndim == 1:
            values = 1 + 0.1 * values
        elif name.endswith("bias"):
            values *= 0.1
        state[name] = values
    return state
