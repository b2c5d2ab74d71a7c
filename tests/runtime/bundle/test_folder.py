"""Files of a bundle lie in its folder, or in the blobs of the hub's cache that it is part of."""

from __future__ import annotations

import hashlib
import os
import shutil

import numpy as np
import onnx
import pytest

from csd.export.cli import main as export
from csd.runtime import Bundle, BundleError, GenerateOptions
from csd.runtime.backends.external_data import linked_weights
from csd.runtime.backends.onnx_library import load_onnxruntime
from csd.runtime.bundle.onnx_file import read_onnx

from ...helpers import edit_manifest, failure, forge_hashes


def hub_cache(bundle, cache):
    """Lay a bundle out as a model hub's cache does: links into one folder of blobs."""
    snapshot = cache / "snapshots" / "0123"
    (cache / "blobs").mkdir(parents=True)
    for path in [path for path in bundle.rglob("*") if path.is_file()]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, cache / "blobs" / digest)
        link = snapshot / path.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(cache / "blobs" / digest, link.parent))
    return snapshot


def weights_beside(bundle):
    """Move the larger weights of the target's graphs into files beside them."""
    for path in bundle.glob("target_*.onnx"):
        model = onnx.load(path)
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data",
                        size_threshold=256)  # fmt: skip

    def change(values):
        for graph in values["graphs"].values():
            name = next(iter(graph["files"]))
            if name.startswith("target_"):
                graph["files"][f"{name}.data"] = "0"

    edit_manifest(bundle, change)
    forge_hashes(bundle)


def latents(path, **kwargs):
    options = GenerateOptions(mode="target", num_iter=4)
    with Bundle.open(path, **kwargs).session() as session:
        return session.generate([1], options).latents


