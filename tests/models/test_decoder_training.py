from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from csd.models.training.autoencoder import posterior_of, reconstruct
from csd.models.training.classifier import Classifier
from csd.models.training.decoder import DecoderRecipe, feature_error, train_decoder
from csd.models.training.kl_encoder import KLAutoencoder
from csd.models.training.latents import Latents
from csd.models.training.loop import RunFiles

COARSE = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
IMAGES = COARSE.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
RECIPE = DecoderRecipe(steps=30, decay_steps=10, batch=4, warmup=2, learning_rate=5e-3)


@pytest.fixture
def classifier():
    torch.manual_seed(3)
    return Classifier().eval()


@pytest.fixture
def autoencoder():
    torch.manual_seed(4)
    return KLAutoencoder(2, (32, 32, 32), (32, 32, 32)).eval()


def _train(autoencoder, classifier, folder, recipe=RECIPE):
    folder.mkdir(exist_ok=True)
    latents = Latents(*posterior_of(autoencoder, IMAGES))
    latents = dataclasses.replace(latents, std=torch.full_like(latents.mean, 0.01))
    files = RunFiles(folder / "checkpoint", folder / "log.jsonl")
    return train_decoder(autoencoder, classifier, recipe, IMAGES, latents, files, save_every=5)


def test_the_error_of_features_is_a_share_of_their_mean_square(classifier):
    assert feature_error(classifier, IMAGES, IMAGES) == 0
    with torch.no_grad():
        goals, found = classifier.activations(IMAGES), classifier.activations(-IMAGES)
        wanted = [
            float(((f - g) ** 2).sum() / (g**2).sum()) for f, g in zip(found, goals, strict=True)
        ]
        assert float(feature_error(classifier, -IMAGES, IMAGES)) == pytest.approx(np.mean(wanted))
    assert [tuple(a.shape[1:]) for a in goals] == [(24, 32, 32), (48, 16, 16), (96, 8, 8)]
    assert all((a >= 0).all() for a in goals)


def test_the_decoder_learns_and_the_encoder_stays(autoencoder, classifier, tmp_path):
    before = {k: v.clone() for k, v in autoencoder.state_dict().items()}
    error = (reconstruct(autoencoder, IMAGES) - IMAGES).square().mean()
    trained = _train(autoencoder, classifier, tmp_path / "run")
    after = trained.state_dict()
    for name, tensor in before.items():
        if name.startswith(("encoder.", "quant_conv.")):
            np.testing.assert_array_equal(after[name], tensor, err_msg=name)
    assert (reconstruct(trained, IMAGES) - IMAGES).square().mean() < 0.8 * error
    image = trained(torch.randn(1, 2, 8, 8))
    np.testing.assert_array_equal(image[:, 0].detach(), image[:, 2].detach())


def test_training_resumes_to_the_weights_of_an_uninterrupted_run(autoencoder, classifier, tmp_path):
    start = {k: v.clone() for k, v in autoencoder.state_dict().items()}
    recipe = dataclasses.replace(RECIPE, steps=10, decay_steps=5)
    whole = _train(autoencoder, classifier, tmp_path / "whole", recipe).state_dict()
    for steps, decay in ((5, 0), (10, 5)):
        autoencoder.load_state_dict(start)
        recipe = dataclasses.replace(RECIPE, steps=steps, decay_steps=decay)
        resumed = _train(autoencoder, classifier, tmp_path / "parts", recipe).state_dict()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(tensor, resumed[name], err_msg=name)
