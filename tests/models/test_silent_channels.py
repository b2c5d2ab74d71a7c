from __future__ import annotations

import numpy as np
import pytest
import torch

from csd.models.training.autoencoder import posterior_of
from csd.models.training.kl_encoder import KLAutoencoder
from csd.models.training.silent_channels import nats_by_channel, without_silent_channels
from csd.runtime import NumericsError

IMAGES = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
TELLING = [3, 1]  # of five channels, most telling first


@pytest.fixture
def model():
    """An autoencoder whose posterior says something in two channels of five."""
    torch.manual_seed(1)
    model = KLAutoencoder(5, (32, 32), (32, 64)).eval()
    with torch.no_grad():
        for channel in set(range(5)) - set(TELLING):
            for row in (channel, channel + 5):  # mean 0 and log variance 0: the prior
                model.quant_conv.weight[row].zero_()
                model.quant_conv.bias[row].zero_()
        model.quant_conv.bias[3] = 2.0
        model.quant_conv.bias[1 + 5] = -3.0
        torch.nn.init.normal_(model.post_quant_conv.bias)
    return model


def test_the_divergence_of_a_channel_is_that_of_its_gaussians(model):
    mean, std = posterior_of(model, IMAGES)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, std), normal(0, 1)).mean((0, 2, 3))
    np.testing.assert_allclose(nats_by_channel(model, IMAGES), wanted, rtol=1e-4, atol=1e-6)


def test_channels_that_say_something_keep_their_posterior(model):
    pruned = without_silent_channels(model, IMAGES)
    assert pruned.latent_channels == 2
    for found, whole in zip(posterior_of(pruned, IMAGES), posterior_of(model, IMAGES), strict=True):
        np.testing.assert_allclose(found, whole[:, TELLING], rtol=1e-4, atol=1e-5)


def test_what_is_decoded_is_what_zeros_in_the_silent_channels_gave(model):
    # Of the decoder's first convolution, away from the border: the rest of it is the same.
    pruned = without_silent_channels(model, IMAGES)
    kept = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    whole = torch.zeros(2, 5, 8, 8)
    whole[:, TELLING] = kept
    with torch.inference_mode():
        wanted = model.decoder.conv_in(model.post_quant_conv(whole))
        found = pruned.decoder.conv_in(pruned.post_quant_conv(kept))
    inside = (..., slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(found[inside], wanted[inside], rtol=1e-4, atol=1e-5)
    assert (found - wanted).abs().max() < wanted.abs().max()
    same = set(model.state_dict()) - {
        f"{name}.{kind}"
        for name in ("encoder.conv_out", "quant_conv", "post_quant_conv", "decoder.conv_in")
        for kind in ("weight", "bias")
    }
    for name in same:
        np.testing.assert_array_equal(pruned.state_dict()[name], model.state_dict()[name])


def test_one_channel_stays_where_none_says_anything(model):
    assert without_silent_channels(model, IMAGES, least=1e9).latent_channels == 1


def test_a_divergence_that_is_no_number_is_not_taken_for_a_silent_channel(model):
    with torch.no_grad():
        model.quant_conv.bias[2] = float("nan")
    with pytest.raises(NumericsError, match="channel 2 of the autoencoder has a divergence"):
        without_silent_channels(model, IMAGES)
