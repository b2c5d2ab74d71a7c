from __future__ import annotations

import dataclasses
import json
import re
import sys

import numpy as np
import onnx
import pytest

from csd.runtime import (
    BackendError,
    Bundle,
    BundleError,
    CsdError,
    GenerateOptions,
    OptionError,
)
from csd.runtime.bundle.manifest import SCHEMA_VERSION, EngineSpec, Manifest, file_sha256

from ...helpers import NUM_ITER, edit_manifest, forge_hashes, no_draft, tiny_config


def test_an_exported_bundle_opens_and_says_what_is_in_it(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    assert manifest.target == tiny_config("target")
    assert manifest.models["draft"] == tiny_config("draft")
    assert (manifest.head_steps, manifest.max_batch, manifest.max_gamma) == (20, 8, 32)
    assert manifest.makes_images
    assert set(manifest.graphs) == {
        f"{role}.{graph}"
        for role in ("target", "draft")
        for graph in ("backbone", "head_modulation", "head_step")
    } | {"decoder"}


def test_a_manifest_survives_json(tiny_bundle):
    text = (tiny_bundle / "manifest.json").read_text(encoding="utf-8")
    manifest = Manifest.from_json(text)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert json.loads(manifest.to_json()) == json.loads(text)


def test_every_file_of_the_bundle_is_in_the_manifest_with_its_hash(tiny_bundle):
    hashes = Bundle.open(tiny_bundle).manifest.file_hashes
    files = {path.name for path in tiny_bundle.iterdir()} - {"manifest.json"}
    assert set(hashes) == files
    assert all(file_sha256(tiny_bundle / name) == sha for name, sha in hashes.items())


def test_no_bundle_is_answered_with_the_command_that_writes_one(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle at .*: write one with csd-export --zoo"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="no bundle at"):
        Bundle.open(tmp_path / "gone")


def test_a_bundle_of_schema_2_with_weights_inside_its_graphs_is_read(make_bundle, tiny_session):
    bundle = make_bundle()
    for path in bundle.glob("*.onnx"):
        model = onnx.load(path)
        path.with_name(f"{path.name}.data").unlink()
        onnx.save_model(model, path)

    def change(values):
        values["schema_version"] = 2
        for graph in values["graphs"].values():
            graph["files"] = {next(iter(graph["files"])): ""}

    edit_manifest(bundle, change)
    forge_hashes(bundle)
    options = GenerateOptions(num_iter=3, head_steps=4)
    with Bundle.open(bundle).session() as session:
        made = session.generate([3], options, seed=1)
    np.testing.assert_array_equal(made.tokens, tiny_session.generate([3], options, seed=1).tokens)


def test_a_missing_file_is_named(make_bundle):
    bundle = make_bundle()
    (bundle / "draft_head_step.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks draft_head_step\.onnx: export it again"):
        Bundle.open(bundle)


def test_an_altered_file_is_named(make_bundle):
    bundle = make_bundle()
    path = bundle / "decoder.onnx"
    raw = path.read_bytes()
    path.write_bytes(raw[:-99] + bytes([raw[-99] ^ 1]) + raw[-98:])
    with pytest.raises(BundleError, match=r"decoder\.onnx was altered .*: export it again"):
        Bundle.open(bundle).session()


def test_without_hashes_a_file_is_still_read_as_what_it_should_be(make_bundle):
    bundle = make_bundle()
    path = bundle / "calibration.npz"
    path.write_bytes(path.read_bytes() + b"more")
    assert Bundle.open(bundle, verify_files="never").path == bundle
    path = bundle / "decoder.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"decoder\.onnx is not an ONNX file .*export the bundle"):
        Bundle.open(bundle, verify_files="never")


@pytest.mark.parametrize(
    ("policy", "message"),
    [("never", r"decoder\.onnx\.data ends before the weights"), ("once", "was altered")],
)
def test_weights_that_were_cut_off_are_found_when_a_bundle_is_opened(make_bundle, policy, message):
    bundle = make_bundle()
    path = bundle / "decoder.onnx.data"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle, verify_files=policy)


def test_an_engine_that_is_missing_or_altered_is_to_be_built_again(make_bundle):
    engine = EngineSpec(
        "decoder", "tensorrt", "fp32", "x.engine", "0" * 64, 1, "10.3", "linux-x86_64", ("8.7",),
        1.0, {},
    )  # fmt: skip
    bundle = make_bundle(lambda values: values.update(engines=[dataclasses.asdict(engine)]))
    command = f"csd-export --rebuild {bundle} --backend tensorrt --precision fp32"
    with pytest.raises(BundleError, match=re.escape(f"lacks x.engine: {command}")):
        Bundle.open(bundle)
    (bundle / "x.engine").write_bytes(b"other")
    with pytest.raises(BundleError, match=re.escape(f"not the manifest's): {command}")):
        Bundle.open(bundle).check(["x.engine"])


def test_a_future_schema_asks_for_a_newer_csd(make_bundle):
    bundle = make_bundle(lambda values: values.update(schema_version=SCHEMA_VERSION + 1, models=7))
    newer, own = SCHEMA_VERSION + 1, SCHEMA_VERSION
    with pytest.raises(BundleError, match=f"schema {newer}, this csd reads up to {own}: upgrade"):
        Bundle.open(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"text"', "null", "{}", "\x00"])
def test_a_file_that_is_no_manifest_is_refused(make_bundle, text):
    bundle = make_bundle()
    (bundle / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match="is not a manifest: export the bundle again"):
        Bundle.open(bundle)


def test_a_manifest_that_is_not_text_is_refused(make_bundle):
    bundle = make_bundle()
    (bundle / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="cannot read bundle"):
        Bundle.open(bundle)


def _set(*path):
    *keys, last, value = path

    def change(values):
        for key in keys:
            values = values[key]
        values[last] = value

    change.__name__ = f"{'.'.join(path[:-1])} = {value}"
    return change


def _delete(*path):
    *keys, last = path

    def change(values):
        for key in keys:
            values = values[key]
        del values[last]

    change.__name__ = f"no {'.'.join(path)}"
    return change


BACKBONE = ("graphs", "target.backbone")


@pytest.mark.parametrize(
    "change",
    [
        *(_delete(key) for key in ("models", "graphs", "head_steps", "class_names", "parity")),
        _delete("models", "target"),
        _set("models", {}),
        _set("models", []),
        _set("models", "target", 3),
        _set("models", "target", "encoder_depth", "two"),
        _set("models", "target", "unheard_of", 1),
        _set("head_steps", "twenty"),
        _set("head_steps", 0),
        _set("head_steps", 1001),
        _set("max_batch", 0),
        _set("max_batch", 2.5),
        _set("max_gamma", None),
        _set("class_names", 3),
        _set("graphs", []),
        _set("graphs", "target.backbone", None),
        _set(*BACKBONE, "files", {}),
        _set(*BACKBONE, "files", ["target_backbone.onnx"]),
        _set(*BACKBONE, "files", {"target_backbone.onnx": None}),
        _set(*BACKBONE, "files", {"../copy/target_backbone.onnx": "0"}),
        _set(*BACKBONE, "profile", {"B": [1]}),
        _set(*BACKBONE, "profile", {"B": 1}),
        _set(*BACKBONE, "inputs", [{"name": "tokens"}]),
        _set(*BACKBONE, "inputs", 5),
        _set("parity", [{"graph": "target.backbone"}]),
        _set("sources", {"target": "here"}),
        _set("created_by", 4),
        _set("schema_version", "1"),
        _set("schema_version", None),
    ],
    ids=lambda change: change.__name__,
)
def test_a_damaged_manifest_is_one_error_with_a_remedy(make_bundle, change):
    bundle = make_bundle(change)
    with pytest.raises(BundleError, match=r"export (the bundle|it) again|export again") as error:
        Bundle.open(bundle)
    assert str(bundle) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("graph", ["target.backbone", "draft.head_step", "target.head_modulation"])
def test_a_bundle_that_lacks_a_graph_is_refused_by_its_name(make_bundle, graph):
    bundle = make_bundle(_delete("graphs", graph))
    with pytest.raises(BundleError, match=re.escape(f"has no graph {graph}: export it again")):
        Bundle.open(bundle).session()


def test_a_graph_that_cannot_be_loaded_is_named(make_bundle):
    bundle = make_bundle()
    model = onnx.load(bundle / "decoder.onnx")
    model.graph.node[0].op_type = "Nonsense"
    onnx.save_model(model, bundle / "decoder.onnx")
    forge_hashes(bundle)
    with pytest.raises(BackendError, match=r"onnxruntime .* is older than .*decoder\.onnx "):
        Bundle.open(bundle).session()


def test_a_missing_onnxruntime_names_its_package(tiny_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for backend in ("auto", "onnxruntime"):
        with pytest.raises(BackendError, match=r"not installed .*: pip install onnxruntime "):
            Bundle.open(tiny_bundle).session(backend)


def test_an_unknown_backend_is_answered_with_the_known_ones(tiny_bundle):
    with pytest.raises(BackendError, match="'abacus': give auto or one of onnxruntime, onnx"):
        Bundle.open(tiny_bundle).session("abacus")


@pytest.mark.parametrize("threads", [0, -2, 10**6, 2**40])
def test_threads_out_of_range_are_refused(tiny_bundle, threads):
    with pytest.raises(OptionError, match=f"threads is {threads}: give"):
        Bundle.open(tiny_bundle).session(threads=threads)


def test_a_bundle_without_a_draft_serves_the_target_only(make_bundle):
    from csd.runtime import GenerateOptions

    with Bundle.open(make_bundle(no_draft)).session() as session:
        options = GenerateOptions(mode="target", num_iter=NUM_ITER, head="sequential")
        assert session.generate([1], options).latents.shape == (1, 16, 4, 4)
        for mode in ("csd", "draft"):
            with pytest.raises(OptionError, match=f"no draft, so mode {mode} cannot run: use"):
                session.generate([1], GenerateOptions(mode=mode, head="sequential"))


def test_a_bundle_without_a_decoder_makes_latents_only(make_bundle):
    from csd.runtime import GenerateOptions

    with Bundle.open(make_bundle(_delete("graphs", "decoder"))).session() as session:
        assert not session.bundle.manifest.makes_images
        result = session.generate(
            [1, 2], GenerateOptions(mode="target", num_iter=4, head="sequential")
        )
    assert result.images.size == 0
    assert np.isfinite(result.latents).all()


def test_a_closed_session_says_so(tiny_bundle):
    with Bundle.open(tiny_bundle).session() as session:
        assert set(session.versions()) == {
            "csd",
            "numpy",
            "onnxruntime",
            "precision",
            "python",
        }
    with pytest.raises(CsdError, match="closed"):
        session.generate([1])


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04garbage"])
def test_a_calibration_that_cannot_be_read_is_named(make_bundle, content):
    bundle = make_bundle()
    (bundle / "calibration.npz").write_bytes(content)
    forge_hashes(bundle)
    with pytest.raises(BundleError, match=r"calibration\.npz .*export it again"):
        Bundle.open(bundle).session()
