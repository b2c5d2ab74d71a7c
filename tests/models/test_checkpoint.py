from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from csd.models import MARConfig, load_mar
from csd.models.checkpoint import read_state_dict
from csd.runtime import CsdError

from ..helpers import DATA, tiny_config

CONFIG = MARConfig(
    img_size=4, vae_stride=1, patch_size=2, vae_embed_dim=1, class_num=2, buffer_size=2,
    encoder_embed_dim=8, encoder_depth=1, encoder_num_heads=2, decoder_embed_dim=8,
    decoder_depth=1, decoder_num_heads=2, diffloss_d=1, diffloss_w=8,
)  # fmt: skip


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    from ..mar_reference import random_state

    return random_state(CONFIG, 0)


def _write(kind: str, state, path):
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "bare":
        torch.save(state, path)
    else:
        torch.save({kind: state, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("kind", ["model_ema", "model", "state_dict", "bare", "safetensors"])
def test_every_form_of_released_weights_loads(kind, state, tmp_path):
    suffix = "safetensors" if kind == "safetensors" else "pth"
    model = load_mar(_write(kind, state, tmp_path / f"weights.{suffix}"), CONFIG)
    assert not model.training
    loaded = model.state_dict()
    assert set(loaded) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(loaded[name], tensor)


def test_the_averaged_weights_are_preferred(state, tmp_path):
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"model": other, "model_ema": state}, tmp_path / "weights.pth")
    loaded = load_mar(tmp_path / "weights.pth", CONFIG).state_dict()
    np.testing.assert_array_equal(loaded["z_proj.weight"], state["z_proj.weight"])


def test_half_precision_weights_become_float32(state, tmp_path):
    half = {name: tensor.half() for name, tensor in state.items()}
    model = load_mar(_write("safetensors", half, tmp_path / "weights.safetensors"), CONFIG)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self):
            return (witness.touch, ())

    torch.save({"model": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(CsdError, match=re.escape(str(tmp_path / "weights.pth"))):
        load_mar(tmp_path / "weights.pth", CONFIG)
    assert not witness.exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_missing_weights_are_named_with_a_remedy(suffix, tmp_path):
    with pytest.raises(CsdError, match=rf"no weights at .*gone\.{suffix}: give the path"):
        read_state_dict(tmp_path / f"gone.{suffix}")


def test_a_directory_is_not_weights(tmp_path):
    with pytest.raises(CsdError, match="no weights at"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_reported_in_one_line(suffix, share, state, tmp_path):
    path = _write("safetensors" if suffix == "safetensors" else "model", state, tmp_path / suffix)
    path = path.rename(tmp_path / f"weights.{suffix}")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(CsdError, match=r"cannot read weights .*; fetch the file again") as error:
        load_mar(path, CONFIG)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("seed", range(12))
def test_garbage_is_reported_in_one_line(suffix, seed, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(np.random.default_rng(seed).bytes(500))
    with pytest.raises(CsdError, match="cannot read weights") as error:
        load_mar(path, CONFIG)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "head",
    [b"\x80\x02.", b"\x80\x04\x95", b"<html>404</html>\n", b"PK\x03\x04", b"I1\n.", b"(lp0\n.",
     b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_that_are_something_else_are_reported_in_one_line(suffix, head, tmp_path, recwarn):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(head)
    with pytest.raises(CsdError, match=re.escape(str(path))) as error:
        load_mar(path, CONFIG)
    assert "\n" not in str(error.value)
    assert not recwarn.list, "a warning would be a second line on stderr"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_flipped_bytes_never_raise_anything_but_our_own_error(zipped, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.ones(3)}}, path, _use_new_zipfile_serialization=zipped)
    raw, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        damaged = bytearray(raw)
        for place in rng.integers(len(raw), size=4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except CsdError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("content", [{}, [1, 2], {"model": {}}, {"model": {"epoch": 3}}, 7])
def test_a_file_without_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CsdError, match="holds no tensors"):
        load_mar(tmp_path / "weights.pth", CONFIG)


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("diffloss_w", 12, "diffloss.net.time_embed.mlp.0.weight"),
        ("class_num", 3, "class_emb.weight"),
        ("buffer_size", 3, "encoder_pos_embed_learned"),
        ("encoder_depth", 2, "encoder_blocks.1.norm1.weight"),
        ("diffloss_d", 2, "diffloss.net.res_blocks.1.in_ln.weight"),
    ],
)
def test_weights_of_another_shape_are_refused_by_tensor_name(field, value, name, state, tmp_path):
    path = _write("model", state, tmp_path / "weights.pth")
    with pytest.raises(CsdError, match=re.escape(f"{name} ")):
        load_mar(path, dataclasses.replace(CONFIG, **{field: value}))


def test_tensors_that_the_configuration_does_not_have_are_refused_by_name(state, tmp_path):
    path = _write("model", {**state, "teacher.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(CsdError, match=r"has teacher\.weight"):
        load_mar(path, CONFIG)


def test_weights_of_the_draft_do_not_pass_for_the_target():
    with pytest.raises(CsdError, match="the configuration asks for"):
        load_mar(DATA / "draft.pth", tiny_config("target"))


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
