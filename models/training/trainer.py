"""Train a MAR model on latents, on a CPU or a GPU."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.config import MARConfig
from ...runtime.schedule import TRAIN_STEPS
from ..checkpoint import load_mar
from ..head import DiffusionMLP
from ..mar import MAR, Backbone, gather_rows
from ..patches import patchify
from .latents import Latents
from .loop import RunFiles, RunRecipe, TrainingState, run_steps, settings_of
from .loss import DiffusionLoss

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Recipe(RunRecipe):
    """Hyperparameters of one training run.

    `head_repeats` is the number of (timestep, noise) draws per masked token and step.
    """

    weight_decay: float = 0.02
    label_dropout: float = 0.1
    head_repeats: int = 2


def train(
    config: MARConfig,
    recipe: Recipe,
    latents: Latents,
    labels: Tensor,
    files: RunFiles,
    *,
    device: torch.device,
    start: Path | None = None,
    bf16: bool = False,
    save_every: int = 100,
    log_every: int = 100,
) -> MAR:
    """Train and return the averaged (EMA) model; resumes if there is a checkpoint.

    Args:
        config: architecture; its `latent_scale` is what latents are multiplied with.
        recipe: hyperparameters.
        latents: posteriors of N images, drawn from anew at each step.
        labels: `[N]` int64.
        files: where the run is kept.
        device: where to train.
        start: weights to begin with, of a model of this configuration; else they are random.
        bf16: autocast to bfloat16.
        save_every: steps between checkpoints.
        log_every: steps between lines of the log.

    Raises:
        CsdError: the checkpoint belongs to another run or lies past the start of the decay, or
            the loss is not finite.
        WeightsError: `start` cannot be read, or is of another model.
    """
    torch.manual_seed(recipe.seed)
    model = MAR(config)
    model.initialize()
    begun: dict[str, Mapping[str, str]] = {}
    if start is not None:
        model.load_state_dict(load_mar(start, config).state_dict())
        begun = {"start": {"sha256": hashlib.sha256(start.read_bytes()).hexdigest()}}
    model.to(device)
    loss_of = DiffusionLoss(config.beta_schedule, device)
    data = TokenPosteriors.of(latents, labels, config, device)

    def losses(step: int) -> Mapping[str, Tensor]:
        batch = draw(config, recipe, data, step)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            z = Backbone.forward(model, batch.known, batch.visible, batch.query, batch.label)
            x_t = loss_of.noised(batch.x0, batch.t, batch.noise)
            eps, v = repeated_head(model.head_net, x_t, batch.t, z.flatten(0, 1))
        mse, bound = loss_of(eps, v, batch.x0, x_t, batch.t, batch.noise)
        return {"loss": mse + bound, "eps_mse": mse, "bound_bits": bound}

    def examine(average: MAR) -> Mapping[str, float]:
        return {"first_step_error": round(first_step_error(average), 5)}

    return run_steps(
        TrainingState.start(model, _optimizer(model, recipe)),
        recipe,
        settings_of(recipe, config=config.to_dict(), **begun),
        losses,
        files,
        examine=examine,
        save_every=save_every,
        log_every=log_every,
    )


def _optimizer(model: MAR, recipe: Recipe) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay},
         {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip


@dataclass(frozen=True)
class TokenPosteriors:
    """Mean and standard deviation of all tokens, `[N, L, C]` each, scaled, and labels `[N]`."""

    mean: Tensor
    std: Tensor
    labels: Tensor

    @staticmethod
    def of(
        latents: Latents, labels: Tensor, config: MARConfig, device: torch.device
    ) -> TokenPosteriors:
        """The tokens of a model of `config`."""
        mean, std = (
            patchify(part * config.latent_scale, config.patch_size).to(device)
            for part in (latents.mean, latents.std)
        )
        return TokenPosteriors(mean, std, labels.to(device))


@dataclass(frozen=True)
class TrainingBatch:
    """What one step trains on: `B` images of which `V` tokens are known and `P` are not.

    `known [B, V, C]`, `visible [B, V]`, `query [B, P]`, `label [B]` are the backbone's inputs.
    The head's rows are the unknown tokens, repeated: `x0`, `noise` `[R, C]` and `t [R]`.
    """

    known: Tensor
    visible: Tensor
    query: Tensor
    label: Tensor
    x0: Tensor
    noise: Tensor
    t: Tensor


def draw(config: MARConfig, recipe: Recipe, data: TokenPosteriors, step: int) -> TrainingBatch:
    """Make all random choices of a step."""
    device = data.mean.device
    rng = recipe.generator(step)
    length, classes = config.seq_len, config.class_num

    chosen = torch.randint(len(data.mean), (recipe.batch,), generator=rng).to(device)
    noise = torch.randn(recipe.batch, length, config.token_dim, generator=rng).to(device)
    tokens = data.mean[chosen] + data.std[chosen] * noise
    dropped = (torch.rand(recipe.batch, generator=rng) < recipe.label_dropout).to(device)
    label = torch.where(dropped, classes, data.labels[chosen])

    # The share of masked tokens follows the cosine schedule that decoding runs through. Multiples
    # of the golden ratio fill the interval evenly, whichever run of steps is looked at.
    ratio = math.cos(math.pi / 2 * math.fmod(step * _GOLDEN, 1.0))
    masked = max(1, min(length, math.ceil(length * ratio)))
    order = torch.rand(recipe.batch, length, generator=rng).argsort(dim=1).to(device)
    query, visible = order[:, :masked], order[:, masked:]

    # One timestep of each of R equal strata, in random order: less noise in the loss's gradient.
    rows = recipe.batch * masked * recipe.head_repeats
    strata = (torch.arange(rows) + torch.rand(rows, generator=rng)) * (TRAIN_STEPS / rows)
    t = strata.long().clamp(max=TRAIN_STEPS - 1)[torch.randperm(rows, generator=rng)]
    return TrainingBatch(
        known=gather_rows(tokens, visible),
        visible=visible,
        query=query,
        label=label,
        x0=gather_rows(tokens, query).flatten(0, 1).repeat(recipe.head_repeats, 1),
        noise=torch.randn(rows, config.token_dim, generator=rng).to(device),
        t=t.to(device),
    )


def repeated_head(net: DiffusionMLP, x: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The head, with less work where each condition has several rows.

    There are fewer timesteps and conditions than rows, so each is embedded once; and all adaLN
    layers are one product.

    Args:
        net: the head.
        x: noised tokens `[K N, C]`, all N of the first draw first.
        t: timesteps `[K N]`.
        z: conditions `[N, D]`.

    Returns:
        `(eps, v)`, each `[K N, C]`.
    """
    time_of = net.time_embed(torch.arange(TRAIN_STEPS, device=t.device))
    embedding = time_of[t] + net.cond_embed(z).repeat(len(x) // len(z), 1)
    layers = net.modulation_layers()
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return net.modulated(x, F.linear(F.silu(embedding), weight, bias))


def first_step_error(model: MAR, images: int = 32, seed: int = 0) -> float:
    """Return rms(eps - x) at the last training timestep, where x is nearly all noise.

    A cosine schedule multiplies this error by about 350 in the first mean of 100 head steps, so it
    asks for about 1e-3; a linear one asks for little (section 3 of the design).

    Args:
        model: what to measure.
        images: random classes, all tokens unknown.
        seed: of classes and x.
    """
    config, device = model.config, model.mask_token.device
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(config.class_num, (images,), generator=rng).to(device)
    shape = (images, config.seq_len, config.token_dim)
    x = torch.randn(images * config.seq_len, config.token_dim, generator=rng).to(device)
    with torch.inference_mode():
        unknown = torch.ones(images, config.seq_len, device=device)
        z = model.condition(torch.zeros(shape, device=device), unknown, labels)
        t = torch.full((len(x),), TRAIN_STEPS - 1, device=device)
        eps, _ = model.head(x, t, z.flatten(0, 1))
    return float((eps - x).square().mean().sqrt())
