"""The networks as they are exported: index inputs, named dynamic dimensions.

`runtime/graph_tensors.py` has their inputs and outputs.

`visible` may be padded with L; V may be 0. `head_chain` is the sequential sampler: S head steps for
given noise, temperature included (entry i for head step i, entry 0 finite and unused), with the
columns of `HeadSchedule`. T is N, or 2 N with guidance: the unconditional columns follow, and
`scale` counts only then. Its `std` is that of the last step without the temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from ...models.head import DiffusionMLP
from ...models.kl_decoder import KLDecoder
from ...models.local_steps import Caches, full_step, local_step
from ...models.mar import MAR, Backbone
from ...runtime.bundle.graph_tensors import GraphTensors, Shapes, graph_tensors
from ...runtime.config import MARConfig
from ...runtime.head import HeadSchedule
from ...runtime.schedule import TRAIN_STEPS

Sizes = dict[str, int]
# Makes inputs for given sizes of the dynamic dimensions.
Feeds = Callable[[Sizes, torch.Generator], tuple[Tensor, ...]]


class BackboneGraph(nn.Module):
    """See the table at the head of this file."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, visible: Tensor, query: Tensor, label: Tensor) -> Tensor:
        """Conditions of the queries."""
        return Backbone.forward(self.model, tokens, visible, query, label)


class BackboneFullGraph(nn.Module):
    """See the table at the head of this file."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, visible: Tensor, query: Tensor, label: Tensor
    ) -> tuple[Tensor, ...]:
        """Conditions of the queries, and the caches."""
        z, caches = full_step(self.model, tokens, visible, query, label)
        return z, *caches


class BackboneLocalGraph(nn.Module):
    """See the table at the head of this file."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        new: Tensor,
        query: Tensor,
        buffer_cache: Tensor,
        token_cache: Tensor,
        token_bias: Tensor,
        decoder_cache: Tensor,
    ) -> Tensor:
        """Conditions of the queries."""
        caches = Caches(buffer_cache, token_cache, token_bias, decoder_cache)
        return local_step(self.model, tokens, new, query, caches)


class HeadModulationGraph(nn.Module):
    """See the table at the head of this file.

    Whole timesteps are embedded at export and looked up, and all adaLN layers are joined: two
    matrix products are left for every AR step. The timesteps of a solver lie between whole ones
    and are embedded in the graph.
    """

    def __init__(self, head: DiffusionMLP, *, whole: bool = True) -> None:
        super().__init__()
        self.cond_embed = head.cond_embed
        self.joined = head.joined_modulation()
        self.time_embed = None if whole else head.time_embed
        if whole:
            with torch.no_grad():
                self.register_buffer("time", head.time_embed(torch.arange(TRAIN_STEPS)))

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        """adaLN values of every (head step, token)."""
        if self.time_embed is None:
            time: Tensor = self.time[timestep]  # pyright: ignore[reportIndexIssue]
        else:
            time = self.time_embed(timestep)
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


