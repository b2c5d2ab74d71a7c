"""The diffusion head: an MLP with adaptive LayerNorm (adaLN), with released parameter names.

adaLN values depend on (head step, token) and not on `x`. `modulations` computes them alone and
`modulated` is the path of `x` given them; `forward` is their composition (section 5 of the
design), so the hoisted and the plain head are the same function.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimestepEmbedder(nn.Module):
    """Sinusoidal timestep features followed by a small MLP."""

    frequencies = 256
    max_period = 10000.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """`t [N]` -> `[N, W]`."""
        half = self.frequencies // 2
        index = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t[:, None].float() * torch.exp(-math.log(self.max_period) * index / half)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class ResBlock(nn.Module):
    """A residual block whose LayerNorm is shifted, scaled and gated from outside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """All `[R, W]` -> `[R, W]`."""
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    """The modulated output layer."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """All `[R, W]` -> `[R, out]`."""
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class DiffusionMLP(nn.Module):
    """`(x_t, t, z) -> (eps, v)`: predicted noise and variance share, each `[N, C]`."""

    def __init__(self, channels: int, width: int, depth: int, condition: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.time_embed = TimestepEmbedder(width)
        self.cond_embed = nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)

    def initialize(self) -> None:
        """Draw initial parameters: Xavier, adaLN and the output layer zero (as DiT)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.time_embed.mlp[0].weight, std=0.02)  # pyright: ignore[reportArgumentType]
        nn.init.normal_(self.time_embed.mlp[2].weight, std=0.02)  # pyright: ignore[reportArgumentType]
        for layer in [*self.modulation_layers(), self.final_layer.linear]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def modulation_layers(self) -> list[nn.Linear]:
        """Return the adaLN layers in order of use."""
        layers: list[nn.Linear] = []
        for module in [*self.res_blocks, self.final_layer]:
            layer = module.adaLN_modulation[1]  # pyright: ignore[reportIndexIssue]
            assert isinstance(layer, nn.Linear)
            layers.append(layer)
        return layers

    def joined_modulation(self) -> nn.Linear:
        """Return all adaLN layers as one, `[..., W]` -> `[..., M]`; a copy of their weights."""
        layers = self.modulation_layers()
        joined = nn.Linear(self.width, sum(layer.out_features for layer in layers))
        with torch.no_grad():
            joined.weight.copy_(torch.cat([layer.weight for layer in layers]))
            joined.bias.copy_(torch.cat([layer.bias for layer in layers]))
        return joined

    def modulations(self, embedding: Tensor) -> Tensor:
        """Map `t_embed + z_embed` `[..., W]` to all adaLN values `[..., M]`."""
        active = F.silu(embedding)
        return torch.cat([layer(active) for layer in self.modulation_layers()], dim=-1)

    def modulated(self, x: Tensor, mods: Tensor) -> tuple[Tensor, Tensor]:
        """`x [R, C]`, `mods [R, M]` -> `(eps [R, C], v [R, C])`."""
        parts = iter(mods.split(self.width, dim=-1))
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, next(parts), next(parts), next(parts))
        out = self.final_layer(x, next(parts), next(parts))
        eps, v = out.split(self.channels, dim=-1)
        return eps, v

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """`x [N, C]`, `t [N]`, `z [N, D]` -> `(eps [N, C], v [N, C])`."""
        return self.modulated(x, self.modulations(self.time_embed(t) + self.cond_embed(z)))
