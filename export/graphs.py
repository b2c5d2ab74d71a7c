"""The networks as they are exported: index inputs, named dynamic dimensions.

| graph | inputs | outputs |
| --- | --- | --- |
| `backbone` | `tokens [B, V, C]`, `visible [B, V]`, `query [B, P]`, `label [B]` | `z [B, P, D]` |
| `head_modulation` | `z [N, D]`, `timestep [S]` | `mods [S, N, M]` |
| `head_step` | `x [R, C]`, `step [R]`, `token [R]`, `mods [S, N, M]` | `eps [R, C]`, `v [R, C]` |
| `decoder` | `latents [B, c, h, w]` | `image [B, 3, H, W]` |

Integers are int64, everything else float32. `visible` may be padded with L; V may be 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.head import DiffusionMLP
from ..models.kl_decoder import KLDecoder
from ..models.mar import MAR, Backbone
from ..runtime.config import MARConfig
from ..runtime.schedule import TRAIN_STEPS

Sizes = dict[str, int]


class BackboneGraph(nn.Module):
    """See the table at the head of this file."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, visible: Tensor, query: Tensor, label: Tensor) -> Tensor:
        """Conditions of the queries."""
        return Backbone.forward(self.model, tokens, visible, query, label)


class HeadModulationGraph(nn.Module):
    """See the table at the head of this file.

    What it computes for every AR step is one matrix product: embedded timesteps are looked up, and
    all adaLN layers are joined.
    """

    def __init__(self, head: DiffusionMLP) -> None:
        super().__init__()
        self.cond_embed = head.cond_embed
        self.joined = head.joined_modulation()
        with torch.no_grad():
            self.register_buffer("time", head.time_embed(torch.arange(TRAIN_STEPS)))

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        """adaLN values of every (head step, token)."""
        time: Tensor = self.time[timestep]  # pyright: ignore[reportIndexIssue]
        embedded = time.unsqueeze(1) + self.cond_embed(z).unsqueeze(0)
        steps, count, width = embedded.shape
        return self.joined(F.silu(embedded).reshape(-1, width)).reshape(steps, count, -1)


