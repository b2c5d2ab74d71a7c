from __future__ import annotations

import argparse
import collections
import copyreg
import os
import pickle

import numpy as np
import pytest
import torch

from csd.models.checkpoint import find_mar, read_state_dict
from csd.models.checkpoint.pickles import read_pickle
from csd.runtime import CsdError


def training_file(state, other, **changes) -> dict:
    """What the released training script saves (`util/misc.py:save_model` of MAR)."""
    model = torch.nn.ParameterDict({name.replace(".", "/"): t for name, t in other.items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return {
        "model": collections.OrderedDict(other),
        "model_ema": collections.OrderedDict(
            (name, torch.nn.Parameter(tensor)) for name, tensor in state.items()
        ),
        "optimizer": optimizer.state_dict(),
        "epoch": 399,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 1},
        "args": argparse.Namespace(
            model="mar_base", img_size=4, lr=np.float64(1e-4), seed=np.int32(7), betas=(0.9, 0.95),
            output_dir="out", resume=None, cached=True, key=b"", tags=frozenset({"a"}),
        ),
        **changes,
    }  # fmt: skip


def test_what_the_released_training_writes_is_read(state, other, tmp_path):
    torch.save(training_file(state, other), tmp_path / "checkpoint-last.pth")
    found = find_mar(tmp_path / "checkpoint-last.pth")
    assert (found.kind, found.key) == ("ema", "model_ema")
    assert found.arguments["lr"] == 1e-4
    assert found.arguments["seed"] == 7
    read = found.float32()
    assert list(read) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(read[name], tensor)
        assert not read[name].requires_grad


@pytest.mark.parametrize(
    "scalar",
    [np.float16(0.5), np.float32(1.25), np.float64(-3.5), np.int8(-3), np.uint64(2**63),
     np.bool_(True), np.array([7.0], dtype=">f8")[0], np.complex64(1 + 2j), np.str_("bag"),
     np.str_("")],
    ids=lambda scalar: str(scalar.dtype),
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_become_numbers_of_python(scalar, zipped, tmp_path):
    torch.save({"x": scalar}, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    value = read_pickle(tmp_path / "file", mapped=zipped)["x"]
    assert value == scalar
    assert type(value) in (float, int, bool, complex, str)


class _Calls:
    """A pickle that calls a function when it is read."""

    def __init__(self, function, *args) -> None:
        self._made = (function, args)

    def __reduce__(self):
        return self._made


class _Object:
    """A class of a stranger: pickled by its name."""


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["model", "args", "optimizer"])
@pytest.mark.parametrize("payload", ["touch", "system", "open", "eval"])
def test_code_in_a_pickle_is_named_and_does_not_run(payload, place, zipped, state, tmp_path):
    witness = tmp_path / "witness"
    evil, named = {
        "touch": (_Calls(witness.touch), "getattr"),
        "system": (_Calls(os.system, f"touch {witness}"), "posix.system"),
        "open": (_Calls(open, str(witness), "w"), "io.open"),
        "eval": (_Calls(eval, f"open({str(witness)!r}, 'w')"), "eval"),
    }[payload]
    content = {"model": state, place: evil}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CsdError, match="code, which is not run") as error:
        read_state_dict(tmp_path / "weights.pth")
    print(error.value)
    assert named in str(error.value)
    assert str(error.value).isprintable()
    assert not witness.exists()


def test_the_payloads_would_write_the_file(tmp_path):
    witness = tmp_path / "witness"
    pickle.loads(pickle.dumps(_Calls(open, str(witness), "w"))).close()
    assert witness.exists()


@pytest.mark.parametrize(
    "stranger",
    [
        _Object(),
        np.zeros(3),
        _Calls(argparse.ArgumentParser),
        _Calls(copyreg._reconstructor, _Object, object, None),
    ],
    ids=["object", "array", "parser", "reconstructor"],
)
def test_other_objects_are_refused_by_name(stranger, state, tmp_path):
    torch.save({"model": state, "args": stranger}, tmp_path / "weights.pth")
    with pytest.raises(CsdError, match=r"it holds [\w., ]+: code, which is not run"):
        read_state_dict(tmp_path / "weights.pth")


def test_numpy_types_of_other_things_than_numbers_are_refused(tmp_path):
    class Odd:
        def __reduce__(self):
            return (np.dtype, ("O", False, True))

    torch.save({"model": {"a": torch.ones(2)}, "args": Odd()}, tmp_path / "weights.pth")
    with pytest.raises(CsdError, match="cannot read weights"):
        read_state_dict(tmp_path / "weights.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_another_protocol_is_told(zipped, state, tmp_path):
    torch.save({"model": state}, tmp_path / "weights.pth", pickle_protocol=4,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    with pytest.raises(CsdError, match="saved with pickle protocol 4, and 2 is read; save it"):
        read_state_dict(tmp_path / "weights.pth")


def test_what_others_allowed_before_is_as_it_was(state, tmp_path):
    torch.save({"model": state}, tmp_path / "weights.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        before = torch.serialization.get_safe_globals()
        read_state_dict(tmp_path / "weights.pth")
        assert set(torch.serialization.get_safe_globals()) == set(before)
