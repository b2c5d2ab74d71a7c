from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from csd.models import MAR, load_mar
from csd.models.patches import patchify, unpatchify
from csd.runtime import MARConfig

from ..helpers import DATA, assert_parity, tiny_config
from ..mar_reference import Reference, random_state, unpatchified

# Nothing here is a default, and the widths of encoder and decoder differ.
OTHER = MARConfig(
    img_size=45, vae_stride=9, patch_size=1, vae_embed_dim=5,
    encoder_embed_dim=48, encoder_depth=3, encoder_num_heads=3,
    decoder_embed_dim=40, decoder_depth=1, decoder_num_heads=5,
    mlp_ratio=2.5, class_num=7, buffer_size=3, diffloss_d=1, diffloss_w=24, norm_eps=1e-5,
)  # fmt: skip


def _loaded(config: MARConfig, tmp_path, seed: int = 1) -> tuple[MAR, Reference]:
    state = random_state(config, seed)
    torch.save({"model": state}, tmp_path / "weights.pth")
    return load_mar(tmp_path / "weights.pth", config), Reference(config, state)


def _inputs(config: MARConfig, batch: int, rng: torch.Generator):
    tokens = torch.randn(batch, config.seq_len, config.token_dim, generator=rng)
    return tokens, torch.randint(config.class_num + 1, (batch,), generator=rng)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_condition_of_the_fixtures_is_reproduced(recorded, tiny_models, role):
    args = (torch.from_numpy(recorded[f"z_{name}"]) for name in ("tokens", "mask"))
    with torch.inference_mode():
        z = tiny_models[role].condition(*args, torch.from_numpy(recorded["labels"]))
    assert_parity(z, recorded[f"z_{role}"], f"z of {role}")


def test_unconditional_condition_of_the_fixtures_is_reproduced(recorded, tiny_models):
    args = (torch.from_numpy(recorded[f"z_{name}"]) for name in ("tokens", "mask"))
    nobody = torch.full((3,), tiny_config("target").class_num)
    with torch.inference_mode():
        z = tiny_models["target"].condition(*args, nobody)
    assert_parity(z, recorded["z_target_uncond"], "unconditional z")


def test_head_of_the_fixtures_is_reproduced(recorded, tiny_models):
    args = [torch.from_numpy(recorded[f"head_{name}"]) for name in ("x", "t", "z")]
    with torch.inference_mode():
        out = torch.cat(tiny_models["target"].head(*args), dim=1)
    assert_parity(out, recorded["head_out_target"], "head")


def test_guided_head_of_the_fixtures_is_reproduced(recorded, tiny_models):
    x, t, z = (torch.from_numpy(recorded[f"head_{name}"]) for name in ("x", "t", "z"))
    with torch.inference_mode():
        eps, v = tiny_models["target"].head(torch.cat([x[:6], x[:6]]), t, z)
    guided = eps[6:] + 2.5 * (eps[:6] - eps[6:])
    out = torch.cat([torch.cat([guided, guided]), v], dim=1)
    assert_parity(out, recorded["head_out_target_cfg"], "guided head")


@pytest.mark.parametrize("role", ["target", "draft"])
def test_the_reference_of_these_tests_gives_the_recorded_conditions(recorded, role):
    state = torch.load(DATA / f"{role}.pth", weights_only=True)["model_ema"]
    args = (torch.from_numpy(recorded[f"z_{name}"]) for name in ("tokens", "mask"))
    z = Reference(tiny_config(role), state).condition(*args, torch.from_numpy(recorded["labels"]))
    assert_parity(z, recorded[f"z_{role}"], f"z of {role}")


def test_the_reference_of_these_tests_gives_the_recorded_heads(recorded):
    state = torch.load(DATA / "target.pth", weights_only=True)["model_ema"]
    args = [torch.from_numpy(recorded[f"head_{name}"]) for name in ("x", "t", "z")]
    out = torch.cat(Reference(tiny_config("target"), state).head(*args), dim=1)
    assert_parity(out, recorded["head_out_target"], "head")


