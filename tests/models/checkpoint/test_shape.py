from __future__ import annotations

import argparse
import dataclasses

import pytest
import torch

from csd.models import MAR, MARConfig
from csd.models.checkpoint.shape import Hints, Shape, infer_config
from csd.runtime import CsdError
from csd.runtime.config import PRESETS


def _shape(config: MARConfig) -> Shape:
    with torch.device("meta"):
        return Shape.of(MAR(config).state_dict(), "weights.pth")


def _inferred(config: MARConfig, **hints) -> MARConfig:
    return infer_config(_shape(config), "weights.pth", Hints(**hints))[0]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_by_its_weights(name):
    shape = _shape(PRESETS[name])
    assert shape.differences(PRESETS[name]) == []
    config, source = infer_config(shape, "weights.pth", Hints())
    assert config == PRESETS[name]
    assert source == f"its shapes are those of {name}"


@pytest.mark.parametrize(
    "changes",
    [
        {"img_size": 512},
        {"img_size": 512, "patch_size": 2},
        {"class_num": 10, "buffer_size": 16},
        {"diffloss_d": 3},
        {"img_size": 16},
    ],
)
def test_variants_of_a_preset_have_its_heads(changes):
    config = dataclasses.replace(PRESETS["mar_base"], **changes)
    assert _inferred(config) == config


def test_sizes_of_no_preset_ask_for_the_heads(config):
    latent = dataclasses.replace(config, img_size=64, vae_stride=16, patch_size=1, vae_embed_dim=16)
    with pytest.raises(
        CsdError,
        match=r"weights.pth is of no released model's size \(encoder 1 x 8, decoder 1 x 8\), and "
        r"weights do not tell the heads of attention: give --draft-heads",
    ):
        _inferred(latent, heads_option="--draft-heads")
    assert _inferred(latent, heads=(2, 2)) == latent
    with pytest.raises(CsdError, match="encoder_embed_dim 8 is not a multiple"):
        _inferred(latent, heads=(3, 2))


def test_the_decoder_tells_channels_and_stride(config):
    latent = dataclasses.replace(config, img_size=64, vae_stride=8, patch_size=2, vae_embed_dim=4)
    assert _inferred(latent, heads=(2, 2), latent_channels=4, stride=8) == latent
    assert _inferred(latent, heads=(2, 2)) == dataclasses.replace(
        latent, vae_embed_dim=16, patch_size=1, vae_stride=16
    )  # what the released constructor has where it is not told
    with pytest.raises(CsdError, match="16 tokens of 16 channels, which does not tell"):
        _inferred(latent, heads=(2, 2), latent_channels=3)


def test_the_decoder_of_other_latents_does_not_change_what_a_preset_is():
    config = _inferred(PRESETS["mar_base"], latent_channels=4, stride=8)
    assert config == PRESETS["mar_base"]  # and the decoder is refused (`check_parts`)


@pytest.mark.parametrize(("width", "ratio"), [(64, 2.67), (12, 3.3), (10, 4.0), (96, 8 / 3)])
def test_a_ratio_is_what_makes_the_hidden_width(width, ratio, config):
    latent = dataclasses.replace(
        config, img_size=64, vae_stride=16, patch_size=1, vae_embed_dim=16, mlp_ratio=ratio,
        encoder_embed_dim=width, decoder_embed_dim=width,
    )  # fmt: skip
    assert _shape(latent).differences(latent) == []
    found = _inferred(latent, heads=(2, 2))
    assert int(width * found.mlp_ratio) == int(width * ratio)


def test_arguments_of_the_training_tell_what_shapes_do_not(config):
    args = argparse.Namespace(
        model="some_fork", img_size=4, vae_stride=1, patch_size=2, vae_embed_dim=1,
        encoder_num_heads=2, decoder_num_heads=4, num_sampling_steps="50", lr=0.1,
    )  # fmt: skip
    wanted = dataclasses.replace(config, num_sampling_steps=50, decoder_num_heads=4)
    assert _inferred(config, arguments=vars(args)) == wanted


def test_arguments_of_the_training_do_not_change_what_shapes_tell(config):
    args = {"model": "mar_huge", "diffloss_d": 12, "class_num": 1000, "vae_stride": 1,
            "vae_embed_dim": 1, "img_size": 256}  # fmt: skip
    assert _inferred(config, arguments=args, heads=(2, 2)) == config


def test_a_released_checkpoints_arguments_keep_the_preset():
    args = {"model": "mar_large", "img_size": 256, "vae_stride": 16, "num_sampling_steps": "25"}
    wanted = dataclasses.replace(PRESETS["mar_large"], num_sampling_steps=25)
    assert _inferred(PRESETS["mar_large"], arguments=args) == wanted
    args["num_sampling_steps"] = "ddim25"  # of another sampler
    assert _inferred(PRESETS["mar_large"], arguments=args) == PRESETS["mar_large"]
