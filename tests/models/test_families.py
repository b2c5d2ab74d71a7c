from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from csd.models import load_mar
from csd.models.families import FAMILIES, config_of, load_config, presets
from csd.models.patches import patchify
from csd.runtime import FixedNoise, GenerateOptions
from csd.runtime.errors import ConfigError, WeightsError
from csd.tools.bench.eager import EagerSampler

from ..helpers import DATA, assert_parity

VARIANTS = ("mar_512", "mar_patch2", "mar_one_token")


def load(name):
    with np.load(DATA / name / "reference.npz") as arrays:
        recorded = dict(arrays)
    config = load_config(DATA / name / "config.json")
    return load_mar(DATA / name / "weights.pth", config), recorded


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_mar_reproduce_the_recorded_conditions(name):
    model, recorded = load(name)
    tokens = patchify(torch.from_numpy(recorded["z_latents"]), model.config.patch_size)
    with torch.inference_mode():
        mask, labels = (torch.from_numpy(recorded[key]) for key in ("z_mask", "labels"))
        z = model.condition(tokens, mask, labels).numpy()
    assert_parity(z[:, recorded["z_at"]], recorded["z"], f"z of {name}")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_variants_of_mar_reproduce_the_recorded_decodes(name, cfg):
    model, recorded = load(name)
    noise = FixedNoise(recorded["orders"], recorded["noise"], recorded["inter_noise"])
    options = GenerateOptions(num_iter=int(recorded["num_iter"]), cfg=cfg, head="sequential")
    latents = EagerSampler(model, threads=1).generate(recorded["labels"], options, noise)
    assert_parity(latents, recorded[f"ar_latents_{cfg}"], f"latents of {name}")


def test_emigm_reproduces_the_recorded_conditions_and_head():
    model, recorded = load("emigm")
    given = {name: torch.from_numpy(array) for name, array in recorded.items()}
    with torch.inference_mode():
        tokens, mask, labels = (given[name] for name in ("z_tokens", "z_mask", "labels"))
        z = model.condition(tokens, mask, labels).numpy()
        nobody = torch.full_like(labels, model.config.class_num)
        z_uncond = model.condition(tokens, mask, nobody).numpy()
        out = model.head(given["head_x"], given["head_t"], given["head_z"])
    assert_parity(z, recorded["z"], "z")
    assert_parity(z_uncond, recorded["z_uncond"], "z without a class")
    assert_parity(torch.cat(out, dim=1).numpy(), recorded["head_out"], "head between timesteps")


def emigm_files(tmp_path, change):
    """The recorded model with changed tensors, loaded."""
    state = torch.load(DATA / "emigm" / "weights.pth", weights_only=True)["model_ema"]
    change(state)
    torch.save({"model_ema": state}, tmp_path / "changed.pth")
    return load_mar(tmp_path / "changed.pth", load_config(DATA / "emigm" / "config.json")), state


def test_the_tied_weight_is_the_one_that_the_released_code_loads_last(tmp_path):
    model, state = emigm_files(tmp_path, lambda state: None)
    assert not torch.equal(state["fake_latent"], state["mask_token"])  # an average beside it
    assert torch.equal(model.fake_latent, state["mask_token"].float())
    assert torch.equal(model.mask_token[0], state["mask_token"].float())


def test_a_tied_weight_may_be_in_the_file_under_one_name(tmp_path):
    model, state = emigm_files(tmp_path, lambda state: state.pop("mask_token"))
    assert torch.equal(model.fake_latent, state["fake_latent"].float())
    assert torch.equal(model.mask_token[0], state["fake_latent"].float())


def test_a_mask_token_of_its_own_stays(tmp_path):
    own = torch.full((1, 1, 24), 0.25)
    model, state = emigm_files(tmp_path, lambda state: state.update(mask_token=own))
    assert torch.equal(model.mask_token, own)
    assert torch.equal(model.fake_latent, state["fake_latent"].float())


def test_weights_of_another_family_are_refused_by_its_name():
    config = load_config(DATA / "emigm" / "config.json")
    config = dataclasses.replace(config, family="mar")
    with pytest.raises(WeightsError, match=r'of the family emigm.*"family": "emigm"'):
        load_mar(DATA / "emigm" / "weights.pth", config)


def test_a_family_fills_in_how_its_released_code_samples():
    config = config_of({"family": "emigm", "img_size": 64, "use_weighted_loss": True})
    assert (config.num_iter, config.mask_strategy, config.num_sampling_steps) == (16, "exp", 8)
    assert config.solved
    assert (config.cfg_schedule, config.cfg_t_min, config.cfg_t_max) == ("constant", 0.1, 0.3)
    other = config_of({"family": "emigm", "sampling_algo": "ddpm", "num_sampling_steps": "100"})
    assert (other.solved, other.num_sampling_steps) == (False, 100)
    assert config_of(config.to_dict()) == config
    released = config_of({"family": "emigm", "model": "emigm_small", "use_dc_ae": True,
                          "evaluate_multi": False, "diffloss_d": 6})  # fmt: skip
    assert (released.encoder_embed_dim, released.decoder_depth, released.diffloss_d) == (512, 12, 6)
    assert released.latent_scale == 0.3189


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"family": "rar"}, "family is 'rar': give one of mar, emigm"),
        ({"family": ["mar"]}, "give one of mar, emigm"),
        ({"family": "emigm", "use_mae": False}, "use_mae is False: .* family emigm has True"),
        ({"family": "emigm", "use_dc_ae": 1}, "use_dc_ae is 1: .* has False, True"),
        ({"family": "emigm", "model": "mar_base"}, "model is 'mar_base': .* has emigm_xsmall, "),
        ({"family": "emigm", "mask_strategy": "sin"}, "mask_strategy is 'sin': give one of"),
        ({"family": "emigm", "sampling_algo": "euler"}, "give one of ddpm, dpm-solver"),
        ({"cfg_t_min": 0.4, "cfg_t_max": 0.2}, "cfg_t_min and cfg_t_max are 0.4 and 0.2: give"),
        ({"cfg_t_min": "0.1"}, "cfg_t_min and cfg_t_max are '0.1' and 1.0: give"),
        ({"cfg_t_max": float("nan")}, "cfg_t_min and cfg_t_max are 0.0 and nan: give"),
        ({"num_iter": 0}, "num_iter is 0: give a whole number from 1"),
    ],
)
def test_a_configuration_that_no_family_takes_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        config_of(values)


def test_presets_name_their_family_and_load_by_name():
    for name, config in presets().items():
        assert load_config(name) == config
        assert name in FAMILIES[config.family].presets
    published = load_config("emigm_large_512")
    assert (published.seq_len, published.token_dim, published.latent_shape) == (
        256,
        32,
        (32, 16, 16),
    )
