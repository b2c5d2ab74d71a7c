from __future__ import annotations

import io
import re
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from csd.models import load_mar
from csd.models.checkpoint import read_state_dict
from csd.runtime import CsdError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(400)}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1664000000\n"


def _zip(name: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(name, b"x")
    return held.getvalue()


def _tar() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return held.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty; fetch the file again"),
        (b"<!DOCTYPE html><title>Sign\nin</title>", "it is a web page ('Sign in'), not weights"),
        (b"\n  <HTML><body>404", "it is a web page, not weights; the address asked for"),
        (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "it is a web page"),
        (POINTER.encode(), "it is a Git LFS pointer, not weights; run git lfs pull"),
        (b"Entry not found", "it is a text ('Entry not found'), not weights; fetch"),
        (b'{"error": "gated"}', "it is a JSON document ('error'), not weights"),
        (b"\x1f\x8b\x08rest", "it is compressed (gzip), not weights; unpack it first"),
        (b"GGUF\x03\x00", "it is a GGUF file, not weights"),
        (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file, not weights"),
        (_tar(), "it is a tar archive, not weights; unpack it first"),
        (_zip("weights.pth"), "it is an archive of 'weights.pth', not weights; unpack it first"),
        (_zip("m/constants.pkl"), "it is a TorchScript program, not weights"),
        (b"PK\x03\x04", "it is truncated or damaged"),
        (b"\x93" * 999, "it is neither safetensors nor a file of PyTorch"),
        (b"I1\n.", "it is a text ('I1 .'), not weights"),
        (b"\x80\x02.", "it is damaged or truncated"),
        (b"\x80\x04\x95", "it was saved with pickle protocol 4, and 2 is read; save it again"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_a_download_leaves_is_called_what_it_is(content, told, suffix, tmp_path, recwarn):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CsdError, match=re.escape(f"cannot read weights {path}: {told}")) as error:
        read_state_dict(path)
    assert str(error.value).isprintable()
    assert not recwarn.list, "a warning would be a second line on stderr"


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("name", ["weights.pth", "UPPER.SAFETENSORS", "f" * 64])
def test_the_form_is_in_the_content(form, name, tmp_path):
    path = tmp_path / name
    if form == "safetensors":
        save_file(TENSORS, path)
    else:
        torch.save({"model": TENSORS}, path, _use_new_zipfile_serialization=form == "zip")
    read = read_state_dict(path)
    assert list(read) == ["a", "b"]
    np.testing.assert_array_equal(read["a"], TENSORS["a"])


@pytest.mark.parametrize("path", ["gone.pth", "gone.safetensors", "empty folder"])
def test_missing_weights_are_named_with_a_remedy(path, tmp_path, config):
    (tmp_path / "empty folder").mkdir()
    with pytest.raises(CsdError, match=rf"{path}( holds)?.*: give (the path|a folder)"):
        load_mar(tmp_path / path, config)


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated_weights_are_reported_in_one_line(form, share, tmp_path):
    path = tmp_path / f"weights.{form}"
    if form == "pth":
        torch.save({"model": TENSORS}, path)
    else:
        save_file(TENSORS, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: max(1, int(share * len(raw)))])
    with pytest.raises(CsdError, match=r"cannot read weights .*; fetch the file again") as error:
        read_state_dict(path)
    if share > 0.1:
        assert "truncated" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", range(8))
def test_garbage_is_reported_in_one_line(seed, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(np.random.default_rng(seed).bytes(500))
    with pytest.raises(CsdError, match="cannot read weights") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_flipped_bytes_never_raise_anything_but_our_own_error(form, tmp_path):
    path = tmp_path / "weights.pth"
    if form == "safetensors":
        save_file({"a": torch.ones(3)}, path)
    else:
        torch.save({"model": {"a": torch.ones(3)}}, path,
                   _use_new_zipfile_serialization=form == "zip")  # fmt: skip
    raw, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        damaged = bytearray(raw)
        for place in rng.integers(len(raw), size=4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except CsdError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert refused > 25
