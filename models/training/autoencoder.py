"""Train a KL autoencoder on images: seeded, resumable.

The loss is the mean squared error of a pixel plus `kl_weight` times the divergence of the
posterior from a standard normal, in nats a pixel. At its optimum the posterior's noise costs a
squared error of `kl_weight * latents / (2 * pixels)`, so the weight says how much of the error
is paid for latents that are smooth enough to model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.errors import CsdError
from .checkpoints import read_checkpoint, refuse_other_run, save_checkpoint
from .kl_encoder import KLAutoencoder
from .rate import warmup_stable_decay


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Architecture and hyperparameters of an autoencoder.

    `widths` and `encoder_widths` are the channels at each resolution, from the image's down; every
    one after the first halves it. `decay_steps` is how many of the `steps` the rate falls for.
    """

    steps: int
    decay_steps: int
    latent_channels: int = 8
    widths: tuple[int, ...] = (32, 32, 64)
    encoder_widths: tuple[int, ...] = (32, 32, 64)
    batch: int = 64
    learning_rate: float = 1.5e-3
    warmup: int = 100
    gradient_clip: float = 1.0
    kl_weight: float = 0.004
    ema: float = 0.998
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return self.learning_rate * warmup_stable_decay(
            step,
            warmup=self.warmup,
            decay_start=self.steps - self.decay_steps,
            decay_steps=self.decay_steps,
        )


@dataclass
class _State:
    model: KLAutoencoder
    ema: KLAutoencoder
    optimizer: torch.optim.Optimizer
    step: int
    seconds: float


def train_autoencoder(
    recipe: AutoencoderRecipe,
    images: Tensor,
    *,
    checkpoint: Path,
    log: Path,
    save_every: int = 250,
    log_every: int = 50,
) -> KLAutoencoder:
    """Train and return the averaged (EMA) model; resumes from `checkpoint` if it exists.

    Args:
        recipe: what to train and how.
        images: `[N, 1, H, W]` float32 in [-1, 1].
        checkpoint: file to resume from and to save to, replaced atomically.
        log: JSON-lines file to append losses to.
        save_every: steps between checkpoints.
        log_every: steps between lines of the log.

    Raises:
        CsdError: the checkpoint belongs to another run, or the loss is not finite.
    """
    state = _start(recipe)
    if checkpoint.exists():
        _resume(state, checkpoint, recipe)
    began = time.perf_counter() - state.seconds
    sums = torch.zeros(2, dtype=torch.float64)
    with log.open("a", encoding="utf-8") as stream:
        while state.step < recipe.steps:
            error, divergence = _train_step(state, recipe, images)
            sums += torch.tensor([error, divergence], dtype=torch.float64)
            state.step += 1
            state.seconds = time.perf_counter() - began
            if not math.isfinite(error + divergence):
                raise CsdError(
                    f"the loss is not finite at step {state.step}: lower --learning-rate"
                )
            if state.step % log_every == 0:
                mse, kl = (sums / log_every).tolist()
                sums.zero_()
                record = {
                    "step": state.step,
                    "psnr": round(psnr_of_error(mse), 3),
                    "kl_nats_a_pixel": round(kl, 5),
                    "learning_rate": recipe.rate(state.step - 1),
                    "seconds": round(state.seconds, 1),
                }
                stream.write(json.dumps(record) + "\n")
                stream.flush()
                print(json.dumps(record), flush=True)
            if state.step % save_every == 0 or state.step == recipe.steps:
                _save(state, checkpoint, recipe)
    return state.ema.eval()


def psnr_of_error(error: float) -> float:
    """Peak signal-to-noise ratio, in dB, of a mean squared error of pixels in [-1, 1]."""
    return 10 * math.log10(4 / error)


def reconstruct(model: KLAutoencoder, images: Tensor, batch: int = 500) -> Tensor:
    """Decode the posterior means of `images [N, 1, H, W]`, clipped to [-1, 1], likewise shaped."""
    with torch.inference_mode():
        parts = [model(model.encode(part.expand(-1, 3, -1, -1))[0]) for part in images.split(batch)]
    return torch.cat(parts).mean(dim=1, keepdim=True).clamp(-1, 1)


def reconstruction_psnr(model: KLAutoencoder, images: Tensor) -> float:
    """PSNR in dB of the mean squared error over all pixels of `images [N, 1, H, W]`."""
    return psnr_of_error(float(F.mse_loss(reconstruct(model, images), images)))


def posterior_of(model: KLAutoencoder, images: Tensor, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of `images [N, 1, H, W]`, each `[N, c, h, w]`."""
    means: list[Tensor] = []
    stds: list[Tensor] = []
    with torch.inference_mode():
        for part in images.split(batch):
            mean, logvar = model.encode(part.expand(-1, 3, -1, -1))
            means.append(mean)
            stds.append(torch.exp(0.5 * logvar))
    return torch.cat(means), torch.cat(stds)


def _start(recipe: AutoencoderRecipe) -> _State:
    torch.manual_seed(recipe.seed)
    made = [
        KLAutoencoder(recipe.latent_channels, list(recipe.widths), list(recipe.encoder_widths))
        for _ in range(2)
    ]
    model, ema = made
    _share_grey(model)
    ema.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    return _State(model, ema.requires_grad_(False), optimizer, 0, 0.0)


def _share_grey(model: KLAutoencoder) -> None:
    """Make the three channels of the decoder's image one."""
    with torch.no_grad():
        for tensor in (model.decoder.conv_out.weight, model.decoder.conv_out.bias):
            tensor.copy_(tensor.mean(dim=0, keepdim=True).expand_as(tensor))


def _train_step(state: _State, recipe: AutoencoderRecipe, images: Tensor) -> tuple[float, float]:
    """Update model and average once; return squared error and divergence, both a pixel."""
    rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + state.step)
    wanted = images[torch.randint(len(images), (recipe.batch,), generator=rng)]
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.rate(state.step)
    mean, logvar = state.model.encode(wanted.expand(-1, 3, -1, -1))
    noise = torch.randn(mean.shape, generator=rng)
    # Only the mean of the channels enters the loss, so they have one gradient and stay one.
    made = state.model(mean + torch.exp(0.5 * logvar) * noise).mean(dim=1, keepdim=True)
    error = F.mse_loss(made, wanted)
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / wanted.numel()
    state.optimizer.zero_grad(set_to_none=True)
    (error + recipe.kl_weight * divergence).backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.gradient_clip)
    state.optimizer.step()
    _share_grey(state.model)
    decay = min(recipe.ema, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for average, current in zip(state.ema.parameters(), state.model.parameters(), strict=True):
            average.lerp_(current, 1 - decay)
    return error.item(), divergence.item()


def _save(state: _State, path: Path, recipe: AutoencoderRecipe) -> None:
    content = {
        "recipe": dataclasses.asdict(recipe),
        "step": state.step,
        "seconds": state.seconds,
        "model": state.model.state_dict(),
        "model_ema": state.ema.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }
    save_checkpoint(content, path)


def _resume(state: _State, path: Path, recipe: AutoencoderRecipe) -> None:
    content = read_checkpoint(path, torch.device("cpu"))
    refuse_other_run(path, content["recipe"], dataclasses.asdict(recipe))
    state.model.load_state_dict(content["model"])
    state.ema.load_state_dict(content["model_ema"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.step, state.seconds = content["step"], content["seconds"]
    print(f"resumed from {path} at step {state.step}", flush=True)