OUTSIDE = [
    "../other.onnx", "/etc/passwd", "a/../../x.onnx", "./x.onnx", "a//x.onnx", "x.onnx/", "..",
    "a\\..\\x.onnx", "C:x.onnx", "C:/x.onnx", "x\0.onnx", "x\n.onnx", "x\x1b[31m.onnx", "",
    "~/x.onnx", "//server/x.onnx", "file:x.onnx", "x" * 2000, "\u202ex.onnx", " x.onnx",
]  # fmt: skip
PLACES = {
    "a graph": lambda values, name: values["graphs"]["decoder"].update(files={name: "0" * 64}),
    "weights": lambda values, name: values["graphs"]["decoder"]["files"].update({name: "0" * 64}),
    "calibration": lambda values, name: values["calibration"].update(file=name),
    "a variant": lambda values, name: values["variants"].update(
        fp16={"decoder": {**values["graphs"]["decoder"], "files": {name: "0" * 64}}}
    ),
    "an engine": lambda values, name: values["engines"].append(
        {
            "graph": "decoder", "backend": "tensorrt", "precision": "fp32", "file": name,
            "sha256": "0" * 64, "size": 1, "library": "10.3", "platform": "linux-x86_64",
            "compute_capabilities": ["8.7"], "build_seconds": 1.0, "fingerprint": {},
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_path_that_is_no_plain_relative_name_is_refused(make_bundle, place):
    bundle = make_bundle()
    before = (bundle / "manifest.json").read_bytes()
    for name in OUTSIDE:
        (bundle / "manifest.json").write_bytes(before)
        edit_manifest(bundle, lambda values, name=name: PLACES[place](values, name))
        with pytest.raises(BundleError, match=r"wanted a plain relative name .*again") as error:
            Bundle.open(bundle)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 600 + len(str(bundle))


def test_a_rebuild_goes_through_the_same_checks(make_bundle, capsys):
    bundle = make_bundle(lambda values: PLACES["an engine"](values, "../x.engine"))
    argv = ["--rebuild", bundle, "--backend", "tensorrt"]
    assert "wanted a plain relative name" in failure(export, argv, capsys)


def _never(*args):
    raise AssertionError("a file was read")


@pytest.mark.parametrize("name", ["decoder.onnx", "calibration.npz", "manifest.json"])
@pytest.mark.parametrize("kind", ["file", "device", "loop", "folder", "fifo"])
def test_a_link_that_leaves_the_bundle_is_refused_before_anything_is_read(
    make_bundle, tmp_path, monkeypatch, name, kind
):
    bundle = make_bundle()
    outside = tmp_path / "outside"
    if kind == "file":
        (bundle / name).rename(outside)
        (bundle / name).symlink_to(outside)
    else:
        (bundle / name).unlink()
        if kind == "fifo":
            os.mkfifo(bundle / name)
        elif kind == "folder":
            (bundle / name).mkdir()
        else:
            (bundle / name).symlink_to("/dev/zero" if kind == "device" else name)
    monkeypatch.setattr("csd.runtime.bundle.verification.file_sha256", _never)
    monkeypatch.setattr("csd.runtime.bundle.checks.read_onnx", _never)
    message = {"file": "leaves the bundle", "device": "leaves the bundle", "loop": "cannot look at"}
    with pytest.raises(BundleError, match=message.get(kind, "is not a regular file")):
        Bundle.open(bundle)


def test_a_folder_in_the_bundle_that_is_a_link_out_of_it_is_refused(make_bundle, tmp_path):
    bundle = make_bundle(lambda values: PLACES["an engine"](values, "engines/x.engine"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.engine").touch()
    (bundle / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"engines/x\.engine is a link that leaves the bundle"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["libcsd_plugins.so", "kernels/kernels.json"])
def test_what_the_runtime_takes_without_the_manifest_naming_it_lies_inside_too(
    make_bundle, tmp_path, name
):
    bundle = make_bundle()
    (tmp_path / "outside").touch()
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="leaves the bundle"):
        Bundle.open(bundle)


@pytest.mark.parametrize("file", ["../../x.cubin", "/x.cubin", 3])
def test_kernels_are_named_inside_their_folder(make_bundle, file):
    bundle = make_bundle()
    (bundle / "kernels").mkdir()
    text = '{"cubins": [{"arch": 86, "file": %s}]}' % (f'"{file}"' if isinstance(file, str) else 3)
    (bundle / "kernels" / "kernels.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"file is .*, wanted a plain relative name .*: remove"):
        Bundle.open(bundle)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "other.data", "", "a/../x"])
def test_weights_that_a_graph_takes_from_elsewhere_are_refused(make_bundle, tmp_path, location):
    bundle = make_bundle()
    weights_beside(bundle)
    (tmp_path / "secret").touch()
    path = bundle / "target_head_step.onnx"
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    forge_hashes(bundle)
    with pytest.raises(BundleError, match=r"takes weights from .*, which the manifest does not"):
        Bundle.open(bundle)


def test_a_reference_to_another_file_is_found_wherever_onnx_allows_one(tmp_path):
    def tensor(name):
        made = onnx.TensorProto(name=name, data_type=1, dims=[1], data_location=1)
        made.external_data.add(key="location", value=name)
        return made

    inner = onnx.helper.make_graph([], "inner", [], [], [tensor("inner")])
    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"), dims=[1])
    node = onnx.helper.make_node("If", [], ["y"], then_branch=inner)
    node.attribute.append(onnx.helper.make_attribute("one", tensor("attribute")))
    node.attribute.append(onnx.helper.make_attribute("many", [tensor("many")]))
    node.attribute.append(onnx.helper.make_attribute("graphs", [inner]))
    node.attribute.append(onnx.helper.make_attribute("sparse", sparse))
    graph = onnx.helper.make_graph(
        [node], "g", [], [onnx.helper.make_tensor_value_info("y", 1, ["B", 3])],
        [tensor("initializer")], sparse_initializer=[sparse],
    )  # fmt: skip
    function = onnx.helper.make_function("d", "f", [], [], [node], [])
    model = onnx.helper.make_model(graph, functions=[function])
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    found = read_onnx(path)
    assert {tensor.location for tensor in found.external} == {
        "inner", "values", "indices", "attribute", "many", "initializer",
    }  # fmt: skip
    assert found.outputs == {"y": ("float32", ("B", 3))}


def test_a_hubs_cache_is_recognised_and_runs(make_bundle, tmp_path):
    bundle = make_bundle()
    weights_beside(bundle)
    snapshot = hub_cache(bundle, tmp_path / "models--me--csd")
    np.testing.assert_array_equal(latents(snapshot), latents(bundle))

    path = snapshot / "target_head_step.onnx"
    weights = linked_weights(load_onnxruntime(), path)
    model = onnx.load(bundle / path.name)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    assert len(weights) > 5
    for name, value in weights.items():
        np.testing.assert_array_equal(value.numpy(), onnx.numpy_helper.to_array(tensors[name]))
    assert not linked_weights(load_onnxruntime(), bundle / path.name)


def test_a_bundle_in_a_folder_of_a_hubs_repository_is_recognised(make_bundle, tmp_path):
    (tmp_path / "repository").mkdir()
    shutil.copytree(make_bundle(), tmp_path / "repository" / "bundle")
    Bundle.open(hub_cache(tmp_path / "repository", tmp_path / "cache") / "bundle")


@pytest.mark.parametrize("change", ["blobs is a link", "elsewhere", "other store"])
def test_what_only_looks_like_a_hubs_cache_opens_on_request_only(make_bundle, tmp_path, change):
    cache = tmp_path / "cache"
    snapshot = hub_cache(make_bundle(), cache)
    if change == "blobs is a link":
        (cache / "blobs").rename(tmp_path / "moved")
        (cache / "blobs").symlink_to(tmp_path / "moved")
    elif change == "elsewhere":
        (snapshot / "decoder.onnx").resolve().rename(cache / "other.onnx")
        (snapshot / "decoder.onnx").unlink()
        (snapshot / "decoder.onnx").symlink_to(cache / "other.onnx")
    else:
        (cache / "blobs").rename(cache / "store")
        for link in snapshot.iterdir():
            target = os.readlink(link).replace("blobs", "store")
            link.unlink()
            link.symlink_to(target)
    with pytest.raises(BundleError, match=r"leaves the bundle .*: cp -rL .* and open the copy"):
        Bundle.open(snapshot)
    assert Bundle.open(snapshot, links=True).manifest
    shutil.copytree(snapshot, tmp_path / "followed")  # what cp -rL does
    assert Bundle.open(tmp_path / "followed").manifest


def test_a_rebuild_does_not_write_through_links_into_a_cache(make_bundle, tmp_path):
    from csd.export.engines.rebuild import rebuild
    from csd.runtime.errors import ExportError

    snapshot = hub_cache(make_bundle(), tmp_path / "cache")
    with pytest.raises(ExportError, match=r"manifest\.json is a link, .*: cp -rL .* give the copy"):
        rebuild(snapshot, None, (), print, None)
