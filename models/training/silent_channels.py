"""Take the channels out of an autoencoder whose posterior is the prior.

The divergence switches off the channels that it does not pay to use. They carry noise, which the
decoder has learned to ignore, and a model of latents would have to learn to make.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
    """
    nats = nats_by_channel(model, images)
    keep = nats.argsort(descending=True)[: max(1, int((nats >= least).sum()))]
    pruned = KLAutoencoder(len(keep), model.widths, model.encoder_widths)
    fitting = {name: tensor.shape for name, tensor in pruned.state_dict().items()}
    same = {k: v for k, v in model.state_dict().items() if v.shape == fitting[k]}
    pruned.load_state_dict(same, strict=False)
    with torch.no_grad():
        # The convolutions of 1 x 1 become the identity, and what they did moves next door.
        rows = torch.cat([keep, keep + model.latent_channels])
        last, mix = model.encoder.conv_out, model.quant_conv
        weight = mix.weight[rows, :, 0, 0]
        pruned.encoder.conv_out.weight.copy_(torch.einsum("ij,jkhw->ikhw", weight, last.weight))
        pruned.encoder.conv_out.bias.copy_(weight @ last.bias + mix.bias[rows])
        first, mix = model.decoder.conv_in, model.post_quant_conv
        kept = torch.einsum("kjhw,ji->kihw", first.weight, mix.weight[:, keep, 0, 0])
        pruned.decoder.conv_in.weight.copy_(kept)
        wanted = torch.einsum("kjhw,j->khw", first.weight, mix.bias).reshape(-1, 1)
        taps = kept.permute(0, 2, 3, 1).reshape(-1, len(keep))
        offset = torch.linalg.lstsq(taps, wanted).solution
        left = (wanted - taps @ offset).reshape(len(kept), -1).sum(dim=1)
        pruned.decoder.conv_in.bias.copy_(first.bias + left)
        pruned.post_quant_conv.bias.copy_(offset[:, 0])
    for identity in (pruned.quant_conv, pruned.post_quant_conv):
        nn.init.dirac_(identity.weight)
    nn.init.zeros_(pruned.quant_conv.bias)
    return pruned.eval()
