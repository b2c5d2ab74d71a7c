"""Train the decoder of an autoencoder further, on latents that stay as they are.

The autoencoder's squared error makes images a little soft. Here the decoder is also held to the
activations of a classifier, as latent diffusion holds its own to those of a trained network
(Zhang et al., arXiv 1801.03924). It should not be the classifier that images are measured with:
one of another seed. Models of the latents need not be trained again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kl_decoder import KLDecoder
from .autoencoder import grey_of, with_grey_output
from .classifier import Classifier
from .latents import Latents
from .loop import RunFiles, RunRecipe, TrainingState, run_steps, settings_of


@dataclass(frozen=True)
class DecoderRecipe(RunRecipe):
    """Hyperparameters; `feature_weight` is that of the activations' relative squared error."""

    warmup: int = 50
    ema: float = 0.998
    feature_weight: float = 0.1


def train_decoder(
    decoder: KLDecoder,
    classifier: Classifier,
    recipe: DecoderRecipe,
    images: Tensor,
    latents: Latents,
    files: RunFiles,
    *,
    save_every: int = 100,
    log_every: int = 50,
) -> KLDecoder:
    """Train `decoder` and return its average (EMA); resumes if there is a checkpoint.

    Args:
        decoder: where to start; it is changed.
        classifier: whose activations are compared.
        recipe: hyperparameters.
        images: `[N, 1, H, W]` float32 in [-1, 1].
        latents: their posteriors.
        files: where the run is kept.
        save_every: steps between checkpoints.
        log_every: steps between lines of the log.

    Raises:
        CsdError: the checkpoint belongs to another run, or the loss is not finite.
    """
    classifier.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0,
        fused=True,
    )  # fmt: skip

    def losses(step: int) -> Mapping[str, Tensor]:
        rng = recipe.generator(step)
        chosen = torch.randint(len(images), (recipe.batch,), generator=rng)
        mean, std = latents.mean[chosen], latents.std[chosen]
        made = grey_of(decoder(mean + std * torch.randn(mean.shape, generator=rng)))
        error = F.mse_loss(made, images[chosen])
        features = feature_error(classifier, made, images[chosen])
        return {
            "loss": error + recipe.feature_weight * features,
            "squared_error": error,
            "feature_error": features,
        }

    trained = run_steps(
        TrainingState.start(decoder, optimizer), recipe, settings_of(recipe), losses, files,
        save_every=save_every, log_every=log_every,
    )  # fmt: skip
    return with_grey_output(trained)


def feature_error(classifier: Classifier, made: Tensor, wanted: Tensor) -> Tensor:
    """Squared difference of activations, each layer's as a share of its mean square; their mean.

    Args:
        classifier: in evaluation mode.
        made: `[B, 1, H, W]`.
        wanted: likewise; no gradient flows to it.
    """
    with torch.no_grad():
        goals = classifier.activations(wanted)
    parts = [
        F.mse_loss(found, goal) / goal.square().mean()
        for found, goal in zip(classifier.activations(made), goals, strict=True)
    ]
    return torch.stack(parts).mean()