class HeadStepGraph(nn.Module):
    """See the table at the head of this file."""

    def __init__(self, head: DiffusionMLP) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, x: Tensor, step: Tensor, token: Tensor, mods: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predicted noise and variance share of every row."""
        return self.head.modulated(x, mods[step, token])


class DecoderGraph(nn.Module):
    """See the table at the head of this file. Divides by the latent scale first."""

    def __init__(self, decoder: KLDecoder, latent_scale: float) -> None:
        super().__init__()
        self.decoder = decoder
        self.latent_scale = latent_scale

    def forward(self, latents: Tensor) -> Tensor:
        """Images of latents as the models emit them."""
        return self.decoder(latents / self.latent_scale)


@dataclass(frozen=True)
class ExportGraph:
    """A network with what its export and its parity check need.

    Attributes:
        name: name in the bundle, as `target.backbone`.
        module: the network.
        inputs: names of the inputs; a dimension is a number or the name of a dynamic one.
        outputs: likewise.
        profile: `[least, typical, most]` of each dynamic dimension.
        feeds: makes random inputs for given sizes of the dynamic dimensions.
        trials: sizes that parity is checked at; the first is the export's example, all above 1.
    """

    name: str
    module: nn.Module
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    profile: dict[str, tuple[int, int, int]]
    feeds: Callable[[Sizes, torch.Generator], tuple[Tensor, ...]]
    trials: list[Sizes]


def model_graphs(
    role: str, model: MAR, max_batch: int, max_gamma: int, head_steps: int
) -> list[ExportGraph]:
    """Return the three graphs of a model.

    Args:
        role: `target` or `draft`.
        model: in evaluation mode.
        max_batch: images in one call at most.
        max_gamma: AR steps in one verification at most.
        head_steps: typical number S of head steps.
    """
    config = model.config
    most = min(max_batch * config.seq_len, 1 << 20)
    return [
        _backbone(role, model, 2 * max_batch * (max_gamma + 1)),
        ExportGraph(
            f"{role}.head_modulation",
            HeadModulationGraph(model.head_net),
            {"z": ("N", config.condition_dim), "timestep": ("S",)},
            {"mods": ("S", "N", config.modulation_dim)},
            {"N": (1, 2, 2 * most), "S": (1, head_steps, TRAIN_STEPS)},
            lambda s, g: (
                torch.randn(s["N"], config.condition_dim, generator=g),
                torch.randint(TRAIN_STEPS, (s["S"],), generator=g),
            ),
            [{"N": 3, "S": 7}, {"N": 1, "S": 1}, {"N": 2, "S": 20}],
        ),
        _head_step(role, model, most, head_steps),
    ]


def _backbone(role: str, model: MAR, most: int) -> ExportGraph:
    config: MARConfig = model.config
    length, channels = config.seq_len, config.token_dim

    def feeds(sizes: Sizes, rng: torch.Generator) -> tuple[Tensor, ...]:
        batch, known, wanted = sizes["B"], sizes["V"], sizes["P"]
        order = torch.rand(batch, length, generator=rng).argsort(dim=1)
        visible = order[:, :known].clone()
        if known > 1:
            visible[-1, -1] = length  # padding
        label = torch.randint(config.class_num + 1, (batch,), generator=rng)
        tokens = torch.randn(batch, known, channels, generator=rng)
        return tokens, visible, order[:, length - wanted :], label

    half = max(2, length // 2)
    return ExportGraph(
        f"{role}.backbone",
        BackboneGraph(model),
        {
            "tokens": ("B", "V", channels), "visible": ("B", "V"),
            "query": ("B", "P"), "label": ("B",),
        },
        {"z": ("B", "P", config.condition_dim)},
        {"B": (1, 2, most), "V": (0, half, length), "P": (1, min(4, length), length)},
        feeds,
        [
            {"B": 3, "V": half, "P": 2},
            {"B": 1, "V": 0, "P": length},
            {"B": 2, "V": length - 1, "P": 1},
            {"B": 2, "V": 1, "P": 2},
        ],
    )  # fmt: skip


def _head_step(role: str, model: MAR, most: int, head_steps: int) -> ExportGraph:
    config: MARConfig = model.config

    def feeds(sizes: Sizes, rng: torch.Generator) -> tuple[Tensor, ...]:
        rows, steps, count = sizes["R"], sizes["S"], sizes["N"]
        return (
            torch.randn(rows, config.token_dim, generator=rng),
            torch.randint(steps, (rows,), generator=rng),
            torch.randint(count, (rows,), generator=rng),
            0.5 * torch.randn(steps, count, config.modulation_dim, generator=rng),
        )

    return ExportGraph(
        f"{role}.head_step",
        HeadStepGraph(model.head_net),
        {
            "x": ("R", config.token_dim), "step": ("R",), "token": ("R",),
            "mods": ("S", "N", config.modulation_dim),
        },
        {"eps": ("R", config.token_dim), "v": ("R", config.token_dim)},
        {
            "R": (1, 2, 2 * most * 64), "N": (1, 2, 2 * most), "S": (1, head_steps, TRAIN_STEPS),
        },
        feeds,
        [{"R": 5, "S": 4, "N": 3}, {"R": 1, "S": 1, "N": 1}, {"R": 33, "S": 20, "N": 2}],
    )  # fmt: skip


def decoder_graph(decoder: KLDecoder, config: MARConfig, max_batch: int) -> ExportGraph:
    """Return the graph of a KL decoder."""
    channels, height, width = config.latent_shape
    return ExportGraph(
        "decoder",
        DecoderGraph(decoder, config.latent_scale),
        {"latents": ("B", channels, height, width)},
        {"image": ("B", 3, height * decoder.upscale, width * decoder.upscale)},
        {"B": (1, 1, max_batch)},
        lambda s, g: (torch.randn(s["B"], channels, height, width, generator=g),),
        [{"B": 2}, {"B": 1}],
    )