class HeadChainGraph(nn.Module):
    """See the table at the head of this file. One loop, so the graph does not grow with S."""

    def __init__(self, head: DiffusionMLP) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, x: Tensor, noise: Tensor, mods: Tensor, tables: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Tokens, their last mean and std, the sum of the log stds before, and all states."""
        steps, count, columns = noise.shape[0], x.shape[0], mods.shape[1]
        column = torch.arange(columns)
        token = torch.where(column < count, column, column - count)
        # Without guidance both are the same columns: eps stays what it is, and no work doubles.
        conditional = torch.arange(count)
        unconditional = conditional + (columns - count)
        guidance = scale.unsqueeze(-1)

        def goes_on(step: Tensor, *_: Tensor) -> Tensor:
            return step >= 0

        def move(
            step: Tensor, x: Tensor, mean: Tensor, std: Tensor, total: Tensor, states: Tensor
        ) -> tuple[Tensor, ...]:
            index = step.reshape(1)
            recip, recipm1, coef_x0, coef_x, base, slope = tables.index_select(0, index).unbind(1)
            eps, v = self.head.modulated(x[token], mods.index_select(0, index).squeeze(0))
            free = eps[unconditional]
            eps = free + guidance * (eps[conditional] - free)
            x0hat = recip * x - recipm1 * eps
            mean = coef_x0 * x0hat + coef_x * x
            log_std = base + slope * v[conditional]
            std = torch.exp(log_std)
            draws = (step > 0).to(x.dtype)  # the last head step draws nothing
            x = mean + draws * std * noise.index_select(0, index).squeeze(0)
            states = torch.index_put(states, (index,), x.unsqueeze(0))
            return step - 1, x, mean, std, total + draws * log_std, states

        start = (
            torch.full((), steps - 1, dtype=torch.int64), x.clone(),
            torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x),
            torch.cat([torch.zeros_like(noise), x.unsqueeze(0)]),
        )  # fmt: skip
        _, tokens, mean, std, total, states = while_loop(goes_on, move, start)
        return tokens, mean, std, total, states


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
        integers: which of them are whole numbers.
        feeds: makes random inputs for given sizes of the dynamic dimensions.
        trials: sizes that parity is checked at; the first is the export's example, all above 1.
        network: what it is a form of: graphs of one network share their weights' file.
    """

    name: str
    module: nn.Module
    inputs: Shapes
    outputs: Shapes
    integers: frozenset[str]
    feeds: Feeds
    trials: list[Sizes]
    network: str = ""

    def __post_init__(self) -> None:
        if not self.network:
            object.__setattr__(self, "network", self.name)

    @property
    def dimensions(self) -> set[str]:
        """Names of the dynamic dimensions."""
        return {d for shape in self.inputs.values() for d in shape if isinstance(d, str)}


def model_graphs(
    role: str, model: MAR, *, head_chain: bool = False, local_steps: bool = False
) -> list[ExportGraph]:
    """Return the graphs of a model.

    Args:
        role: `target` or `draft`.
        model: in evaluation mode.
        head_chain: with the graph of the whole sequential chain.
        local_steps: with the backbone's graphs of full and local AR steps.
    """
    graphs = [_backbone(role, model)]
    if local_steps:
        graphs += [_backbone_full(role, model), _backbone_local(role, model)]
    graphs += [_head_modulation(role, model), _head_step(role, model)]
    return [*graphs, _head_chain(role, model)] if head_chain else graphs


def _tensors(kind: str, config: MARConfig, upscale: int = 1) -> GraphTensors:
    tensors = graph_tensors(kind, config, upscale)
    assert tensors is not None, kind
    return tensors