@pytest.mark.parametrize(
    "config",
    [
        OTHER,
        dataclasses.replace(OTHER, img_size=96, vae_stride=8, patch_size=2, vae_embed_dim=4),
        dataclasses.replace(OTHER, img_size=2, vae_stride=1, patch_size=2, vae_embed_dim=1),
    ],
    ids=["odd", "patches", "one token"],
)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_condition_of_another_configuration_equals_the_boolean_mask_definition(
    config, share, tmp_path
):
    model, reference = _loaded(config, tmp_path)
    rng = torch.Generator().manual_seed(0)
    tokens, labels = _inputs(config, 3, rng)
    unknown = round(share * config.seq_len)
    mask = torch.zeros(3, config.seq_len)
    for row in mask:
        row[torch.randperm(config.seq_len, generator=rng)[:unknown]] = 1
    with torch.inference_mode():
        z = model.condition(tokens, mask, labels)
    assert_parity(z, reference.condition(tokens, mask, labels), "z")


def test_images_that_know_different_numbers_of_tokens_do_not_disturb_each_other(tmp_path):
    model, reference = _loaded(OTHER, tmp_path)
    rng = torch.Generator().manual_seed(0)
    tokens, labels = _inputs(OTHER, 4, rng)
    mask = torch.ones(4, OTHER.seq_len)
    for row, known in enumerate((0, 1, 11, 25)):
        mask[row, torch.randperm(OTHER.seq_len, generator=rng)[:known]] = 0
    with torch.inference_mode():
        z = model.condition(tokens, mask, labels)
    for row in range(4):
        one = slice(row, row + 1)
        alone = reference.condition(tokens[one], mask[one], labels[one])
        assert_parity(z[one], alone, f"z of image {row}")


def test_values_at_unknown_positions_are_ignored(tmp_path):
    model, _ = _loaded(OTHER, tmp_path)
    tokens, labels = _inputs(OTHER, 2, torch.Generator().manual_seed(0))
    mask = torch.zeros(2, OTHER.seq_len)
    mask[:, ::2] = 1
    with torch.inference_mode():
        z = model.condition(tokens, mask, labels)
        other = model.condition(torch.where(mask[..., None] == 1, torch.nan, tokens), mask, labels)
    np.testing.assert_array_equal(z, other)


def test_head_of_another_configuration_equals_the_plain_definition(tmp_path):
    config = dataclasses.replace(OTHER, diffloss_d=4, diffloss_w=56)
    model, reference = _loaded(config, tmp_path)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(9, config.token_dim, generator=rng)
    z = torch.randn(9, config.condition_dim, generator=rng)
    t = torch.tensor([0, 1, 2, 10, 499, 500, 900, 998, 999])
    with torch.inference_mode():
        out = torch.cat(model.head(x, t, z), dim=1)
    assert_parity(out, torch.cat(reference.head(x, t, z), dim=1), "head")


@pytest.mark.parametrize(("patch", "channels"), [(1, 3), (2, 1), (3, 4)])
def test_patches_are_laid_out_as_released_and_come_back(patch, channels):
    tokens = torch.randn(2, 16, channels * patch**2, generator=torch.Generator().manual_seed(0))
    latents = unpatchify(tokens, patch, channels)
    np.testing.assert_array_equal(latents, unpatchified(tokens.numpy(), patch, channels))
    np.testing.assert_array_equal(patchify(latents, patch), tokens)


def test_an_initialised_head_predicts_zero_and_every_parameter_is_set():
    torch.manual_seed(0)
    model = MAR(OTHER)
    model.initialize()
    x, z = torch.randn(4, OTHER.token_dim), torch.randn(4, OTHER.condition_dim)
    with torch.inference_mode():
        eps, v = model.head(x, torch.tensor([0, 5, 500, 999]), z)
    assert eps.abs().max() == 0
    assert v.abs().max() == 0
    for name in ("encoder_pos_embed_learned", "mask_token", "fake_latent"):
        assert 0 < model.state_dict()[name].std() < 0.1
