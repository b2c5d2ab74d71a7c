from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from csd.models import MAR, load_mar
from csd.models.checkpoint import load_into, read_state_dict
from csd.runtime import CsdError

from ...helpers import DATA, tiny_config


def _write(kind: str, state, path):
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "bare":
        torch.save(state, path)
    else:
        torch.save({kind: state, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("kind", ["model_ema", "model", "state_dict", "bare", "safetensors"])
def test_every_form_of_released_weights_loads(kind, state, config, tmp_path):
    model = load_mar(_write(kind, state, tmp_path / "weights"), config)
    assert not model.training
    loaded = model.state_dict()
    assert set(loaded) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(loaded[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["safetensors", "model"])
def test_weights_of_another_type_become_float32(kind, dtype, state, config, tmp_path):
    typed = {name: tensor.to(dtype) for name, tensor in state.items()}
    model = load_mar(_write(kind, typed, tmp_path / "weights"), config)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    np.testing.assert_array_equal(model.z_proj.weight.detach(), typed["z_proj.weight"].float())


def test_transposed_and_shared_tensors_load_as_they_are(state, config, tmp_path):
    odd = dict(state)
    odd["z_proj.weight"] = state["z_proj.weight"].T.contiguous().T
    odd["encoder_norm.bias"] = odd["decoder_norm.bias"]
    torch.save(odd, tmp_path / "weights")
    loaded = load_mar(tmp_path / "weights", config).state_dict()
    np.testing.assert_array_equal(loaded["z_proj.weight"], state["z_proj.weight"])
    np.testing.assert_array_equal(loaded["encoder_norm.bias"], state["decoder_norm.bias"])


@pytest.mark.parametrize("content", [{}, [1, 2], {"model": {}}, {"model": {"epoch": 3}}, 7])
def test_a_file_without_tensors_is_refused(content, config, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CsdError, match="holds no tensors"):
        load_mar(tmp_path / "weights.pth", config)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder_depth": 2}, "encoder_depth is 2, the weights have 1"),
        ({"decoder_depth": 3}, "decoder_depth is 3, the weights have 1"),
        (
            {"encoder_embed_dim": 12, "decoder_embed_dim": 16},
            "encoder_embed_dim is 12, the weights have 8; decoder_embed_dim is 16, the weights "
            "have 8",
        ),
        ({"mlp_ratio": 2.0}, "mlp_ratio is 2, the weights have 4"),
        ({"class_num": 1000}, "class_num is 1000, the weights have 2"),
        ({"buffer_size": 3}, "buffer_size is 3, the weights have 2"),
        ({"diffloss_d": 2}, "diffloss_d is 2, the weights have 1"),
        ({"diffloss_w": 12}, "diffloss_w is 12, the weights have 8"),
        (
            {"img_size": 8},
            r"img_size is 8 \(16 tokens\), the weights have 4 tokens, as img_size 4 makes",
        ),
        (
            {"vae_embed_dim": 16},
            "vae_embed_dim 16 and patch_size 2 make tokens of 64 channels, the weights have 4",
        ),
    ],
)
def test_weights_of_another_shape_are_refused_by_the_field(changes, told, state, config, tmp_path):
    path = _write("model", state, tmp_path / "weights.pth")
    with pytest.raises(CsdError, match=f"does not fit the configuration: {told}: give"):
        load_mar(path, dataclasses.replace(config, **changes))


def test_weights_of_the_draft_do_not_pass_for_the_target():
    with pytest.raises(CsdError, match="encoder_embed_dim is 64, the weights have 48"):
        load_mar(DATA / "draft.pth", tiny_config("target"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.update({"teacher.weight": torch.zeros(1)}), "has teacher.weight, which"),
        (lambda s: s.pop("mask_token"), "lacks mask_token [1, 1, 8]"),
        (lambda s: s.pop("z_proj.weight"), "holds no MAR model: it lacks z_proj.weight and has"),
        (
            lambda s: s.update({"decoder_norm.bias": torch.zeros(3)}),
            "decoder_norm.bias is [3], wanted [8]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, told, state, config, tmp_path):
    change(state)
    with pytest.raises(CsdError, match=re.escape(told)):
        load_mar(_write("model", state, tmp_path / "weights.pth"), config)


def test_a_decoder_is_no_mar_model():
    with pytest.raises(CsdError, match=r"vae\.ckpt holds no MAR model: it lacks .* and has "):
        load_mar(DATA / "vae.ckpt", tiny_config("target"))


@pytest.mark.parametrize("kind", ["complex", "sparse", "quantised"])
def test_tensors_that_are_no_plain_floats_are_refused(kind, tmp_path):
    tensor = torch.ones(3, 3)
    odd = {
        "complex": lambda: tensor.to(torch.complex64),
        "sparse": tensor.to_sparse,
        "quantised": lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    }[kind]()
    torch.save({"model": {"a": tensor, "b": odd}}, tmp_path / "odd.pth")
    with pytest.raises(CsdError, match="b is complex, quantised or sparse: give the weights"):
        read_state_dict(tmp_path / "odd.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named_whoever_reads_them(value, state, config, tmp_path):
    state["diffloss.net.input_proj.weight"].view(-1)[-1] = value
    path = _write("model", state, tmp_path / "sick.pth")
    told = r"diffloss\.net\.input_proj\.weight holds values that are not finite"
    with pytest.raises(CsdError, match=told):
        load_mar(path, config)
    with pytest.raises(CsdError, match=told):
        load_into(MAR(config), read_state_dict(path), path)


def test_large_weights_whose_sum_overflows_are_finite(state, config, tmp_path):
    state["mask_token"].fill_(3e38)
    load_mar(_write("model", state, tmp_path / "weights.pth"), config)


def test_the_order_of_the_parameters_is_that_of_the_released_model():
    released = torch.load(DATA / "target.pth", weights_only=True)["model_ema"]
    names = [name for name, _ in MAR(tiny_config("target")).named_parameters()]
    print(json.dumps(names[:6]))
    assert names == list(released)
