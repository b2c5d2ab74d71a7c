from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from csd.models import load_mar
from csd.models.checkpoint import find_mar, read_state_dict
from csd.runtime import CsdError


def _took(found, wanted) -> bool:
    return all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def _prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "key",
    ["ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model", "params_ema", "EMA",
     "model_state_dict", "state_dict", "module", "model", "params", "net"],
)  # fmt: skip
def test_the_usual_names_are_read(key, state, tmp_path):
    torch.save({key: state, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "w.pth")
    found = find_mar(tmp_path / "w.pth")
    assert _took(found.float32(), state)
    assert found.key == key
    assert found.kind == ("ema" if "ema" in key.lower() else "model")


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (lambda s, o: {"model": o, "model_ema": s}, "model_ema"),
        (lambda s, o: {"state_dict": o, "state_dict_ema": s}, "state_dict_ema"),
        (lambda s, o: {"model": o, "model_ema": list(s.values())}, "model_ema"),
        (lambda s, o: {"model": o, "ema": {"decay": 0.9, "shadow_params": tuple(s.values())}},
         "ema.shadow_params"),
        (lambda s, o: {"model": o, "ema": {"model": s}}, "ema.model"),
        (lambda s, o: {"state_dict": {"model": o, "ema": s}}, "state_dict.ema"),
        (lambda s, o: {**_prefixed(o, "model."), **_prefixed(s, "ema_model.")}, "ema_model"),
        (lambda s, o: {"state_dict": {**_prefixed(o, "model."), **_prefixed(s, "ema_model."),
                                      "step": torch.tensor(3)}}, "state_dict.ema_model"),
        (lambda s, o: {"model": o, "ema": {"module": s, "n_averaged": torch.tensor(5)}},
         "ema.module"),
    ],
)  # fmt: skip
def test_averages_are_taken_where_there_are_any_and_others_when_asked(
    content, key, state, other, config, tmp_path
):
    torch.save(content(state, other), tmp_path / "w.pth")
    found = find_mar(tmp_path / "w.pth")
    assert (found.kind, found.key) == ("ema", key)
    assert found.described() == f"averaged weights ({key})"
    assert _took(found.float32(), state)
    assert _took(load_mar(tmp_path / "w.pth", config, "ema").state_dict(), state)
    assert _took(read_state_dict(tmp_path / "w.pth", key), state)
    assert _took(read_state_dict(tmp_path / "w.pth", "model"), other)


def test_a_list_of_averages_alone_takes_the_names_of_the_model(state, config, tmp_path):
    torch.save({"ema": list(state.values())}, tmp_path / "w.pth")
    assert _took(load_mar(tmp_path / "w.pth", config).state_dict(), state)
    with pytest.raises(CsdError, match=f"ema is a list of {len(state)} tensors, and no names"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda s: {"model": s, "model_ema": {}}, "'model_ema' holds no tensors that csd reads"),
        (lambda s: {"model": s, "ema": [1.0, 2.0]}, "'ema' holds no tensors that csd reads"),
        (lambda s: {"model": s, "ema": list(s.values())[:-1]}, "ema is a list of"),
        (lambda s: {"model": s, "ema": list(s.values())[::-1]}, "in another order than the model"),
        (lambda s: {"model": s, "ema": s, "model_ema": {**s}}, "holds 2 sets of weights of kind"),
        (lambda s: {"mar": s, "epoch": 3}, "(its keys are 'mar', 'epoch'): give --weights KEY"),
        (lambda s: {"optimizer": s}, "its keys are 'optimizer'"),
        (lambda s: [s], "it is a list"),
    ],
)
def test_other_weights_are_never_taken_silently(content, told, state, tmp_path):
    torch.save(content(state), tmp_path / "w.pth")
    with pytest.raises(CsdError, match=re.escape(told)):
        read_state_dict(tmp_path / "w.pth")


def test_a_key_that_csd_does_not_know_can_be_given(state, other, tmp_path):
    torch.save({"mar": state, "model": other, "of": {"us": state}}, tmp_path / "w.pth")
    for key in ("mar", "of.us"):
        assert _took(read_state_dict(tmp_path / "w.pth", key), state)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("ema", "holds no weights 'ema' (its keys are 'model', 'epoch'): give --weights KEY with "
         "one of model"),
        ("state_dict", "holds no weights 'state_dict' (its keys"),
        ("model.x.y", "holds no weights 'model.x.y'"),
        ("epoch", "holds no weights 'epoch'"),
    ],
)  # fmt: skip
def test_weights_that_are_not_there_are_refused_with_the_files_keys(wanted, told, state, tmp_path):
    torch.save({"model": state, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(CsdError, match=re.escape(told)):
        read_state_dict(tmp_path / "w.pth", wanted)


def test_a_file_that_does_not_say_is_not_taken_for_averages(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    found = find_mar(tmp_path / "w.safetensors")
    assert (found.kind, found.key) == (None, "")
    with pytest.raises(CsdError, match="does not say whether they are averages: leave out"):
        read_state_dict(tmp_path / "w.safetensors", "ema")


def test_an_empty_place_of_averages_is_told(state, tmp_path):
    torch.save({"model": state, "model_ema": None}, tmp_path / "w.pth")
    found = find_mar(tmp_path / "w.pth")
    assert found.described() == "weights of the model (model); model_ema is empty"
    assert _took(found.float32(), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.",
                                    "state_dict.model.module.", "my.mar."])  # fmt: skip
def test_wrappers_before_every_name_are_left_out(prefix, state, config, tmp_path):
    torch.save({"model_ema": _prefixed(state, prefix)}, tmp_path / "w.pth")
    loaded = load_mar(tmp_path / "w.pth", config).state_dict()
    assert _took(loaded, state)


def test_compiled_blocks_within_a_model_load(state, config, tmp_path):
    inner = {n.replace("encoder_blocks.0.", "encoder_blocks.0._orig_mod."): t
             for n, t in state.items()}  # fmt: skip
    torch.save(inner, tmp_path / "w.pth")
    assert _took(load_mar(tmp_path / "w.pth", config).state_dict(), state)


def test_a_prefix_of_some_names_is_no_wrapper(state, config, tmp_path):
    state["module.mask_token"] = state.pop("mask_token")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CsdError, match="lacks mask_token"):
        load_mar(tmp_path / "w.pth", config)


def test_two_models_in_one_file_are_not_mixed(state, config, tmp_path):
    torch.save({**_prefixed(state, "a."), **_prefixed(state, "b.")}, tmp_path / "w.pth")
    with pytest.raises(CsdError, match=r"holds z_proj.weight under 'a\.' and 'b\.'"):
        load_mar(tmp_path / "w.pth", config)


def test_the_tensors_of_the_shipped_pair_keep_their_names():
    from csd.models.zoo import ZOO

    found = find_mar(ZOO["fashion-mnist"].weights("draft"))
    np.testing.assert_array_equal(list(found.origin), list(found.origin.values()))
