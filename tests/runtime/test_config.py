from __future__ import annotations

import dataclasses
import json

import pytest

from csd.runtime import ConfigError, MARConfig

from ..helpers import DATA, tiny_config


def test_the_released_constructor_arguments_are_a_configuration():
    config = tiny_config("target")
    assert config.num_sampling_steps == 20  # a string in the file, as released
    assert (config.grid_size, config.seq_len, config.token_dim) == (4, 16, 16)
    assert config.latent_shape == (16, 4, 4)
    assert config.condition_dim == 64
    assert config.modulation_dim == (3 * 3 + 2) * 96


# The arguments of `MAR.__init__` and of the parser of `main_mar.py`, as released, with the values
# that `vars(args)` has once a distributed run has begun.
CONSTRUCTOR = {
    "img_size": 256, "vae_stride": 16, "patch_size": 1, "encoder_embed_dim": 1024,
    "encoder_depth": 16, "encoder_num_heads": 16, "decoder_embed_dim": 1024, "decoder_depth": 16,
    "decoder_num_heads": 16, "mlp_ratio": 4.0, "vae_embed_dim": 16,
    "norm_layer": "functools.partial(<class 'torch.nn.LayerNorm'>, eps=1e-06)",
    "mask_ratio_min": 0.7, "label_drop_prob": 0.1, "class_num": 1000, "attn_dropout": 0.1,
    "proj_dropout": 0.1, "buffer_size": 64, "diffloss_d": 3, "diffloss_w": 1024,
    "num_sampling_steps": "100", "diffusion_batch_mul": 4, "grad_checkpointing": False,
}  # fmt: skip
SCRIPT = {
    "batch_size": 16, "epochs": 400, "model": "mar_base", "img_size": 256,
    "vae_path": "pretrained_models/vae/kl16.ckpt", "vae_embed_dim": 16, "vae_stride": 16,
    "patch_size": 1, "num_iter": 64, "num_images": 50000, "cfg": 1.0, "cfg_schedule": "linear",
    "label_drop_prob": 0.1, "eval_freq": 40, "save_last_freq": 5, "online_eval": False,
    "evaluate": False, "eval_bsz": 64, "weight_decay": 0.02, "grad_checkpointing": False,
    "lr": 0.0008, "blr": 0.0001, "min_lr": 0.0, "lr_schedule": "constant", "warmup_epochs": 100,
    "ema_rate": 0.9999, "mask_ratio_min": 0.7, "grad_clip": 3.0, "attn_dropout": 0.1,
    "proj_dropout": 0.1, "buffer_size": 64, "diffloss_d": 6, "diffloss_w": 1024,
    "num_sampling_steps": "100", "diffusion_batch_mul": 1, "temperature": 1.0,
    "data_path": "./data/imagenet", "class_num": 1000, "output_dir": "out", "log_dir": "out",
    "device": "cuda", "seed": 1, "resume": "", "start_epoch": 0, "num_workers": 10,
    "pin_mem": True, "world_size": 8, "local_rank": -1, "dist_on_itp": False, "dist_url": "env://",
    "use_cached": False, "cached_path": "", "rank": 0, "gpu": 0, "distributed": True,
    "dist_backend": "nccl",
}  # fmt: skip


def test_every_argument_of_the_released_constructor_and_script_is_taken(tmp_path):
    for name, values in (("constructor", CONSTRUCTOR), ("script", SCRIPT)):
        (tmp_path / name).write_text(json.dumps(values), encoding="utf-8")
    assert MARConfig.load(tmp_path / "constructor") == MARConfig()
    assert MARConfig.load(tmp_path / "script") == MARConfig.load("mar_base")


@pytest.mark.parametrize(
    ("layer", "epsilon"),
    [("LayerNorm", 1e-5), ("nn.LayerNorm(eps=1e-06)", 1e-6), (None, 1e-6)],
)
def test_a_norm_layer_is_its_epsilon(layer, epsilon):
    assert MARConfig.from_dict({"norm_layer": layer}).norm_eps == epsilon


def test_patches_multiply_channels_and_divide_tokens():
    config = MARConfig(img_size=48, vae_stride=3, patch_size=4, vae_embed_dim=5)
    assert (config.grid_size, config.seq_len, config.token_dim) == (4, 16, 80)
    assert config.latent_shape == (5, 16, 16)


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "head_depth", "head_width"),
    [
        ("mar_base", 768, 12, 12, 6, 1024),
        ("mar_large", 1024, 16, 16, 8, 1280),
        ("mar_huge", 1280, 20, 16, 12, 1536),
    ],
)
def test_presets_have_the_published_sizes(name, width, depth, heads, head_depth, head_width):
    config = MARConfig.load(name)
    for part in ("encoder", "decoder"):
        sizes = [
            getattr(config, f"{part}_{field}") for field in ("embed_dim", "depth", "num_heads")
        ]
        assert sizes == [width, depth, heads]
    assert (config.diffloss_d, config.diffloss_w) == (head_depth, head_width)
    assert (config.seq_len, config.token_dim, config.class_num) == (256, 16, 1000)
    assert (config.buffer_size, config.beta_schedule) == (64, "cosine")


@pytest.mark.parametrize("role", ["target", "draft"])
def test_zoo_presets_make_49_tokens_of_16_channels(role):
    config = MARConfig.load(f"fashion_mnist_{role}")
    assert (config.seq_len, config.token_dim, config.class_num) == (49, 16, 10)
    assert config.image_kind == "pixel"