def _backbone_feeds(config: MARConfig) -> Feeds:
    """What makes inputs of `backbone`, padding among them."""
    length, channels = config.seq_len, config.token_dim

    def feeds(sizes: Sizes, rng: torch.Generator) -> tuple[Tensor, ...]:
        batch, known, wanted = sizes["B"], sizes["V"], sizes["P"]
        order = torch.rand(batch, length, generator=rng).argsort(dim=1)
        # An image of one token has less than the sizes of the example: padding, and it twice.
        visible = torch.nn.functional.pad(
            order[:, :known], (0, max(0, known - length)), value=length
        )
        query = order.repeat(1, -(-wanted // length))[:, -wanted:]
        if known > 1:
            visible[-1, -1] = length  # padding
        label = torch.randint(config.class_num + 1, (batch,), generator=rng)
        tokens = torch.randn(batch, known, channels, generator=rng)
        return tokens, visible, query, label

    return feeds


def _backbone(role: str, model: MAR) -> ExportGraph:
    config: MARConfig = model.config
    length, half = config.seq_len, max(2, config.seq_len // 2)
    return ExportGraph(
        f"{role}.backbone",
        BackboneGraph(model),
        *_tensors("backbone", config),
        _backbone_feeds(config),
        [
            {"B": 3, "V": half, "P": 2},
            {"B": 1, "V": 0, "P": length},
            {"B": 2, "V": length - 1, "P": 1},
            {"B": 2, "V": 1, "P": 2},
        ],
    )  # fmt: skip


def _local_trials(length: int) -> list[Sizes]:
    """Of few sequences: what is noted of them holds keys and values of every block."""
    return [
        {"B": 2, "V": max(2, length // 2), "P": 2, "N": 3},
        {"B": 1, "V": 0, "P": length, "N": 1},
        {"B": 1, "V": length - 1, "P": 1, "N": length},
        {"B": 2, "V": 1, "P": 2, "N": 2},
    ]


def _backbone_full(role: str, model: MAR) -> ExportGraph:
    config: MARConfig = model.config
    return ExportGraph(
        f"{role}.backbone_full",
        BackboneFullGraph(model),
        *_tensors("backbone_full", config),
        _backbone_feeds(config),
        [{d: t[d] for d in "BVP"} for t in _local_trials(config.seq_len)],
        f"{role}.backbone",
    )


def _backbone_local(role: str, model: MAR) -> ExportGraph:
    config: MARConfig = model.config
    before, length = _backbone_feeds(config), config.seq_len

    def feeds(sizes: Sizes, rng: torch.Generator) -> tuple[Tensor, ...]:
        """What a full AR step keeps, and other tokens anywhere."""
        batch, count = sizes["B"], sizes["N"]
        tokens, visible, query, label = before(sizes, rng)
        with torch.no_grad():
            _, caches = full_step(model, tokens, visible, query, label)
        order = torch.rand(batch, length, generator=rng).argsort(dim=1)
        new = order.repeat(1, -(-count // length))[:, :count]
        return torch.randn(batch, count, config.token_dim, generator=rng), new, query, *caches

    return ExportGraph(
        f"{role}.backbone_local",
        BackboneLocalGraph(model),
        *_tensors("backbone_local", config),
        feeds,
        _local_trials(length),
        f"{role}.backbone",
    )


def _head_modulation(role: str, model: MAR) -> ExportGraph:
    config = model.config

    def feeds(sizes: Sizes, rng: torch.Generator) -> tuple[Tensor, ...]:
        z = torch.randn(sizes["N"], config.condition_dim, generator=rng)
        if config.solved:
            return z, torch.rand(sizes["S"], generator=rng) * (TRAIN_STEPS - 1)
        return z, torch.randint(TRAIN_STEPS, (sizes["S"],), generator=rng)

    return ExportGraph(
        f"{role}.head_modulation",
        HeadModulationGraph(model.head_net, whole=not config.solved),
        *_tensors("head_modulation", config),
        feeds,
        [{"N": 3, "S": 7}, {"N": 1, "S": 1}, {"N": 2, "S": 20}],
    )


def _head_step(role: str, model: MAR) -> ExportGraph:
    config = model.config

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
        *_tensors("head_step", config),
        feeds,
        [{"R": 5, "S": 4, "N": 3}, {"R": 1, "S": 1, "N": 1}, {"R": 33, "S": 20, "N": 2}],
    )  # fmt: skip


def _head_chain(role: str, model: MAR) -> ExportGraph:
    config = model.config

    def feeds(sizes: Sizes, rng: torch.Generator) -> tuple[Tensor, ...]:
        steps, count, columns = sizes["S"], sizes["N"], sizes["T"]
        # Whatever the model's own schedule: the cosine one magnifies differences by 2e4.
        tables = torch.from_numpy(chain_tables(HeadSchedule.linear(steps)))
        return (
            torch.randn(count, config.token_dim, generator=rng),
            torch.randn(steps, count, config.token_dim, generator=rng),
            0.5 * torch.randn(steps, columns, config.modulation_dim, generator=rng),
            tables,
            1 + torch.rand(count, generator=rng),
        )

    return ExportGraph(
        f"{role}.head_chain",
        HeadChainGraph(model.head_net),
        *_tensors("head_chain", config),
        feeds,
        [{"S": 5, "N": 3, "T": 6}, {"S": 1, "N": 1, "T": 1}, {"S": 20, "N": 2, "T": 2}],
    )  # fmt: skip


def chain_tables(schedule: HeadSchedule) -> NDArray[np.float32]:
    """Return the `tables [S, 6]` of `head_chain`: the columns of a schedule."""
    return np.concatenate(schedule.columns, axis=1)


def decoder_graph(decoder: KLDecoder, config: MARConfig) -> ExportGraph:
    """Return the graph of a KL decoder."""
    channels, height, width = config.latent_shape
    return ExportGraph(
        "decoder",
        DecoderGraph(decoder, config.latent_scale),
        *_tensors("decoder", config, decoder.upscale),
        lambda s, g: (torch.randn(s["B"], channels, height, width, generator=g),),
        [{"B": 2}, {"B": 1}],
    )
