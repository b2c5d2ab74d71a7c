from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from csd.models.kl_decoder import load_kl_decoder
from csd.models.training.autoencoder import (
    AutoencoderRecipe,
    load_autoencoder,
    posterior_of,
    psnr_of_error,
    reconstruct,
    reconstruction_psnr,
    train_autoencoder,
)
from csd.models.training.kl_encoder import KLAutoencoder
from csd.models.training.loop import RunFiles
from csd.runtime import CsdError

from .test_kl_decoder import random_kl_state

RECIPE = AutoencoderRecipe(
    steps=4, decay_steps=2, batch=2, warmup=1, latent_channels=3,
    widths=(32, 32), encoder_widths=(32, 64),
)  # fmt: skip
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder")
    return train_autoencoder(RECIPE, IMAGES, _files(folder), save_every=1, log_every=2), folder


def _files(folder):
    folder.mkdir(exist_ok=True)
    return RunFiles(folder / "checkpoint", folder / "log.jsonl")


def _save(model, path):
    torch.save({"model": model.state_dict()}, path)
    return path


def test_names_are_those_of_the_released_autoencoders():
    names = set(KLAutoencoder(4, (32, 64, 64), (32, 32, 64)).state_dict())
    decoder = set(random_kl_state((1, 2, 2), (), blocks=1))
    assert {name for name in names if name.startswith(("decoder.", "post_quant_conv."))} == decoder
    for name in (
        "encoder.conv_in.weight",
        "encoder.down.0.block.0.norm1.weight",
        "encoder.down.1.downsample.conv.weight",
        "encoder.down.2.block.0.nin_shortcut.weight",
        "encoder.mid.attn_1.q.weight",
        "encoder.norm_out.bias",
        "encoder.conv_out.weight",
        "quant_conv.bias",
    ):
        assert name in names
    assert "encoder.down.2.downsample.conv.weight" not in names


def test_an_image_has_a_posterior_of_a_quarter_of_its_size_and_comes_back_in_its_own():
    model = KLAutoencoder(5, (32, 32, 64), (32, 32, 64))
    mean, logvar = model.encode(torch.zeros(2, 3, 16, 24))
    assert mean.shape == logvar.shape == (2, 5, 4, 6)
    assert model(mean).shape == (2, 3, 16, 24)


def test_the_decoder_of_a_trained_autoencoder_loads_and_makes_grey_images(trained, tmp_path):
    model, _ = trained
    decoder = load_kl_decoder(_save(model, tmp_path / "kl.ckpt"))
    assert decoder.upscale == 2
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        image = decoder(latents)
        np.testing.assert_array_equal(image, model(latents))
    assert image.std() > 0
    np.testing.assert_array_equal(image[:, 0], image[:, 1])
    np.testing.assert_array_equal(image[:, 0], image[:, 2])


def test_an_autoencoder_is_read_back_with_its_sizes(trained, tmp_path):
    model, _ = trained
    found = load_autoencoder(_save(model, tmp_path / "kl.ckpt"))
    np.testing.assert_array_equal(reconstruct(found, IMAGES), reconstruct(model, IMAGES))


def test_a_file_that_is_no_autoencoder_is_refused(tmp_path):
    torch.save({"model": random_kl_state((1, 2), ())}, tmp_path / "kl.ckpt")
    with pytest.raises(CsdError, match="holds no autoencoder: give the file that training wrote"):
        load_autoencoder(tmp_path / "kl.ckpt")


def test_training_resumes_to_the_weights_of_an_uninterrupted_run(trained, tmp_path):
    whole, _ = trained
    every = {"save_every": 1, "log_every": 2}
    files = _files(tmp_path / "parts")
    train_autoencoder(dataclasses.replace(RECIPE, steps=2, decay_steps=0), IMAGES, files, **every)
    resumed = train_autoencoder(RECIPE, IMAGES, files, **every)
    for name, tensor in whole.state_dict().items():
        np.testing.assert_array_equal(tensor, resumed.state_dict()[name], err_msg=name)


def test_an_autoencoder_of_another_recipe_is_refused(trained):
    _, folder = trained
    with pytest.raises(CsdError, match=r"kl_weight = 0.004, not 0.1"):
        train_autoencoder(dataclasses.replace(RECIPE, kl_weight=0.1), IMAGES, _files(folder))


@pytest.mark.slow
def test_training_learns_to_reconstruct(tmp_path):
    recipe = dataclasses.replace(
        RECIPE, steps=150, decay_steps=50, batch=6, learning_rate=5e-3, kl_weight=1e-5
    )
    model = train_autoencoder(recipe, IMAGES, _files(tmp_path / "run"))
    blank = psnr_of_error(float((IMAGES - IMAGES.mean()).square().mean()))
    assert reconstruction_psnr(model, IMAGES) > blank + 5


def test_a_heavy_divergence_makes_the_posterior_the_prior(tmp_path):
    recipe = dataclasses.replace(
        RECIPE, steps=60, decay_steps=20, batch=6, learning_rate=1e-2, kl_weight=100.0
    )
    model = train_autoencoder(recipe, IMAGES, _files(tmp_path / "run"))
    mean, std = posterior_of(model, IMAGES)
    assert mean.shape == std.shape == (6, 3, 4, 4)
    assert mean.abs().mean() < 0.3
    assert abs(std - 1).mean() < 0.3


def test_the_ratio_is_that_of_the_range_of_pixels():
    assert psnr_of_error(4.0) == 0.0
    assert psnr_of_error(0.04) == pytest.approx(20.0)
    assert math.isclose(psnr_of_error(1.0), 20 * math.log10(2))