def test_a_configuration_survives_json(tmp_path):
    config = MARConfig.load("mar_base")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    assert MARConfig.load(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_depth": 0}, "encoder_depth is 0: give a whole number from 1 to 1024"),
        ({"encoder_depth": 2.0}, "encoder_depth is 2.0"),
        ({"encoder_depth": True}, "encoder_depth is True"),
        ({"encoder_depth": None}, "encoder_depth is None"),
        ({"class_num": "ten"}, "class_num is 'ten'"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0: give a number above 0"),
        ({"mlp_ratio": "4"}, "mlp_ratio is '4'"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio is nan"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio is inf"),
        ({"norm_eps": -1e-6}, "norm_eps is -1e-06"),
        ({"latent_scale": float("inf")}, "latent_scale is inf"),
        ({"encoder_num_heads": 5}, "encoder_embed_dim 64 is not a multiple of encoder_num_heads 5"),
        ({"decoder_num_heads": 7}, "decoder_embed_dim 64 is not a multiple of decoder_num_heads 7"),
        ({"patch_size": 3}, "img_size 64 is not a multiple of vae_stride x patch_size = 48"),
        (
            {"num_sampling_steps": 1001},
            "num_sampling_steps is 1001: give a whole number from 1 to 1000",
        ),
        ({"num_sampling_steps": "ddim50"}, "num_sampling_steps is 'ddim50'"),
        ({"num_sampling_steps": "²"}, "num_sampling_steps is '²'"),
        ({"num_sampling_steps": "0"}, "num_sampling_steps is 0"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid': give one of cosine, linear"),
        ({"beta_schedule": ["cosine"]}, "beta_schedule is"),
        ({"image_kind": "video"}, "image_kind is 'video': give one of latent, pixel"),
        ({"image_kind": "pixel"}, r"vae_embed_dim 1 \(grey\) or 3 \(RGB\), not 16"),
        (
            {"depth": 3, "width": 4},
            "unknown configuration key 'depth'.*; known keys: .*decoder_depth",
        ),
        (
            {"encoder_dept": 3},
            r"unknown configuration key 'encoder_dept' \(did you mean encoder_depth\?\)",
        ),
        ({"label_drop_probe": 0.1}, r"'label_drop_probe' \(did you mean label_drop_prob\?\)"),
        ({"zzz": 1}, "unknown configuration key 'zzz'; known keys: beta_schedule"),
        ({"model": "mar_tiny"}, "model is 'mar_tiny': give one of mar_base, mar_large, mar_huge"),
        ({"model": ["mar_base"]}, "model is .*: give one of mar_base"),
        (
            {"model": "mar_base"},
            "encoder_embed_dim is 64, and model mar_base has 768: leave one out",
        ),
        ({"norm_layer": "BatchNorm"}, "norm_layer is 'BatchNorm': give LayerNorm, or norm_eps"),
        ({"norm_layer": 3}, "norm_layer is 3: give"),
    ],
)
def test_a_bad_value_is_refused_by_name(change, message):
    values = {**tiny_config("target").to_dict(), **change}
    with pytest.raises(ConfigError, match=message):
        MARConfig.from_dict(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read configuration .*: give|give a JSON object"),
        ("{", "give a JSON object"),
        ("[1, 2]", "is not a JSON object of constructor arguments"),
        ('"mar_base"', "is not a JSON object"),
        ("null", "is not a JSON object"),
        ('{"target": {}}', "unknown configuration key 'target'"),
        ('{"img_size": 256, "img_size": 512}', "'img_size' stands twice"),
        ('{"mlp_ratio": NaN}', "NaN is no number of JSON"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        MARConfig.load(tmp_path / "config.json")


def test_a_binary_file_is_no_configuration():
    with pytest.raises(ConfigError, match="cannot read configuration"):
        MARConfig.load(DATA / "target.pth")


def test_an_unknown_name_is_answered_with_the_presets(tmp_path):
    with pytest.raises(ConfigError, match="'mar_tiny': give a JSON file or one of mar_base"):
        MARConfig.load("mar_tiny")
    with pytest.raises(ConfigError, match="no configuration"):
        MARConfig.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_embed_dim": 2**40}, "encoder_embed_dim is 1099511627776: give a whole number"),
        ({"encoder_depth": 10**9}, "encoder_depth is 1000000000: give"),
        ({"class_num": 10**12}, "class_num is 1000000000000: give"),
        ({"encoder_depth": 10**5000}, "encoder_depth is <int>: give"),
        ({"beta_schedule": "x" * 10**6}, "beta_schedule is 'xxx"),
        ({"image_kind": "\x1b[31mred\u202e"}, r"image_kind is '\\x1b\[31mred\\u202e': give"),
        ({"norm_eps": float("nan")}, "norm_eps is nan: give a number above 0"),
        ({"latent_scale": 1e300}, "latent_scale is 1e\\+300: give"),
        ({"mlp_ratio": 10**5000}, "mlp_ratio is <int>: give"),
        ({"img_size": 16384}, "img_size 16384 makes 1048576 tokens an image: give a smaller one"),
        (
            {"encoder_embed_dim": 32768, "encoder_depth": 64},
            "has 825 billion parameters: give smaller widths or depths, for at most 20 billion",
        ),
    ],
)
def test_huge_sizes_are_refused_in_a_short_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        MARConfig.from_dict({**MARConfig().to_dict(), **changes})
    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


def test_every_number_of_a_configuration_has_a_limit():
    from csd.runtime.config import MOST

    numbers = {f.name for f in dataclasses.fields(MARConfig) if f.type in ("int", "float")}
    assert set(MOST) == numbers - {"cfg_t_min", "cfg_t_max"}  # shares: an interval of 0 to 1


def test_a_configuration_that_is_nested_too_deep_is_one_line(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot read configuration"):
        MARConfig.load(tmp_path / "deep.json")
