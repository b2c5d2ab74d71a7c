"""Take the channels out of an autoencoder whose posterior is the prior.

The divergence switches off the channels that it does not pay to use. They carry noise, which the
decoder has learned to ignore, and a model of latents would have to learn to make.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...runtime.errors import NumericsError
from .kl_encoder import KLAutoencoder

LEAST_NATS = 0.1


def nats_by_channel(model: KLAutoencoder, images: Tensor) -> Tensor:
    """Mean divergence from the prior, `[c]` nats a position, over `images [N, 1, H, W]`."""
    with torch.inference_mode():
        mean, logvar = model.encode(images.expand(-1, 3, -1, -1))
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(dim=(0, 2, 3))


def without_silent_channels(
    model: KLAutoencoder, images: Tensor, least: float = LEAST_NATS
) -> KLAutoencoder:
    """Return an autoencoder of the channels that say something, most telling first.

    Its posterior is that of the kept channels. It decodes as `model` does with zeros in the
    others, but for a difference at the image's border that least squares keep small: a bias
    before a padded convolution has no equal after it.

    Args:
        model: what was trained.
        images: `[N, 1, H, W]`, a sample to measure divergences on.
        least: nats a position that a channel must have to stay.

    Raises:
        NumericsError: the divergence of a channel is not finite.
    """
    nats = nats_by_channel(model, images)
    if not nats.isfinite().all():
        raise NumericsError(
            f"channel {int((~nats.isfinite()).nonzero()[0])} of the autoencoder has a divergence "
            "that is not finite: train it again with a lower learning rate"
        )
    keep = nats.argsort(descending=True)[: max(1, int((nats >= least).sum()))]
    state = dict(model.state_dict())
    # The convolutions of 1 x 1 become the identity, and what they did moves next door.
    rows = torch.cat([keep, keep + model.latent_channels])
    mix = state["quant_conv.weight"][rows, :, 0, 0]
    last = state["encoder.conv_out.weight"]
    state["encoder.conv_out.weight"] = torch.einsum("ij,jkhw->ikhw", mix, last)
    bias = mix @ state["encoder.conv_out.bias"] + state["quant_conv.bias"][rows]
    state["encoder.conv_out.bias"] = bias
    state["quant_conv.weight"] = _identity(len(rows))
    state["quant_conv.bias"] = torch.zeros(len(rows))

    first, mix = state["decoder.conv_in.weight"], state["post_quant_conv.weight"][:, keep, 0, 0]
    kept = torch.einsum("kjhw,ji->kihw", first, mix)
    wanted = torch.einsum("kjhw,j->khw", first, state["post_quant_conv.bias"]).reshape(-1, 1)
    taps = kept.permute(0, 2, 3, 1).reshape(-1, len(keep))
    offset = torch.linalg.lstsq(taps, wanted).solution
    left = (wanted - taps @ offset).reshape(len(kept), -1).sum(dim=1)
    state["decoder.conv_in.weight"] = kept
    state["decoder.conv_in.bias"] = state["decoder.conv_in.bias"] + left
    state["post_quant_conv.weight"] = _identity(len(keep))
    state["post_quant_conv.bias"] = offset[:, 0]

    pruned = KLAutoencoder(len(keep), model.widths, model.encoder_widths)
    pruned.load_state_dict(state)
    return pruned.eval()


def _identity(channels: int) -> Tensor:
    return torch.eye(channels).reshape(channels, channels, 1, 1)
