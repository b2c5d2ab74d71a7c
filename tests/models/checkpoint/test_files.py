from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from csd.export.sources import weights_sha256
from csd.models.checkpoint import read_state_dict
from csd.runtime import CsdError
from csd.runtime.bundle.manifest import file_sha256

TENSORS = {f"t.{i}": torch.full((2, 3), float(i)) for i in range(5)}
FIRST = "model-00001-of-00002"
SECOND = "model-00002-of-00002"


def _shards(folder, form="safetensors", index=True):
    parts = {f"{FIRST}.{form}": ["t.0", "t.1"], f"{SECOND}.{form}": ["t.2", "t.3", "t.4"]}
    for file, names in parts.items():
        held = {name: TENSORS[name] for name in names}
        if form == "safetensors":
            save_file(held, folder / file)
        else:
            torch.save(held, folder / file)
    places = {name: file for file, names in parts.items() for name in names}
    path = folder / f"model.{form}.index.json"
    if index:
        path.write_text(json.dumps({"metadata": {"total_size": 120}, "weight_map": places}))
    return path


def _same(read):
    return set(read) == set(TENSORS) and all(torch.equal(read[n], t) for n, t in TENSORS.items())


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("given", ["index", "folder", "folder without index"])
def test_shards_are_read_by_their_index_and_by_the_folder(form, given, tmp_path):
    index = _shards(tmp_path, form, index=given != "folder without index")
    assert _same(read_state_dict(index if given == "index" else tmp_path))


def test_half_precision_shards_are_converted(tmp_path):
    for number in (1, 2):
        held = {f"t.{i}": TENSORS[f"t.{i}"].half() for i in range(5) if i % 2 == number - 1}
        save_file(held, tmp_path / f"model-0000{number}-of-00002.safetensors")
    assert _same(read_state_dict(tmp_path))


@pytest.mark.parametrize("name", ["weights.safetensors", "diffusion_pytorch_model.safetensors"])
def test_the_one_file_of_a_folder_is_read(name, tmp_path):
    save_file(TENSORS, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("weights")
    assert _same(read_state_dict(tmp_path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: (d / f"{SECOND}.safetensors").unlink(), "which is not beside it: fetch all of"),
        (lambda d: _edit(d, {"t.9": f"{FIRST}.safetensors"}), "lacks 't.9', which its index"),
        (lambda d: _edit(d, {"t.0": "../elsewhere.safetensors"}), "names a shard '../elsewhere"),
        (lambda d: _edit(d, {"t.0": str(d / "x")}), "which is no file beside it"),
        (lambda d: _edit(d, {"t.0": 3}), "names a shard 3"),
        (lambda d: (d / f"{FIRST}.safetensors").write_text("<html>"), "is a web page"),
        (lambda d: (d / f"{FIRST}.safetensors").write_bytes(b"x" * 7), "is a text"),
        (lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {}}'),
         "is an index of no tensors"),
        (lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1, "a":'
         ' 2}}'), "'a' stands twice"),
    ],
)  # fmt: skip
def test_shards_that_do_not_fit_their_index_are_named(change, told, tmp_path):
    index = _shards(tmp_path)
    change(tmp_path)
    with pytest.raises(CsdError, match=re.escape(told)):
        read_state_dict(index)


def _edit(folder, places):
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"].update(places)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["a.pth", "b.pth"], "holds several files of weights: give one of 'a.pth', 'b.pth'"),
        ([f"{FIRST}.safetensors"], "holds 1 of 2 shards: fetch all of them"),
        (["notes.txt"], "holds no weights: give a folder"),
    ],
)
def test_a_folder_that_does_not_say_what_is_meant_is_refused(files, told, tmp_path):
    for file in files:
        save_file(TENSORS, tmp_path / file)
    with pytest.raises(CsdError, match=re.escape(told)):
        read_state_dict(tmp_path)


def test_the_hash_of_shards_is_of_all_of_them(tmp_path):
    index = _shards(tmp_path)
    whole = weights_sha256(index)
    assert whole == weights_sha256(tmp_path)
    save_file({"t.0": TENSORS["t.0"], "t.1": TENSORS["t.4"]}, tmp_path / f"{FIRST}.safetensors")
    assert weights_sha256(index) != whole
    alone = tmp_path / f"{SECOND}.safetensors"
    assert weights_sha256(alone) == file_sha256(alone)
