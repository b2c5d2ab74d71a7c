"""Train a KL autoencoder on images.

The loss is the mean squared error of a pixel plus `kl_weight` times the divergence of the
posterior from a standard normal, in nats a pixel. At its optimum the posterior's noise costs a
squared error of `kl_weight * latents / (2 * pixels)`, so the weight says how much of the error
is paid for latents that are smooth enough to model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.errors import WeightsError
from ..checkpoint import load_into, read_state_dict
from ..kl_decoder import KLDecoder
from .kl_encoder import KLAutoencoder
from .loop import RunFiles, RunRecipe, TrainingState, run_steps, settings_of

Decoder = TypeVar("Decoder", bound=KLDecoder)

_LEVELS = {
    "encoder": "encoder.down.{}.block.0.conv2.weight",
    "decoder": "decoder.up.{}.block.0.conv2.weight",
}


@dataclass(frozen=True)
class AutoencoderRecipe(RunRecipe):
    """Architecture and hyperparameters of an autoencoder.

    `widths` and `encoder_widths` are the channels at each resolution, from the image's down; every
    one after the first halves it.
    """

    warmup: int = 100
    ema: float = 0.998
    latent_channels: int = 8
    widths: tuple[int, ...] = (32, 32, 64)
    encoder_widths: tuple[int, ...] = (32, 32, 64)
    kl_weight: float = 0.004


def train_autoencoder(
    recipe: AutoencoderRecipe,
    images: Tensor,
    files: RunFiles,
    *,
    save_every: int = 100,
    log_every: int = 50,
) -> KLAutoencoder:
    """Train and return the averaged (EMA) model; resumes if there is a checkpoint.

    Args:
        recipe: what to train and how.
        images: `[N, 1, H, W]` float32 in [-1, 1].
        files: where the run is kept.
        save_every: steps between checkpoints.
        log_every: steps between lines of the log.

    Raises:
        CsdError: the checkpoint belongs to another run, or the loss is not finite.
    """
    torch.manual_seed(recipe.seed)
    model = KLAutoencoder(recipe.latent_channels, recipe.widths, recipe.encoder_widths)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )

    def losses(step: int) -> Mapping[str, Tensor]:
        return _losses(model, recipe, images, step)

    trained = run_steps(
        TrainingState.start(model, optimizer), recipe, settings_of(recipe), losses, files,
        save_every=save_every, log_every=log_every,
    )  # fmt: skip
    return with_grey_output(trained)


def _losses(
    model: KLAutoencoder, recipe: AutoencoderRecipe, images: Tensor, step: int
) -> Mapping[str, Tensor]:
    """Squared error and divergence of a step's images, both a pixel, and the loss of both."""
    rng = recipe.generator(step)
    wanted = images[torch.randint(len(images), (recipe.batch,), generator=rng)]
    mean, logvar = model.encode(wanted.expand(-1, 3, -1, -1))
    noise = torch.randn(mean.shape, generator=rng)
    made = grey_of(model(mean + torch.exp(0.5 * logvar) * noise))
    error = F.mse_loss(made, wanted)
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / wanted.numel()
    return {
        "loss": error + recipe.kl_weight * divergence,
        "squared_error": error,
        "kl_nats_a_pixel": divergence,
    }


def grey_of(images: Tensor) -> Tensor:
    """`[B, 3, H, W]` -> `[B, 1, H, W]`."""
    return images.mean(dim=1, keepdim=True)


def with_grey_output(decoder: Decoder) -> Decoder:
    """Give the three channels of the image their mean, which is what was trained."""
    with torch.no_grad():
        for tensor in decoder.decoder.conv_out.parameters():
            tensor.copy_(tensor.mean(dim=0, keepdim=True).expand_as(tensor))
    return decoder


def psnr_of_error(error: float) -> float:
    """Peak signal-to-noise ratio, in dB, of a mean squared error of pixels in [-1, 1]."""
    return 10 * math.log10(4 / error)


def reconstruct(model: KLAutoencoder, images: Tensor, batch: int = 500) -> Tensor:
    """Decode the posterior means of `images [N, 1, H, W]`, clipped to [-1, 1], likewise shaped."""
    with torch.inference_mode():
        parts = [model(model.encode(part.expand(-1, 3, -1, -1))[0]) for part in images.split(batch)]
    return grey_of(torch.cat(parts)).clamp(-1, 1)


def reconstruction_psnr(model: KLAutoencoder, images: Tensor) -> float:
    """PSNR in dB of the mean squared error over all pixels of `images [N, 1, H, W]`."""
    return psnr_of_error(float(F.mse_loss(reconstruct(model, images), images)))


def load_autoencoder(path: Path) -> KLAutoencoder:
    """Read an autoencoder that the training command wrote; its sizes are read off the weights.

    Raises:
        WeightsError: the file cannot be read or holds no autoencoder of this kind.
    """
    state = read_state_dict(path)
    sizes = {
        part: [len(state[name]) for name in map(pattern.format, range(9)) if name in state]
        for part, pattern in _LEVELS.items()
    }
    if not all(sizes.values()) or "post_quant_conv.bias" not in state:
        raise WeightsError(f"{path} holds no autoencoder: give the file that training wrote")
    model = KLAutoencoder(len(state["post_quant_conv.bias"]), sizes["decoder"], sizes["encoder"])
    load_into(model, state, path)
    return model.eval()


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
